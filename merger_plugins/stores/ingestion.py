"""How documents get into the store: reading what is there, embedding, planning, writing.

Each document is claimed first, by a mark in its root, or by a claim in its place. Then chunks and sections
are written and what is left over is removed; the new root comes last, and until then the old one is found. A
writer that loses its claim to another one starts again from what that one left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from merger_plugins._types import Vector
from merger_plugins.errors import StoreError
from merger_plugins.stores.backend import Point, Swap
from merger_plugins.stores.changes import (
    Change,
    claim,
    given_up,
    is_claim,
    is_deletion,
    settled,
    sweep,
)
from merger_plugins.stores.commits import (
    ABANDONED,
    Tries,
    alone,
    next_version,
    sealed,
    stamped,
    version_of,
)
from merger_plugins.stores.desk import Desk, chunk_points
from merger_plugins.stores.documents import Ingested, Prepared
from merger_plugins.stores.planning import Head, Plan, differs, is_conversation, whole
from merger_plugins.stores.records import METADATA, content_hash
from merger_plugins.stores.settings import EditionError


@dataclass(eq=False)
class _Job:
    """One document on its way into the store.

    Attributes:
        document: what arrived.
        content: its `content_hash`.
        stored: its points in the store, vectors included.
        places: how many chunks the store has of it.
        root: its root point, or a claim in its place.
        unfinished: whether another writer had begun to replace it.
    """

    document: Prepared
    content: str
    stored: Mapping[str, Point] = field(default_factory=dict)
    places: int = 0
    root: Point | None = None
    unfinished: bool = False

    @property
    def known(self) -> dict[str, tuple[Vector, float]]:
        """Hash of what was embedded -> stored chunk vector and its norm."""
        return {
            point.payload["hash"]: (point.vector, point.payload["norm"])
            for point in self.stored.values()
            if {"hash", "norm"} <= point.payload.keys() and point.vector is not None
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
        ConflictError: other writers were faster for too long.
        FingerprintError: the store holds vectors of another merger.
    """
    results: dict[str, Ingested] = {}
    tries = Tries(desk.backend)
    left = list(documents)
    with alone(desk.backend, [document.id for document in documents]):
        while left:
            for result in _round(desk, left, tries):
                results[result.document_id] = result
            left = [document for document in left if document.id not in results]
            if left:
                tries.lost(left[0].id)
    return [results[document.id] for document in documents]


def _round(desk: Desk, documents: Sequence[Prepared], tries: Tries) -> list[Ingested]:
    """Results of those documents that no other writer was faster with."""
    results: list[Ingested] = []
    jobs = []
    for job in _looked_up(desk, documents, tries):
        if _is_stored(job):
            results.append(Ingested(job.document.id, len(job.document.pieces)))
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
            results.append(Ingested(job.document.id, error=error))
        else:
            planned.append((job, plan, Ingested(job.document.id, len(job.document.pieces), len(own))))
    return [*results, *_write(desk, planned)] if planned else results


def _looked_up(desk: Desk, documents: Sequence[Prepared], tries: Tries) -> list[_Job]:
    """What the store holds of each document; in full where it holds another version."""
    ids = [desk.ids.root(document.id) for document in documents]
    roots = desk.lookup(ids)
    # A chunk after the document's end is what an interrupted call left behind, or a longer version.
    ends = [desk.ids.chunk(document.id, len(document.pieces)) for document in documents]
    beyond = desk.backend.fetch("chunks", ends, payload=False) if desk.exists() else {}
    jobs = []
    for document, root_id, end in zip(documents, ids, ends, strict=True):
        job = _Job(document, content_hash(piece.payload for piece in document.pieces))
        job.root = root = roots.get(root_id)
        if root is not None and (Change.of(root) is not None or is_deletion(root)):
            try:
                job.root, _ = settled(desk, document.id, tries, found=root)
            except StoreError as error:
                if type(error) is not StoreError or is_claim(root):
                    raise
                job.root, job.unfinished = given_up(root), True  # it lacks a chunk, which comes with this
        elif root is not None and (is_claim(root) or root.payload["writing"]):
            job.unfinished = True
            if tries.waited(root, ABANDONED):
                continue
        if end in beyond or (job.root is not None and not _is_stored(job)):
            known = job.root is not None and not is_claim(job.root)
            job.places = desk.end(document.id, job.root.payload["stop"] if job.root and known else 0)
            job.stored = _stored(desk, document.id, job.places)
        jobs.append(job)
    return jobs


def _is_stored(job: _Job) -> bool:
    """Whether the store holds exactly this document."""
    if job.root is None or is_claim(job.root) or job.places > len(job.document.pieces):
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
    # A writer whose claim is taken over may still write: then nothing that is there can be relied on.
    if not job.stored or (job.unfinished and not desk.backend.exclusive):
        return plan
    sections, root = plan.merged[:-1], plan.merged[-1]
    return Plan(
        [point for point in plan.chunks if differs(point, job.stored.get(point.id))],
        [*(point for point in sections if differs(point, job.stored.get(point.id))), root],
    )


def _write(desk: Desk, planned: Sequence[tuple[_Job, Plan, Ingested]]) -> list[Ingested]:
    """Results of those documents whose claim nobody else had, or took; what is left over of them goes."""
    backend = desk.backend
    version = next_version(*(job.root for job, _, _ in planned if job.root is not None))
    claims = [
        Swap(_claimed(desk, job, version), None if job.root is None else version_of(job.root))
        for job, _, _ in planned
    ]
    planned = [one for one, mine in zip(planned, backend.swap(claims), strict=True) if mine]
    _confirm(desk, [job.document.id for job, _, _ in planned if job.root is None], version)
    results, left_sections, left_chunks = [], [], []
    for job, plan, result in planned:
        kept = {*desk.section_ids(job.document.id, len(job.document.pieces)), desk.ids.root(job.document.id)}
        surplus = desk.chunk_ids(job.document.id, len(job.document.pieces), job.places)[::-1]
        stale = [point.id for point in job.stored.values() if _is_section(point) and point.id not in kept]
        left_sections += stale
        left_chunks += surplus
        results.append(
            replace(result, written=len(plan.chunks) + len(plan.merged), deleted=len(stale) + len(surplus))
        )
    chunks = [point for _, plan, _ in planned for point in plan.chunks]
    sections = [point for _, plan, _ in planned for point in plan.merged[:-1]]
    if chunks:
        backend.write("chunks", stamped(chunks, version), below=version)
    if left_sections:
        backend.delete("merged", left_sections, below=version)
    if left_chunks:
        backend.delete("chunks", left_chunks, below=version)
    roots = [Swap(sealed(plan.merged[-1], version + 1), version) for _, plan, _ in planned]
    done = backend.swap(roots, first=stamped(sections, version), below=version)
    for (job, plan, _), mine in zip(planned, done, strict=True):
        if not mine:
            written = [point.id for point in plan.merged[:-1]]
            sweep(desk, job.document.id, written, plan.chunks, version)
    return [result for result, mine in zip(results, done, strict=True) if mine]


def _confirm(desk: Desk, names: Sequence[str], version: int) -> None:
    """See to it that whoever replaces the merged vectors cannot have overlooked new documents."""
    if not names:
        return
    try:
        desk.lookup([])
    except EditionError:
        desk.backend.delete("merged", [desk.ids.root(name) for name in names], below=version)
        raise


def _claimed(desk: Desk, job: _Job, version: int) -> Point:
    if job.root is None:
        return sealed(claim(desk, job.document.id, "ingest"), version)
    return sealed(job.root, version, {} if is_claim(job.root) else {"writing": True})


def _is_section(point: Point) -> bool:
    return point.payload.get("kind") == "section"
