"""Which points a document needs: sections, root and contextual vectors over its chunk points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isclose
from typing import Any

import numpy as np

from merger_plugins._batching import unit
from merger_plugins._nodes import Nodes
from merger_plugins._types import Matrix, Vector
from merger_plugins.errors import StoreError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.context import REACH, TURN_WEIGHTS, ContextWeights, Renewal
from merger_plugins.stores.backend import Payload, Point
from merger_plugins.stores.records import METADATA, SCHEMA, PointIds, pack, unpack
from merger_plugins.tree import RollingMerge, frontier

_SAME = 1e-6


SOURCES = ("document", "conversation")
"""What a root says of where its chunks came from: all at once, or turn by turn."""


def is_conversation(root: Point) -> bool:
    """Whether a stored root's chunks came turn by turn."""
    return bool(root.payload["source"] == SOURCES[True])


@dataclass(frozen=True)
class Head:
    """What is known of a document as a whole.

    Attributes:
        document_id: its name.
        content: `content_hash` of its chunks.
        conversation: whether it grew turn by turn.
        metadata: what all its chunks share.
        writing: whether its chunk points are being replaced, or that was interrupted.
    """

    document_id: str
    content: str
    conversation: bool
    metadata: Mapping[str, Any]
    writing: bool = False

    @classmethod
    def of(cls, root: Point) -> Head:
        """The head of a document whose root point is stored."""
        return cls(
            root.payload["document_id"],
            root.payload["content"],
            is_conversation(root),
            root.payload[METADATA],
            root.payload["writing"],
        )

    @property
    def weights(self) -> ContextWeights | None:
        """Weights for its contextual chunk vectors; None for the merger's own."""
        return TURN_WEIGHTS if self.conversation else None


@dataclass(frozen=True)
class Plan:
    """Points to be stored, in the order in which they must be written: chunks, sections, root."""

    chunks: list[Point] = field(default_factory=list)
    merged: list[Point] = field(default_factory=list)


def section_keys(places: int, fanout: int, since: int = 0) -> list[tuple[int, int]]:
    """(level, index) of each section point of a document.

    Those are the complete nodes of every level, and the last section of level 1 where that is incomplete. A
    document of fewer chunks than `fanout` has none: its root is its section.

    Args:
        places: how many chunks it has.
        fanout: the merger's.
        since: leaves out the sections that a document of this many chunks has already in the same form.
    """
    keys = []
    level, size = 1, fanout
    while places >= size:
        keys += [(level, index) for index in range(since // size, places // size)]
        level, size = level + 1, size * fanout
    if places > fanout and places % fanout:
        keys.append((1, places // fanout))
    return keys


def root_level(places: int, fanout: int) -> int:
    """The level of a root: one above the highest complete node; 1 for less than a section."""
    level, size = 1, fanout
    while places >= size:
        level, size = level + 1, size * fanout
    return level


def whole(
    ids: PointIds, merger: SequenceMerger, head: Head, chunks: Sequence[Point], *, contextual: bool
) -> Plan:
    """All points of a document.

    Args:
        ids: the collection's.
        merger: makes the merges.
        head: what the document is.
        chunks: its chunk points in reading order, with their vectors.
        contextual: whether chunk points carry contextual vectors.

    Raises:
        InputError: as `SequenceMerger.merge`.
    """
    rolling = merger.rolling()
    rolling.extend(_matrix(chunks), masses=_masses(chunks))
    keys = section_keys(len(chunks), merger.fanout)
    points = list(chunks)
    renewal = None
    if contextual:
        points = _in_context(points, rolling.contextual(head.weights), merger)
        renewal = _renewal(rolling, head)
    return Plan(points, [*_sections(ids, rolling, head, keys), _root(ids, rolling, head, renewal)])


@dataclass(frozen=True)
class Covering:
    """Which stored points cover a document, so that chunks can be appended to it.

    Attributes:
        places: how many chunks it has.
        leaves: the chunk positions that are needed, those of neighbours included.
        ranges: (start, stop) of the node indices of each level, the leaves first.
    """

    places: int
    leaves: range
    ranges: list[tuple[int, int]]

    @classmethod
    def of(cls, places: int, merger: SequenceMerger, *, contextual: bool) -> Covering:
        """What a document of this many chunks needs."""
        ranges = frontier(places, merger.fanout, lazy=merger._lazy_carry)
        first = min(ranges[0][0], places - 2 * REACH) if contextual else ranges[0][0]
        return cls(places, range(max(first, 0), places), ranges)

    def nodes(self) -> list[tuple[int, int]]:
        """(level, index) of the section points that are needed."""
        return [(level, index) for level, span in enumerate(self.ranges) if level for index in range(*span)]


def extended(
    ids: PointIds,
    merger: SequenceMerger,
    head: Head,
    covering: Covering,
    stored: Mapping[str, Point],
    added: Sequence[Point],
    *,
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
        renewal: what the stored contextual vectors were made with; None where there are none.

    Returns:
        None where all contextual vectors are due, as `Renewal` tells: then `whole` is needed.

    Raises:
        StoreError: a point that is needed is not there.
        InputError: as `SequenceMerger.merge`.
    """
    before, fanout = covering.places, merger.fanout
    leaves = [_needed(stored, ids.chunk(head.document_id, place), head) for place in covering.leaves]
    rolling = _resumed(ids, merger, head, covering, stored, leaves)
    rolling.extend(_matrix(added), masses=_masses(added))
    points = list(added)
    if renewal is not None:
        now = _renewal(rolling, head)
        if renewal.outdated(now):
            return None
        points = _refreshed(rolling, [*leaves, *added], len(leaves), now)
    keys = section_keys(rolling.places, fanout, since=before)
    return Plan(points, [*_sections(ids, rolling, head, keys), _root(ids, rolling, head, renewal)])


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

_DERIVED = ("node", "context")
"""What follows from the rest of a payload."""


def _exact(payload: Payload) -> Payload:
    return {key: value for key, value in payload.items() if key not in (*_ROUNDED, *_DERIVED)}


def _matrix(points: Sequence[Point]) -> Matrix:
    vectors = [point.vector for point in points if point.vector is not None]
    assert len(vectors) == len(points)
    return np.stack(vectors)


def _masses(points: Sequence[Point]) -> Vector:
    return np.array([point.payload["mass"] for point in points], np.float32)


def _renewal(rolling: RollingMerge, head: Head) -> Renewal:
    return Renewal(
        root=unit(rolling._root_direction()[None])[0],
        mean_mass=rolling.mass / len(rolling),
        weights=head.weights or rolling.merger.context_weights,
    )


def renewal_of(root: Point, head: Head, merger: SequenceMerger) -> Renewal:
    """What the stored contextual vectors of a document were made with."""
    stored = root.payload["context"]
    return Renewal(unpack(stored["root"]), stored["mean_mass"], head.weights or merger.context_weights)


def _needed(stored: Mapping[str, Point], point_id: str, head: Head) -> Point:
    point = stored.get(point_id)
    if point is None:
        raise StoreError(
            f"A point of {head.document_id!r} that appending needs is not in the store. Call rebuild() where "
            "a section is missing; ingest the document again where a chunk is."
        )
    return point


def _resumed(
    ids: PointIds,
    merger: SequenceMerger,
    head: Head,
    covering: Covering,
    stored: Mapping[str, Point],
    leaves: Sequence[Point],
) -> RollingMerge:
    start = covering.ranges[0][0]
    below = leaves[start - covering.leaves.start :]
    levels: list[tuple[int, Nodes]] = []
    for level, span in enumerate(covering.ranges[1:], 1):
        points = [
            _needed(stored, ids.section(head.document_id, level, index), head) for index in range(*span)
        ]
        levels.append((span[0], _nodes(points)))
    width = len(leaves[0].vector) if leaves and leaves[0].vector is not None else _width(levels)
    if below:
        made = merger.rolling()
        made.extend(_matrix(below), masses=_masses(below))
        bottom = made.nodes(0, 0, len(below))
    else:
        bottom = _nodes([])
    levels.insert(0, (start, bottom))
    filled = [
        (first, nodes if len(nodes.masses) else replace(nodes, vectors=np.zeros((0, width), np.float32)))
        for first, nodes in levels
    ]
    rolling = RollingMerge.from_nodes(merger, filled, covering.places)
    rolling.history = True  # what is appended now has to be read section by section
    return rolling


def _width(levels: Sequence[tuple[int, Nodes]]) -> int:
    widths: list[int] = [nodes.vectors.shape[1] for _, nodes in levels]
    return max(widths)


def _nodes(points: Sequence[Point]) -> Nodes:
    vectors = [unpack(point.payload["node"]) for point in points]
    return Nodes(
        np.stack(vectors) if vectors else np.zeros((0, 0), np.float32),
        np.array([point.payload["mass"] for point in points], np.float32),
        np.array([point.payload["count"] for point in points], np.int64),
    )


def _sections(
    ids: PointIds, rolling: RollingMerge, head: Head, keys: Sequence[tuple[int, int]]
) -> list[Point]:
    points = []
    fanout = rolling.merger.fanout
    for level, index in keys:
        size = fanout**level
        vector = rolling.section_range(level, index, index + 1)[0]
        first, stop = index * size, min((index + 1) * size, rolling.places)
        if stop == first + size:
            nodes = rolling.nodes(level, index, index + 1)
            tree = {"node": pack(nodes.vectors[0]), "norm": float(np.linalg.norm(nodes.vectors[0]))}
        else:
            nodes = rolling.nodes(0, first, stop)
            tree = {"norm": float(np.linalg.norm(nodes.vectors.sum(axis=0)))}
        payload = _merged_payload(rolling, head, "section", level, (first, stop), nodes) | tree
        points.append(Point(ids.section(head.document_id, level, index), payload, vector))
    return points


def _root(ids: PointIds, rolling: RollingMerge, head: Head, renewal: Renewal | None) -> Point:
    places = rolling.places
    payload = _merged_payload(
        rolling, head, "root", root_level(places, rolling.merger.fanout), (0, places), None
    )
    payload |= {
        "content": head.content,
        "source": SOURCES[head.conversation],
        "writing": head.writing,
    }
    if renewal is not None:
        payload["context"] = {"root": pack(renewal.root), "mean_mass": renewal.mean_mass}
    return Point(ids.root(head.document_id), payload, rolling.vector)


def _merged_payload(
    rolling: RollingMerge, head: Head, kind: str, level: int, span: tuple[int, int], nodes: Nodes | None
) -> Payload:
    return {
        "schema": SCHEMA,
        "kind": kind,
        "document_id": head.document_id,
        "level": level,
        "position": span[0],
        "stop": span[1],
        "mass": float(nodes.masses.sum()) if nodes else rolling.mass,
        "count": int(nodes.counts.sum()) if nodes else len(rolling),
        "fingerprint": rolling.merger.fingerprint,
        METADATA: dict(head.metadata),
    }


def _in_context(points: Sequence[Point], contextual: Matrix, merger: SequenceMerger) -> list[Point]:
    return [
        replace(point, contextual=vector, payload={**point.payload, "fingerprint": merger.fingerprint})
        for point, vector in zip(points, contextual, strict=True)
    ]


def _refreshed(rolling: RollingMerge, chunks: Sequence[Point], known: int, now: Renewal) -> list[Point]:
    """The new chunk points and their neighbours before them, with contextual vectors; the new ones first.

    Args:
        rolling: of the document, the new chunks included.
        chunks: the last chunk points of the document, the new ones included.
        known: how many of these are stored already.
        now: what they are made with.
    """
    low = max(known - 2 * REACH, 0)
    near = chunks[low:]
    merger = rolling.merger
    relative = _masses(near) / np.float32(now.mean_mass)
    vectors = merger._contextual(merger._leaves(_matrix(near)), now.root, relative, now.weights)
    made = _in_context(near, vectors, merger)
    fresh = known - low
    return made[fresh:] + made[max(fresh - REACH, 0) : fresh]
