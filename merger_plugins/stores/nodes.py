"""The points of a document's tree, and its nodes as they are read back from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from merger_plugins._batching import unit
from merger_plugins._nodes import Nodes
from merger_plugins._types import Matrix, Vector
from merger_plugins.errors import StoreError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.context import REACH, TURN_WEIGHTS, ContextWeights, Renewal
from merger_plugins.stores.ages import HalfLife
from merger_plugins.stores.backend import Payload, Point
from merger_plugins.stores.places import Gaps, gaps_of, is_empty, root_level
from merger_plugins.stores.records import METADATA, SCHEMA, PointIds, pack, unpack
from merger_plugins.stores.sittings import LAST, Last
from merger_plugins.tree import RollingMerge, checked_masses, frontier

SOURCES = ("document", "conversation")
"""What a root says of where its chunks came from: all at once, or turn by turn."""

HALF_LIFE = "half_life"
"""The payload key of the half-life that a root's masses fade with."""


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
        gaps: its empty places.
        last: of a conversation, what the next turn's sitting depends on.
        half_life: at which the masses of a conversation's turns fade in its root; None where they do not.
    """

    document_id: str
    content: str
    conversation: bool
    metadata: Mapping[str, Any]
    writing: bool = False
    gaps: Gaps = ()
    last: Last | None = None
    half_life: HalfLife | None = None

    @classmethod
    def of(cls, root: Point) -> Head:
        """The head of a document whose root point is stored."""
        return cls(
            root.payload["document_id"],
            root.payload["content"],
            is_conversation(root),
            root.payload[METADATA],
            root.payload["writing"],
            gaps_of(root.payload.get("gaps")),
            Last.of(root.payload),
            HalfLife.of(root.payload.get(HALF_LIFE)),
        )

    @property
    def weights(self) -> ContextWeights | None:
        """Weights for its contextual chunk vectors; None for the merger's own."""
        return TURN_WEIGHTS if self.conversation else None


@dataclass(frozen=True)
class Covering:
    """Which stored points cover a document, so that chunks can be appended to it.

    Attributes:
        places: how many places it has.
        leaves: the chunk positions that are needed, those of neighbours included.
        ranges: (start, stop) of the node indices of each level, the leaves first.
    """

    places: int
    leaves: range
    ranges: list[tuple[int, int]]

    @classmethod
    def of(cls, places: int, merger: SequenceMerger, *, back: int = 0) -> Covering:
        """What a document of this many places needs, the last `back` chunks in any case."""
        ranges = frontier(places, merger.fanout, lazy=merger._lazy_carry)
        first = min(ranges[0][0], places - back)
        return cls(places, range(max(first, 0), places), ranges)

    def nodes(self) -> list[tuple[int, int]]:
        """(level, index) of the section points that are needed."""
        return [(level, index) for level, span in enumerate(self.ranges) if level for index in range(*span)]


class Tree:
    """The nodes of a document's tree, as far as they were read, under those that are being changed.

    Attributes:
        changed: (level, index) -> the node that takes the place of a stored one.
    """

    def __init__(
        self,
        ids: PointIds,
        merger: SequenceMerger,
        head: Head,
        stored: Mapping[str, Point],
        width: int,
        changes: Mapping[int, Point | None] | None = None,
    ) -> None:
        self._ids = ids
        self._merger = merger
        self._head = head
        self._stored = stored
        self._width = width
        self._changes = changes or {}
        self.changed: dict[tuple[int, int], Nodes] = {}

    def chunk(self, place: int) -> Point | None:
        """The chunk point at a place; None where that is empty."""
        if place in self._changes:
            return self._changes[place]
        if is_empty(self._head.gaps, place):
            return None
        return self._needed(self._ids.chunk(self._head.document_id, place))

    def section(self, level: int, index: int) -> Point | None:
        """The stored point of a complete section; None where its places are all empty."""
        size = self._merger.fanout**level
        if is_empty(self._head.gaps, index * size, (index + 1) * size):
            return None
        return self._needed(self._ids.section(self._head.document_id, level, index))

    def nodes(self, level: int, start: int, stop: int) -> Nodes:
        """Nodes of a level, the chunks being level 0."""
        if level == 0:
            leaves, masses = leaves_of(self._merger, [self.chunk(p) for p in range(start, stop)], self._width)
            return Nodes(leaves * masses[:, None], masses, (masses > 0).astype(np.int64))
        parts = (self._node(level, index) for index in range(start, stop))
        return Nodes.concatenated(parts, self._width)

    def rolling(self, covering: Covering) -> RollingMerge:
        """The rolling merge of the whole document, resumed from the nodes that cover it."""
        levels = [(span[0], self.nodes(level, *span)) for level, span in enumerate(covering.ranges)]
        rolling = RollingMerge.from_nodes(self._merger, levels, covering.places)
        rolling.history = True  # what is appended now has to be read section by section
        return rolling

    def _node(self, level: int, index: int) -> Nodes:
        if (level, index) in self.changed:
            return self.changed[level, index]
        section = self.section(level, index)
        if section is None:
            vector, mass, count = np.zeros(self._width, np.float32), 0.0, 0
        else:
            payload = section.payload
            vector, mass, count = unpack(payload["node"]), payload["mass"], payload["count"]
        return Nodes(vector[None], np.array([mass], np.float32), np.array([count], np.int64))

    def _needed(self, point_id: str) -> Point:
        point = self._stored.get(point_id)
        if point is None:
            raise StoreError(
                f"A point of {self._head.document_id!r} that is needed for this is not in the store. Where a "
                "section is missing, call repair() or rebuild(); where a chunk is, ingest the document again."
            )
        return point


def dimension_of(points: Sequence[Point | None]) -> int:
    """Of the vectors of these points, or else of their nodes; 0 where none has either."""
    for point in points:
        if point is not None and point.vector is not None:
            return len(point.vector)
    nodes = (unpack(p.payload["node"]) for p in points if p is not None and "node" in p.payload)
    return next((len(node) for node in nodes), 0)


def leaves_of(
    merger: SequenceMerger, chunks: Sequence[Point | None], width: int = 0
) -> tuple[Matrix, Vector]:
    """(n, d) leaves and (n,) masses of chunk points; zeros for an empty place."""
    full = [index for index, point in enumerate(chunks) if point is not None]
    points = [point for point in chunks if point is not None]
    if not points:
        return np.zeros((len(chunks), width), np.float32), np.zeros(len(chunks), np.float32)
    vectors = [point.vector for point in points if point.vector is not None]
    assert len(vectors) == len(points)
    made = merger._leaves(np.stack(vectors))
    weights = checked_masses([point.payload["mass"] for point in points], len(points))
    if len(points) == len(chunks):
        return made, weights
    leaves, masses = np.zeros((len(chunks), made.shape[1]), np.float32), np.zeros(len(chunks), np.float32)
    leaves[full], masses[full] = made, weights
    return leaves, masses


def joined(merger: SequenceMerger, children: Nodes) -> Nodes:
    """The node above these, as the only one of its level."""
    group = Nodes(children.vectors[None], children.masses[None], children.counts[None])
    return Nodes(merger._join(group), group.masses.sum(axis=1), group.counts.sum(axis=1))


def renewal_now(rolling: RollingMerge, head: Head) -> Renewal:
    """What contextual vectors of a document would be made with now."""
    return Renewal(
        root=unit(rolling._root_direction()[None])[0],
        mean_mass=rolling.mass / len(rolling),
        weights=head.weights or rolling.merger.context_weights,
    )


def section_points(
    ids: PointIds, rolling: RollingMerge, head: Head, keys: Sequence[tuple[int, int]]
) -> list[Point]:
    """Section points of a document; those whose places are all empty are left out."""
    points = []
    fanout = rolling.merger.fanout
    for level, index in keys:
        size = fanout**level
        first, stop = index * size, min((index + 1) * size, rolling.places)
        if is_empty(head.gaps, first, stop):
            continue
        vector = rolling.section_range(level, index, index + 1)[0]
        if stop == first + size:
            nodes = rolling.nodes(level, index, index + 1)
            points.append(
                section_point(ids, rolling.merger, head, (level, index), (first, stop), vector, nodes, nodes)
            )
        else:
            nodes = rolling.nodes(0, first, stop)
            points.append(
                section_point(ids, rolling.merger, head, (level, index), (first, stop), vector, nodes, None)
            )
    return points


def section_point(
    ids: PointIds,
    merger: SequenceMerger,
    head: Head,
    key: tuple[int, int],
    span: tuple[int, int],
    vector: Vector,
    children: Nodes,
    node: Nodes | None,
) -> Point:
    """A section point over the nodes below it; `node` is its own, where it is complete."""
    payload = _merged_payload(
        merger, head, "section", key[0], span, float(children.masses.sum()), int(children.counts.sum())
    )
    payload |= ids.mark
    if node is not None:
        payload |= {"node": pack(node.vectors[0]), "norm": float(np.linalg.norm(node.vectors[0]))}
    else:
        payload["norm"] = float(np.linalg.norm(children.vectors.sum(axis=0)))
    return Point(ids.section(head.document_id, *key), payload, vector)


def root_point(ids: PointIds, rolling: RollingMerge, head: Head, renewal: Renewal | None) -> Point:
    """The root point of a document; `renewal` tells what its contextual vectors were made with."""
    places = rolling.places
    level = root_level(places, rolling.merger.fanout)
    payload = _merged_payload(
        rolling.merger, head, "root", level, (0, places), rolling.mass, len(rolling)
    ) | {
        "content": head.content,
        "source": SOURCES[head.conversation],
        "writing": head.writing,
        **ids.mark,
    }
    if head.gaps:
        payload["gaps"] = [list(gap) for gap in head.gaps]
    if head.last is not None:
        payload[LAST] = head.last.payload()
    if head.half_life is not None:
        payload[HALF_LIFE] = head.half_life.payload()
    if renewal is not None:
        payload["context"] = {"root": pack(renewal.root), "mean_mass": renewal.mean_mass}
    return Point(ids.root(head.document_id), payload, rolling.vector)


def _merged_payload(
    merger: SequenceMerger,
    head: Head,
    kind: str,
    level: int,
    span: tuple[int, int],
    mass: float,
    count: int,
) -> Payload:
    return {
        "schema": SCHEMA,
        "kind": kind,
        "document_id": head.document_id,
        "level": level,
        "position": span[0],
        "stop": span[1],
        "mass": mass,
        "count": count,
        "fingerprint": merger.fingerprint,
        METADATA: dict(head.metadata),
    }


def in_context(point: Point, contextual: Vector, merger: SequenceMerger) -> Point:
    """The chunk point with its contextual vector."""
    payload = {**point.payload, "fingerprint": merger.fingerprint}
    return replace(point, contextual=contextual, payload=payload)


def refreshed(
    merger: SequenceMerger, slots: Mapping[int, Point | None], places: Sequence[int], now: Renewal
) -> list[Point]:
    """Chunk points with contextual vectors made anew.

    Args:
        merger: makes them.
        slots: place -> chunk point, for these places and their neighbours; None for an empty place.
        places: ascending.
        now: what they are made with.
    """
    made: list[Point] = []
    runs = np.split(np.asarray(places), np.flatnonzero(np.diff(places) > 1) + 1)
    for run in runs:
        near = [place for place in range(run[0] - REACH, run[-1] + REACH + 1) if place in slots]
        leaves, masses = leaves_of(merger, [slots[place] for place in near], len(now.root))
        relative = masses / np.float32(now.mean_mass)
        vectors = merger._contextual(leaves, now.root, relative, now.weights)
        for place, vector in zip(near, vectors, strict=True):
            point = slots[place]
            if point is not None and run[0] <= place <= run[-1]:
                made.append(in_context(point, vector, merger))
    return made
