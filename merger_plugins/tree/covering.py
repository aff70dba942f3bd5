"""Which nodes of a tree cover a sequence."""

from __future__ import annotations

_LAZY_LEVELS = 2


def frontier(places: int, fanout: int, *, lazy: int) -> list[tuple[int, int]]:
    """Which nodes cover a sequence: (start, stop) of each level's node indices, lowest level first.

    A level hands its oldest `fanout` nodes up as one as soon as they are complete; the two lowest levels only
    once `lazy` times as many more are complete too, so that they are read at a finer grain. Depends on
    `places` alone.
    """
    ranges: list[tuple[int, int]] = []
    received = places
    while received:
        handed = max(received // fanout - (lazy if len(ranges) < _LAZY_LEVELS else 0), 0)
        ranges.append((handed * fanout, received))
        received = handed
    return ranges
