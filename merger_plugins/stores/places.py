"""Which places, sections and levels a document has, and which of its places are empty."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Gaps = tuple[tuple[int, int], ...]
"""(start, stop) of each run of empty places, in order; runs neither touch nor overlap."""


def gaps_of(payload: object) -> Gaps:
    """The empty places as a root's payload has them: pairs in a list, or None."""
    return tuple((start, stop) for start, stop in payload) if isinstance(payload, Sequence) else ()


def with_gap(gaps: Gaps, place: int) -> Gaps:
    """These gaps and one more empty place."""
    return runs([*gaps, (place, place + 1)])


def without_gap(gaps: Gaps, place: int) -> Gaps:
    """These gaps with one place filled."""
    parts = []
    for start, stop in gaps:
        if start <= place < stop:
            parts += [(start, place), (place + 1, stop)]
        else:
            parts.append((start, stop))
    return runs(parts)


def is_empty(gaps: Gaps, start: int, stop: int | None = None) -> bool:
    """Whether every place from `start` up to `stop`, or the one place, is empty."""
    stop = start + 1 if stop is None else stop
    return any(first <= start and stop <= last for first, last in gaps)


def filled(gaps: Gaps, start: int, stop: int) -> list[int]:
    """The places from `start` up to `stop` that are not empty."""
    if not gaps:
        return list(range(start, stop))
    return [place for place in range(start, stop) if not is_empty(gaps, place)]


def runs(spans: Iterable[tuple[int, int]]) -> Gaps:
    """Spans of empty places as gaps: in order, those that touch or overlap joined."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(span for span in spans if span[0] < span[1]):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return tuple(joined)


def section_keys(places: int, fanout: int, since: int = 0) -> list[tuple[int, int]]:
    """(level, index) of each section point of a document.

    Those are the complete nodes of every level, and the last section of level 1 where that is incomplete. A
    document of fewer chunks than `fanout` has none: its root is its section. A section whose places are all
    empty is listed, and has no point.

    Args:
        places: how many places it has.
        fanout: the merger's.
        since: leaves out the sections that a document of this many places has already in the same form.
    """
    keys = []
    level, size = 1, fanout
    while places >= size:
        keys += [(level, index) for index in range(since // size, places // size)]
        level, size = level + 1, size * fanout
    if places > fanout and places % fanout:
        keys.append((1, places // fanout))
    return keys


def keys_above(place: int, places: int, fanout: int) -> list[tuple[int, int]]:
    """(level, index) of the section points that a chunk belongs to, lowest level first."""
    keys = []
    level, size = 1, fanout
    while place // size < places // size:
        keys.append((level, place // size))
        level, size = level + 1, size * fanout
    if not keys and places > fanout:
        keys.append((1, place // fanout))
    return keys


def root_level(places: int, fanout: int) -> int:
    """The level of a root: one above the highest complete node; 1 for less than a section."""
    level, size = 1, fanout
    while places >= size:
        level, size = level + 1, size * fanout
    return level
