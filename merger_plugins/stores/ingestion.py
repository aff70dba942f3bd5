"""How documents and turns get into the store: reading what is there, embedding, planning, writing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from merger_plugins._batching import as_matrix, unit
from merger_plugins._types import Matrix, Vector
from merger_plugins.errors import StoreError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.stores.backend import Backend, Point
from merger_plugins.stores.documents import Ingested, Prepared, placed
from merger_plugins.stores.planning import Head, Plan, differs, is_conversation, section_keys, whole
from merger_plugins.stores.records import META_ID, METADATA, PointIds, content_hash
from merger_plugins.stores.settings import Settings, check

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
        exists: whether anything was ingested before.
        embed: texts -> (n, d) chunk vectors.
        prepare: makes what is missing of the collections, for this dimension.
    """

    backend: Backend
    ids: PointIds
    merger: SequenceMerger
    contextual: bool
    exists: bool
    embed: Callable[[Sequence[str]], Matrix]
    prepare: Callable[[int], None]

    def lookup(self, point_ids: Sequence[str]) -> dict[str, Point]:
        """Roots by id, the store's settings checked on the way.

        Raises:
            FingerprintError: another merger has taken over in the meantime.
        """
        if not self.exists:
            return {}
        points = self.backend.fetch("merged", [META_ID, *point_ids])
        settings = points.pop(META_ID, None)
        if settings is not None:
            check(Settings.of(settings), self.merger, self.backend.place)
        return points

    def write(self, plan: Plan) -> None:
        """Write chunks, then sections and roots."""
        if plan.chunks:
            self.backend.write("chunks", plan.chunks)
        if plan.merged:
            self.backend.write("merged", plan.merged)

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


@dataclass(eq=False)
class _Job:
    """One document on its way into the store.

    Attributes:
        document: what arrived.
        content: its `content_hash`.
        stored: its points in the store, vectors included.
        places: how many chunks the store has of it.
        root: its root point in the store.
    """

    document: Prepared
    content: str
    stored: Mapping[str, Point] = field(default_factory=dict)
    places: int = 0
    root: Point | None = None

    @property
    def known(self) -> dict[str, tuple[Vector, float]]:
        """Hash of what was embedded -> stored chunk vector and its norm."""
        return {
            point.payload["hash"]: (point.vector, point.payload["norm"])
            for point in self.stored.values()
            if "hash" in point.payload and point.vector is not None
        }

    def missing(self) -> list[str]:
        """The texts to embed, each once."""
        known = self.known
        pieces = self.document.pieces
        return list({p.embed: None for p in pieces if p.embed is not None and p.payload["hash"] not in known})


def ingest(desk: Desk, documents: Sequence[Prepared]) -> list[Ingested]:
    """Bring documents into the store, with one round of requests for all of them.

    Args:
        desk: the store.
        documents: each id once.

    Returns:
        One result a document, in order; what concerns one document alone is in its `error`.

    Raises:
        StoreError: the database fails.
        FingerprintError: the store holds vectors of another merger.
    """
    results: dict[str, Ingested] = {}
    jobs = []
    for job in _looked_up(desk, documents):
        if _is_stored(job):
            results[job.document.id] = Ingested(job.document.id, len(job.document.pieces))
        else:
            jobs.append(job)
    texts = [job.missing() for job in jobs]
    made = _embedded_together(desk, texts)
    planned: list[tuple[_Job, Plan, Ingested]] = []
    for job, own in zip(jobs, texts, strict=True):
        try:
            plan = _plan(desk, job, _embedded(desk, own) if made is None else made)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - an embedder raises errors of its own; they stay with the document
            results[job.document.id] = Ingested(job.document.id, error=error)
        else:
            planned.append((job, plan, Ingested(job.document.id, len(job.document.pieces), len(own))))
    for result in _write(desk, planned):
        results[result.document_id] = result
    return [results[document.id] for document in documents]


def _looked_up(desk: Desk, documents: Sequence[Prepared]) -> list[_Job]:
    """What the store holds of each document; in full where it holds another version."""
    roots = desk.lookup([desk.ids.root(document.id) for document in documents])
    # A chunk after the document's end is what an interrupted call left behind, or a longer version.
    ends = [desk.ids.chunk(document.id, len(document.pieces)) for document in documents]
    beyond = desk.backend.fetch("chunks", ends, payload=False) if desk.exists else {}
    jobs = []
    for document, end in zip(documents, ends, strict=True):
        job = _Job(document, content_hash(piece.payload for piece in document.pieces))
        job.root = roots.get(desk.ids.root(document.id))
        if end in beyond or (job.root is not None and not _is_stored(job)):
            job.places = desk.end(document.id, job.root.payload["stop"] if job.root else 0)
            job.stored = _stored(desk, document.id, job.places)
        jobs.append(job)
    return jobs


def _is_stored(job: _Job) -> bool:
    """Whether the store holds exactly this document."""
    if job.root is None or job.places > len(job.document.pieces):
        return False
    payload = job.root.payload
    return bool(
        payload["content"] == job.content
        and payload[METADATA] == job.document.metadata
        and not is_conversation(job.root)
        and not payload["writing"]
    )


def _stored(desk: Desk, document_id: str, places: int) -> dict[str, Point]:
    """All points of a document, with their vectors."""
    chunks = desk.backend.fetch("chunks", desk.chunk_ids(document_id, 0, places), vectors=True)
    ids = [*desk.section_ids(document_id, places), desk.ids.root(document_id)]
    merged = desk.backend.fetch("merged", ids, vectors=True)
    return chunks | merged


def _embedded_together(desk: Desk, texts: Sequence[Sequence[str]]) -> dict[str, Vector] | None:
    """Vectors of all documents' texts; None where that fails, so that each document is tried by itself."""
    try:
        return _embedded(desk, list(dict.fromkeys(text for own in texts for text in own)))
    except Exception:  # noqa: BLE001 - raised again for the document that it concerns
        return None


def _embedded(desk: Desk, texts: list[str]) -> dict[str, Vector]:
    return dict(zip(texts, desk.embed(texts), strict=True)) if texts else {}


def _plan(desk: Desk, job: _Job, made: Mapping[str, Vector]) -> Plan:
    """The points of a document that have to be written."""
    document, known = job.document, job.known
    hashes = [piece.payload["hash"] for piece in document.pieces]
    rows = [
        piece.vector
        if piece.vector is not None
        else known[source][0]
        if source in known
        else made[piece.embed or ""]
        for piece, source in zip(document.pieces, hashes, strict=True)
    ]
    points = chunk_points(
        desk, document, rows, [known[source][1] if source in known else None for source in hashes]
    )
    head = Head(document.id, job.content, False, document.metadata)
    plan = whole(desk.ids, desk.merger, head, points, contextual=desk.contextual)
    if not job.stored:
        return plan
    sections, root = plan.merged[:-1], plan.merged[-1]
    return Plan(
        [point for point in plan.chunks if differs(point, job.stored.get(point.id))],
        [*(point for point in sections if differs(point, job.stored.get(point.id))), root],
    )


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


def _write(desk: Desk, planned: Sequence[tuple[_Job, Plan, Ingested]]) -> list[Ingested]:
    """Chunks, then sections, then roots; then what is left over goes, the end of a document last."""
    replaced = [desk.ids.root(job.document.id) for job, _, _ in planned if job.root is not None]
    if replaced:
        desk.backend.patch("merged", replaced, {"writing": True})
    chunks = [point for _, plan, _ in planned for point in plan.chunks]
    sections = [point for _, plan, _ in planned for point in plan.merged[:-1]]
    roots = [plan.merged[-1] for _, plan, _ in planned]
    desk.write(Plan(chunks, sections + roots))
    results, left_sections, left_chunks = [], [], []
    for job, plan, result in planned:
        kept = {*desk.section_ids(job.document.id, len(job.document.pieces)), desk.ids.root(job.document.id)}
        surplus = desk.chunk_ids(job.document.id, len(job.document.pieces), job.places)[::-1]
        stale = [point.id for point in job.stored.values() if point.payload["level"] and point.id not in kept]
        left_sections += stale
        left_chunks += surplus
        results.append(
            replace(result, written=len(plan.chunks) + len(plan.merged), deleted=len(stale) + len(surplus))
        )
    if left_sections:
        desk.backend.delete("merged", left_sections)
    if left_chunks:
        desk.backend.delete("chunks", left_chunks)
    return results
