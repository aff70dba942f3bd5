"""Contextual turn vectors: what a turn takes from its neighbours and from the root of its sitting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

import numpy as np

from merger_plugins._batching import unit
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.context import REACH, ContextWeights, Renewal
from merger_plugins.stores.backend import Point
from merger_plugins.stores.nodes import leaves_of, refreshed
from merger_plugins.stores.sittings import LONGEST, sitting_at, sitting_of

BACK = LONGEST - 1 + REACH
"""How many places on either side of a turn its contextual vector can depend on."""

_COUNTED = (1, 2, 3, 4, 6, 9, 13, 20, LONGEST)


def in_sittings(
    merger: SequenceMerger,
    slots: Mapping[int, Point | None],
    places: Iterable[int],
    weights: ContextWeights,
) -> list[Point]:
    """Turns with contextual vectors made anew, each from its sitting's root.

    Args:
        merger: makes them.
        slots: place -> chunk point or None for an empty place: all of the sittings of `places`, and their
            neighbours.
        places: whose vectors; empty ones are left out.
        weights: how much of the neighbours and the root.
    """
    members = _members(slots)
    due = [place for place in sorted(places) if slots[place] is not None]
    made: list[Point] = []
    for sitting, own in groupby(due, key=lambda place: _sitting(slots, place)):
        heart = _heart(merger, slots, members[sitting], sitting, weights)
        made += refreshed(merger, slots, list(own), heart)
    return made


def due_after(slots: Mapping[int, Point | None], before: int, stop: int) -> list[int]:
    """The places whose contextual vectors change when a conversation grows.

    Args:
        slots: as `in_sittings`, the new turns included.
        before: how many places there were.
        stop: how many there are.
    """
    due = set(range(max(before - REACH, 0), stop))
    old = _members({place: point for place, point in slots.items() if place < before})
    if old:
        last = max(old)
        members = _members(slots)[last]
        if _counted(members, last) != _counted(old[last], last):
            due.update(members)
    return sorted(due)


def due_around(slots: Mapping[int, Point | None], changed: Iterable[int], places: int) -> list[int]:
    """The places whose contextual vectors change with the turns at some places.

    Args:
        slots: as `in_sittings`, the change made.
        changed: places whose turn is another, or gone.
        places: how many the conversation has.
    """
    members = _members(slots)
    due: set[int] = set()
    for place in changed:
        due.update(range(max(place - REACH, 0), min(place + REACH + 1, places)))
        turn = slots[place]
        if turn is None:
            near = [slots[other] for other in sorted(slots) if slots[other] is not None and other < place]
            beyond = [slots[other] for other in sorted(slots) if slots[other] is not None and other > place]
            sitting = sitting_at(place, near[-1] if near else None, beyond[0] if beyond else None)
        else:
            sitting = sitting_of(turn)
        due.update(members.get(sitting, ()))
    return sorted(due)


def _sitting(slots: Mapping[int, Point | None], place: int) -> int:
    turn = slots[place]
    assert turn is not None
    return sitting_of(turn)


def _members(slots: Mapping[int, Point | None]) -> dict[int, list[int]]:
    """Sitting -> the places of its turns, ascending."""
    members: dict[int, list[int]] = {}
    for place, turn in sorted(slots.items(), key=lambda slot: slot[0]):
        if turn is not None:
            members.setdefault(sitting_of(turn), []).append(place)
    return members


def _counted(members: Sequence[int], sitting: int) -> list[int]:
    """The turns that the root of a sitting counts.

    Up to 30 turns it is made again at 1, 2, 3, 4, 6, 9, 13, 20 and 30 places, not with every turn, so that a
    turn is written about five times and not fifteen: it changes little in between.
    """
    length = members[-1] - sitting + 1
    stop = sitting + max(count for count in _COUNTED if count <= max(length, 1))
    return [place for place in members if place < stop] or list(members)


def _heart(
    merger: SequenceMerger,
    slots: Mapping[int, Point | None],
    members: Sequence[int],
    sitting: int,
    weights: ContextWeights,
) -> Renewal:
    """What the contextual vectors of a sitting are made with."""
    counted = _counted(members, sitting)
    leaves, masses = leaves_of(merger, [slots[place] for place in counted])
    rolling = merger.rolling()
    rolling._extend_leaves(leaves, masses)
    root = unit(rolling._root_direction()[None])[0]
    return Renewal(root, float(np.mean(masses, dtype=np.float64)), weights)
