"""Which points a document needs: sections, root and contextual vectors over its chunk points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isclose

import numpy as np

from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.context import REACH, ContextWeights, Renewal
from merger_plugins.stores.backend import Payload, Point
from merger_plugins.stores.fading import FADED, FadedTree
from merger_plugins.stores.nodes import (
    SOURCES,
    Covering,
    Head,
    Tree,
    dimension_of,
    in_context,
    is_conversation,
    joined,
    leaves_of,
    refreshed,
    renewal_now,
    root_point,
    section_point,
    section_points,
)
from merger_plugins.stores.places import Gaps, is_empty, keys_above, root_level, section_keys
from merger_plugins.stores.records import PointIds, unpack
from merger_plugins.stores.surroundings import BACK, due_after, due_around, in_sittings

__all__ = [
    "SOURCES",
    "Covering",
    "Head",
    "Needs",
    "Plan",
    "back_of",
    "differs",
    "edited",
    "extended",
    "is_conversation",
    "renewal_of",
    "root_level",
    "section_keys",
    "whole",
]

_SAME = 1e-6


@dataclass(frozen=True)
class Plan:
    """What to do to the stored points of a document.

    Attributes:
        chunks: chunk points to write.
        merged: sections to write, and the root, which is last.
        gone_chunks: ids of chunk points to remove.
        gone_sections: ids of section points to remove.
    """

    chunks: list[Point] = field(default_factory=list)
    merged: list[Point] = field(default_factory=list)
    gone_chunks: list[str] = field(default_factory=list)
    gone_sections: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Needs:
    """Which stored points a change has to be worked out from.

    Attributes:
        leaves: positions of chunks.
        nodes: (level, index) of complete sections.
    """

    leaves: set[int]
    nodes: set[tuple[int, int]]

    @classmethod
    def of(cls, covering: Covering, changed: Sequence[int], fanout: int, *, back: int = 0) -> Needs:
        """What changing the chunks at these places needs, none for appending; `back` as `back_of` tells."""
        leaves, nodes = set(covering.leaves), set(covering.nodes())
        for place in changed:
            for level, index in keys_above(place, covering.places, fanout):
                first, stop = index * fanout, min((index + 1) * fanout, covering.places)
                if level == 1:
                    leaves.update(range(first, stop))
                else:
                    nodes.update((level - 1, child) for child in range(first, stop))
            if back:
                leaves.update(range(max(place - back, 0), min(place + back + 1, covering.places)))
        return cls(leaves, nodes)

    def ids(self, ids: PointIds, document_id: str, gaps: Gaps, fanout: int) -> tuple[list[str], list[str]]:
        """Ids of the chunk points and of the section points, without those of empty places."""
        chunks = [ids.chunk(document_id, place) for place in sorted(self.leaves) if not is_empty(gaps, place)]
        sections = [
            ids.section(document_id, level, index)
            for level, index in sorted(self.nodes)
            if not is_empty(gaps, index * fanout**level, (index + 1) * fanout**level)
        ]
        return chunks, sections


def back_of(*, contextual: bool, conversation: bool) -> int:
    """How many places on either side of a changed chunk are needed for contextual vectors."""
    if not contextual:
        return 0
    return BACK if conversation else 2 * REACH


def whole(
    ids: PointIds, merger: SequenceMerger, head: Head, chunks: Sequence[Point | None], *, contextual: bool
) -> Plan:
    """All points of a document.

    Args:
        ids: the collection's.
        merger: makes the merges.
        head: what the document is.
        chunks: its chunk points in reading order, with their vectors; None for an empty place.
        contextual: whether chunk points carry contextual vectors.

    Raises:
        InputError: as `SequenceMerger.merge`.
    """
    rolling = merger.rolling()
    leaves, masses = leaves_of(merger, chunks)
    rolling._extend_leaves(leaves, masses)
    points = [point for point in chunks if point is not None]
    renewal = None
    if contextual and head.conversation:
        points = in_sittings(merger, dict(enumerate(chunks)), range(len(chunks)), _weights(head, merger))
    elif contextual:
        made = rolling.contextual(head.weights)
        points = [
            in_context(point, vector, merger)
            for point, vector in zip(chunks, made, strict=True)
            if point is not None
        ]
        renewal = renewal_now(rolling, head)
    keys = section_keys(len(chunks), merger.fanout)
    merged = [*section_points(ids, rolling, head, keys), root_point(ids, rolling, head, renewal)]
    if head.half_life is not None:
        faded = FadedTree(merger, head.half_life, chunks.__getitem__, _no_section, leaves.shape[1])
        merged = _faded(merged, faded, len(chunks), merger.fanout)
    return Plan(points, merged)


def extended(
    ids: PointIds,
    merger: SequenceMerger,
    head: Head,
    covering: Covering,
    stored: Mapping[str, Point],
    added: Sequence[Point],
    *,
    contextual: bool,
    renewal: Renewal | None,
) -> Plan | None:
    """The points that appending changes.

    Args:
        ids: the collection's.
        merger: makes the merges.
        head: what the document is, the added chunks included.
        covering: of the document before.
        stored: the points that `covering` asks for, by id.
        added: the new chunk points in reading order, with their vectors.
        contextual: whether chunk points carry contextual vectors.
        renewal: what those of a document were made with; None for a conversation, whose follow from its
            turns.

    Returns:
        None where all contextual vectors are due, as `Renewal` tells: then `whole` is needed.

    Raises:
        StoreError: a point that is needed is not there.
        InputError: as `SequenceMerger.merge`.
    """
    before = covering.places
    width = dimension_of(added)
    tree = Tree(ids, merger, head, stored, width)
    rolling = tree.rolling(covering)
    leaves, masses = leaves_of(merger, added)
    rolling._extend_leaves(leaves, masses)
    points = list(added)
    slots: dict[int, Point | None] = dict(enumerate(added, before))
    if contextual:
        slots |= {place: tree.chunk(place) for place in covering.leaves}
    if contextual and head.conversation:
        due = due_after(slots, before, rolling.places)
        points = in_sittings(merger, slots, due, _weights(head, merger))
    elif renewal is not None:
        now = renewal_now(rolling, head)
        if renewal.outdated(now):
            return None
        points = refreshed(merger, slots, range(max(before - REACH, 0), before + len(added)), now)
    keys = section_keys(rolling.places, merger.fanout, since=before)
    merged = [*section_points(ids, rolling, head, keys), root_point(ids, rolling, head, renewal)]
    if head.half_life is not None:
        read = set(covering.nodes())
        faded = FadedTree(
            merger,
            head.half_life,
            lambda place: added[place - before] if place >= before else tree.chunk(place),
            lambda level, index: _section(tree, level, index, kept=(level, index) in read),
            width,
        )
        merged = _faded(merged, faded, rolling.places, merger.fanout)
    return Plan(points, merged)


def edited(
    ids: PointIds,
    merger: SequenceMerger,
    head: Head,
    covering: Covering,
    stored: Mapping[str, Point],
    changes: Mapping[int, Point | None],
    *,
    contextual: bool,
    renewal: Renewal | None,
) -> Plan | None:
    """The points that change with chunks in the middle: those on the paths from them to the root.

    Args:
        ids: the collection's.
        merger: makes the merges.
        head: what the document is, the changes made.
        covering: of the document.
        stored: the points that `Needs` asks for, by id.
        changes: place -> its new chunk point with its vector; None for one that becomes empty.
        contextual: as `extended`.
        renewal: as `extended`.

    Returns:
        As `extended`.

    Raises:
        StoreError: as `extended`.
        InputError: as `SequenceMerger.merge`.
    """
    fanout, places = merger.fanout, covering.places
    width = dimension_of([*changes.values(), *stored.values()])
    tree = Tree(ids, merger, head, stored, width, changes)
    sections, gone = [], []
    above = sorted({key for place in changes for key in keys_above(place, places, fanout)})
    for level, index in above:
        first, stop = index * fanout**level, min((index + 1) * fanout**level, places)
        children = tree.nodes(level - 1, index * fanout, min((index + 1) * fanout, places))
        complete = stop == first + fanout**level
        node = joined(merger, children) if complete else None
        if node is not None:
            tree.changed[level, index] = node
        if not children.counts.any():
            gone.append(ids.section(head.document_id, level, index))
            continue
        vector = merger._out(merger._read([children])[None])[0]
        sections.append(
            section_point(ids, merger, head, (level, index), (first, stop), vector, children, node)
        )
    rolling = tree.rolling(covering)
    points = [point for point in changes.values() if point is not None]
    if contextual and head.conversation:
        slots = {
            other: tree.chunk(other)
            for place in changes
            for other in range(max(place - BACK, 0), min(place + BACK + 1, places))
        }
        points = in_sittings(merger, slots, due_around(slots, changes, places), _weights(head, merger))
    elif renewal is not None:
        now = renewal_now(rolling, head)
        if renewal.outdated(now):
            return None
        near = {
            other
            for place in changes
            for other in range(max(place - REACH, 0), min(place + REACH + 1, places))
        }
        around = {
            other for place in near for other in range(max(place - REACH, 0), min(place + REACH + 1, places))
        }
        points = refreshed(merger, {place: tree.chunk(place) for place in around}, sorted(near), now)
    merged = [*sections, root_point(ids, rolling, head, renewal)]
    if head.half_life is not None:
        faded = FadedTree(
            merger,
            head.half_life,
            tree.chunk,
            lambda level, index: _section(tree, level, index, kept=(level, index) not in above),
            width,
        )
        merged = _faded(merged, faded, places, fanout)
    return Plan(
        points,
        merged,
        [ids.chunk(head.document_id, place) for place, point in changes.items() if point is None],
        gone,
    )


def _weights(head: Head, merger: SequenceMerger) -> ContextWeights:
    return head.weights or merger.context_weights


def _no_section(level: int, index: int) -> Point | None:
    raise KeyError((level, index))


def _section(tree: Tree, level: int, index: int, *, kept: bool) -> Point | None:
    """A stored section, for `FadedTree`; where it is not kept, its node is made from what is below it."""
    if not kept:
        raise KeyError((level, index))
    return tree.section(level, index)


def _faded(merged: Sequence[Point], faded: FadedTree, places: int, fanout: int) -> list[Point]:
    """Sections and the root of a conversation whose masses fade, the root last."""

    def kept(section: Point) -> Point:
        if "node" not in section.payload:
            return section
        level = section.payload["level"]
        faded_node = faded.payload(level, section.payload["position"] // fanout**level)
        return replace(section, payload={**section.payload, FADED: faded_node})

    *sections, root = merged
    return [*map(kept, sections), replace(root, vector=faded.root(places))]


def differs(point: Point, stored: Point | None) -> bool:
    """Whether a point has to be written, or is stored already up to rounding."""
    if stored is None or _exact(point.payload) != _exact(stored.payload):
        return True
    for key in _ROUNDED:
        if not isclose(point.payload.get(key, 0), stored.payload.get(key, 0), rel_tol=1e-5):
            return True
    return any(
        (new is None) != (old is None)
        or (new is not None and old is not None and np.abs(new - old).max() > _SAME)
        for new, old in ((point.vector, stored.vector), (point.contextual, stored.contextual))
    )


_ROUNDED = ("mass", "norm")
"""Payload numbers that depend on the order of additions."""

_DERIVED = ("node", FADED, "context", "version", "token")
"""What follows from the rest of a payload, or says when it was written."""


def _exact(payload: Payload) -> Payload:
    return {key: value for key, value in payload.items() if key not in (*_ROUNDED, *_DERIVED)}


def renewal_of(root: Point, head: Head, merger: SequenceMerger) -> Renewal:
    """What the stored contextual vectors of a document were made with."""
    stored = root.payload["context"]
    return Renewal(unpack(stored["root"]), stored["mean_mass"], _weights(head, merger))
