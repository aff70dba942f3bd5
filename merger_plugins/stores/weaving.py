"""The points of the companion over documents whose chunk points another application wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from merger_plugins._batching import spanned, unit
from merger_plugins._types import Matrix, Vector
from merger_plugins.errors import ZeroVectorError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.context import REACH
from merger_plugins.stores.backend import Backend, Payload, Point
from merger_plugins.stores.foreign import CHUNK, CHUNKS, CONTEXTUAL_KIND, Edition
from merger_plugins.stores.planning import SOURCES, root_level
from merger_plugins.stores.records import METADATA, SCHEMA, PointIds
from merger_plugins.stores.spool import Gathered
from merger_plugins.tree import RollingMerge, frontier


@dataclass(frozen=True, eq=False)
class Woven:
    """What is to be written for some documents, in this order.

    Attributes:
        contextual: points with the contextual vector and no other, their ids those of the chunk points where
            the vectors belong there, else of points of the companion.
        sections: of level 1.
        roots: one a document.
    """

    contextual: list[Point]
    sections: list[Point]
    roots: list[Point]

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process: vectors together, as one by one they take ten times as long."""
        return _unpacked, tuple(map(_packed, (self.contextual, self.sections, self.roots)))


class Weaver:
    """Merges documents of a spool.

    Args:
        merger: makes the merges.
        edition: what they belong to.
        ids: of its points.
        read: rows of the spool -> (n, d) vectors.
        block: how many chunks to hold in memory at once.
    """

    def __init__(
        self,
        merger: SequenceMerger,
        edition: Edition,
        ids: PointIds,
        read: Callable[[Sequence[int]], Matrix],
        *,
        block: int,
    ) -> None:
        self.merger = merger
        self.edition = edition
        self.ids = ids
        self._read = read
        self._block = max(block // merger.fanout, 1) * merger.fanout

    def weave(self, documents: Sequence[Gathered]) -> Iterator[Woven]:
        """The points of documents, which together have about `block` chunks; of a long one, part by part.

        Raises:
            ZeroVectorError: chunks of a document cancel out.
        """
        if self.edition.reading.contextual == "none" and sum(map(len, documents)) <= 2 * self._block:
            yield self._together(documents)
        else:
            for document in documents:
                yield from self._by_itself(document)

    def excerpt(self, part: Gathered) -> Woven:
        """The sections of some chunks of a long document, which begin where a section begins.

        Args:
            part: the chunks, as many as fill sections, or up to the end of the document.
        """
        merger, fanout = self.merger, self.merger.fanout
        vectors, masses = self._read(part.rows), np.array(part.masses, np.float32)
        cuts = range(0, len(part), fanout)
        spans = [(low, min(low + fanout, len(part))) for low in cuts]
        merged = merger._merge_ready(spanned(merger._ready(vectors), masses, np.array(spans)))
        made = [
            self._section(part, part.first // fanout + index, vector) for index, vector in enumerate(merged)
        ]
        return Woven([], made, [])

    def root(self, document: Gathered, count: int, mass: float, vector: Vector) -> Point:
        """The root of a document of `count` chunks, which has sections.

        Args:
            document: its name, content and metadata; its chunks need not be there.
            count: how many chunks it has.
            mass: of all of them.
            vector: (d,) merged.

        Raises:
            ZeroVectorError: the vector has length zero.
        """
        _checked(document, vector, count)
        payload = self._payload(document, "root", root_level(count, self.merger.fanout), 0, count, mass)
        payload |= {"content": document.content, "source": SOURCES[False], "writing": False}
        return Point(self.ids.root(document.name), payload, vector)

    def stale(self, now: int, name: str, before: int) -> list[str]:
        """Ids of points that a document has no more.

        Args:
            now: how many chunks it has; 0 where it is gone.
            name: its name.
            before: how many chunks it had.
        """
        ids = [
            self.ids.section(name, 1, index)
            for index in range(self._sections_of(now), self._sections_of(before))
        ]
        if self.edition.reading.contextual == "companion":
            ids += [self.ids.chunk(name, place) for place in range(now, before)]
        return ids

    def expected(self, document: Gathered) -> list[str]:
        """Ids of the points that a document has in the companion."""
        return [self.ids.root(document.name), *self.stale(0, document.name, len(document))]

    def _is_flat(self, document: Gathered) -> bool:
        """Whether the tree reads the chunks themselves, so that many documents can be merged at once."""
        return len(frontier(len(document), self.merger.fanout, lazy=self.merger._lazy_carry)) == 1

    def _sections_of(self, chunks: int) -> int:
        fanout = self.merger.fanout
        return -(-chunks // fanout) if chunks >= fanout else 0

    def _together(self, documents: Sequence[Gathered]) -> Woven:
        merger, fanout = self.merger, self.merger.fanout
        vectors = self._read([row for document in documents for row in document.rows])
        masses = np.array([mass for document in documents for mass in document.masses], np.float32)
        ready = merger._ready(vectors)
        leaves = ready if type(merger)._ready is SequenceMerger._ready else None
        woven = Woven([], [], [])
        spans: list[tuple[int, int]] = []
        owners: list[tuple[Gathered, int | None]] = []
        long: list[tuple[Gathered, Vector]] = []
        first = 0
        for document in documents:
            start, first = first, first + len(document)
            for index in range(self._sections_of(len(document))):
                low = start + index * fanout
                spans.append((low, min(low + fanout, first)))
                owners.append((document, index))
            if self._is_flat(document):
                spans.append((start, first))
                owners.append((document, None))
            else:
                leaves = merger._leaves(vectors) if leaves is None else leaves
                rolling = RollingMerge(merger, history=False)
                rolling._extend_leaves(leaves[start:first], masses[start:first])
                long.append((document, rolling._root_direction()))
        if long:
            for (document, _), root in zip(long, merger._out(np.stack([d for _, d in long])), strict=True):
                woven.roots.append(self._root(document, root))
        merged = merger._merge_ready(spanned(ready, masses, np.array(spans)))
        for (document, section), vector in zip(owners, merged, strict=True):
            if section is None:
                woven.roots.append(self._root(document, vector))
            else:
                woven.sections.append(self._section(document, section, vector))
        return woven

    def _by_itself(self, document: Gathered) -> Iterator[Woven]:
        """Read once for the root and the sections, and again where contextual vectors are wanted."""
        merger, fanout = self.merger, self.merger.fanout
        weights = np.array(document.masses, np.float32)
        rolling = RollingMerge(merger, history=False)
        sections = self._sections_of(len(document))
        for start in range(0, len(document), self._block):
            stop = min(start + self._block, len(document))
            vectors, own = self._read(document.rows[start:stop]), weights[start:stop]
            rolling.extend(vectors, masses=own)
            if not sections:
                continue
            cuts = range(0, stop - start, fanout)
            merged = merger.merge_many(
                [vectors[cut : cut + fanout] for cut in cuts],
                masses=[own[cut : cut + fanout] for cut in cuts],
            )
            made = [
                self._section(document, start // fanout + index, vector)
                for index, vector in enumerate(merged)
            ]
            yield Woven([], made, [])
        towards = rolling._root_direction()[None]
        root = merger._out(towards)[0]
        _checked(document, root, len(document))
        if self.edition.reading.contextual != "none":
            direction = unit(towards)[0]
            for start in range(0, len(document), self._block):
                yield Woven(self._contextual(document, start, direction, weights), [], [])
        yield Woven([], [], [self._root(document, root)])

    def _contextual(self, document: Gathered, start: int, direction: Vector, weights: Vector) -> list[Point]:
        """Contextual vectors of the chunks from `start` on, a block of them."""
        stop = min(start + self._block, len(document))
        low, high = max(start - REACH, 0), min(stop + REACH, len(document))
        leaves = self.merger._leaves(self._read(document.rows[low:high]))
        relative = weights[low:high] / np.float32(weights.mean(dtype=np.float64))
        made = self.merger._contextual(leaves, direction, relative, None)[start - low : stop - low]
        if self.edition.reading.contextual == "named":
            return [
                Point(point_id, {}, contextual=vector)
                for point_id, vector in zip(document.ids[start:stop], made, strict=True)
            ]
        return [
            Point(
                self.ids.chunk(document.name, place),
                self._payload(document, CONTEXTUAL_KIND, 0, place, place + 1, document.masses[place])
                | {CHUNK: document.ids[place]},
                vector,
            )
            for place, vector in zip(range(start, stop), made, strict=True)
        ]

    def _section(self, document: Gathered, index: int, vector: Vector) -> Point:
        start = index * self.merger.fanout
        stop = min(start + self.merger.fanout, document.first + len(document))
        own = slice(start - document.first, stop - document.first)
        mass = float(sum(document.masses[own]))
        payload = self._payload(document, "section", 1, start, stop, mass) | {CHUNKS: document.ids[own]}
        return Point(self.ids.section(document.name, 1, index), payload, vector)

    def _root(self, document: Gathered, vector: Vector) -> Point:
        root = self.root(document, len(document), float(sum(document.masses)), vector)
        if not self._sections_of(len(document)):
            root.payload[CHUNKS] = document.ids
        return root

    def _payload(
        self, document: Gathered, kind: str, level: int, start: int, stop: int, mass: float
    ) -> Payload:
        return {
            "schema": SCHEMA,
            "kind": kind,
            "document_id": document.name,
            "level": level,
            "position": start,
            "stop": stop,
            "mass": mass,
            "count": stop - start,
            "fingerprint": self.merger.fingerprint,
            "edition": self.edition.name,
            METADATA: document.metadata,
        }


def write_woven(backend: Backend, woven: Woven, edition: Edition) -> None:
    """Write what was woven, the roots last: a document that has one of its present content is done."""
    if woven.contextual and edition.reading.contextual == "named":
        backend.write_contextual(woven.contextual)
    elif woven.contextual:
        backend.write("merged", woven.contextual)
    if woven.sections or woven.roots:
        backend.write("merged", [*woven.sections, *woven.roots])


_Packed = tuple[list[str], list[Payload], Matrix | None, Matrix | None]


def _packed(points: list[Point]) -> _Packed:
    """Points that all have a vector or none, and all a contextual one or none."""
    vectors = [point.vector for point in points if point.vector is not None]
    contextual = [point.contextual for point in points if point.contextual is not None]
    return (
        [point.id for point in points],
        [dict(point.payload) for point in points],
        np.stack(vectors) if vectors else None,
        np.stack(contextual) if contextual else None,
    )


def _unpacked(*lists: _Packed) -> Woven:
    def points(packed: _Packed) -> list[Point]:
        ids, payloads, vectors, contextual = packed
        nothing = [None] * len(ids)
        own = nothing if vectors is None else vectors
        beside = nothing if contextual is None else contextual
        return list(map(Point, ids, payloads, own, beside))

    return Woven(*map(points, lists))


def _checked(document: Gathered, root: Vector, count: int) -> None:
    if not root.any():
        raise ZeroVectorError(
            f"The {count} chunks of the document {document.name!r} merge to a vector of length zero: "
            "they cancel out. Vectors of one embedding model never do; check where they came from."
        )
