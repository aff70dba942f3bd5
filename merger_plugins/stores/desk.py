"""What is needed to write into one store, and how chunk points are made and found again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from merger_plugins._batching import as_matrix, unit
from merger_plugins._types import Matrix, Vector
from merger_plugins.errors import StoreError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.stores.ages import HalfLife
from merger_plugins.stores.backend import Backend, Point
from merger_plugins.stores.documents import Prepared, placed
from merger_plugins.stores.nodes import Head
from merger_plugins.stores.places import filled, section_keys
from merger_plugins.stores.records import META_ID, PointIds
from merger_plugins.stores.settings import EditionError, Settings, check
from merger_plugins.stores.sittings import PAUSE

_BLOCK = 64
"""Chunk positions looked up at once when it is not known where a document ends."""


@dataclass(frozen=True)
class Desk:
    """What is needed to write into one store.

    Attributes:
        backend: the database.
        ids: of the collection.
        merger: the resolved one.
        contextual: whether chunk points carry contextual vectors.
        exists: tells whether anything was ingested before.
        embed: texts -> (n, d) chunk vectors.
        prepare: makes what is missing of the collections, for this dimension.
        pause: seconds between two turns after which a sitting begins.
        fading: tells the half-life of new conversations, once `prepare` was called.
    """

    backend: Backend
    ids: PointIds
    merger: SequenceMerger
    contextual: bool
    exists: Callable[[], bool]
    embed: Callable[[Sequence[str]], Matrix]
    prepare: Callable[[int], None]
    pause: float = PAUSE
    fading: Callable[[], HalfLife | None] = lambda: None

    @property
    def half_life(self) -> HalfLife | None:
        """At which the masses of turns fade in the root of a new conversation; None for no fading."""
        return self.fading()

    def lookup(self, point_ids: Sequence[str], *, any_merger: bool = False) -> dict[str, Point]:
        """Roots and claims by id, with their vectors, the store's settings checked on the way.

        Args:
            point_ids: of roots; none to check the settings alone.
            any_merger: whether it does not matter which merger made the store.

        Raises:
            EditionError: the merged vectors of another edition have taken over, or are about to.
            FingerprintError: another merger made the store.
        """
        if not self.exists():
            return {}
        points = self.backend.fetch("merged", [META_ID, *point_ids], vectors=True)
        settings = points.pop(META_ID, None)
        if settings is not None:
            now = Settings.of(settings)
            if now.switching or now.edition != self.ids.edition:
                raise EditionError(
                    f"The merged vectors in {self.backend.place} are being replaced, or were, by others that "
                    "a calibrate() or rebuild() made. Repeat the call."
                )
            if not any_merger:
                check(now, self.merger, self.backend.place)
        return points

    def chunk_ids(self, document_id: str, start: int, stop: int) -> list[str]:
        """Ids of the chunks at these positions."""
        return [self.ids.chunk(document_id, position) for position in range(start, stop)]

    def section_ids(self, document_id: str, places: int, fanout: int | None = None) -> list[str]:
        """Ids of the sections of a document of this many chunks."""
        keys = section_keys(places, fanout or self.merger.fanout)
        return [self.ids.section(document_id, level, index) for level, index in keys]

    def end(self, document_id: str, start: int) -> int:
        """The position after the document's last stored chunk, looked for from `start` on."""
        while True:
            block = self.chunk_ids(document_id, start, start + _BLOCK)
            found = self.backend.fetch("chunks", block, payload=False)
            present = [index for index, point_id in enumerate(block, 1) if point_id in found]
            start += max(present, default=0)
            if len(present) < _BLOCK:
                return start


def chunk_points(
    desk: Desk,
    document: Prepared,
    rows: Sequence[Vector],
    norms: Sequence[float | None],
    start: int = 0,
) -> list[Point]:
    """Chunk points of a document's pieces, from a position on.

    Args:
        desk: the store.
        document: the pieces.
        rows: their vectors, of any length.
        norms: the length of a vector before it was stored; None where `rows` still has it.
        start: position of the first.

    Raises:
        InputError: not finite, zero, or of another dimension than the collection.
    """
    matrix = as_matrix(rows, what=f"The vectors of {document.id!r}")
    desk.prepare(matrix.shape[1])
    lengths = np.sqrt(np.einsum("nd,nd->n", matrix, matrix)).tolist()
    ids = desk.chunk_ids(document.id, start, start + len(rows))
    return [
        Point(point_id, placed(piece, document.id, start + index, length if norm is None else norm), vector)
        for index, (point_id, piece, vector, length, norm) in enumerate(
            zip(ids, document.pieces, unit(matrix), lengths, norms, strict=True)
        )
    ]


def stored_chunks(desk: Desk, roots: Sequence[Point]) -> list[list[Point | None]]:
    """All chunk points of documents, in reading order, with their vectors; None for an empty place.

    Args:
        desk: the store.
        roots: of the documents.

    Raises:
        StoreError: a chunk is not there.
    """
    heads = [Head.of(root) for root in roots]
    places = [filled(head.gaps, 0, root.payload["stop"]) for head, root in zip(heads, roots, strict=True)]
    ids = [
        [desk.ids.chunk(head.document_id, place) for place in own]
        for head, own in zip(heads, places, strict=True)
    ]
    stored = desk.backend.fetch("chunks", [point_id for own in ids for point_id in own], vectors=True)
    documents = []
    for head, root, own, point_ids in zip(heads, roots, places, ids, strict=True):
        slots: list[Point | None] = [None] * root.payload["stop"]
        for place, point_id in zip(own, point_ids, strict=True):
            if point_id not in stored or stored[point_id].vector is None:
                raise StoreError(
                    f"Chunk {place} of {head.document_id!r} is not in the store. Ingest the document again, "
                    "replace() or remove() the chunk, or delete the document."
                )
            slots[place] = stored[point_id]
        documents.append(slots)
    return documents
