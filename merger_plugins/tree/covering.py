"""Which nodes of a tree cover a sequence, and runs of places."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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


def runs(places: Sequence[int]) -> list[tuple[int, int]]:
    """Runs of consecutive places as (start, stop)."""
    array = np.asarray(places, np.int64)
    if not len(array):
        return []
    cuts = np.flatnonzero(np.diff(array) > 1) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(array, cuts)]
