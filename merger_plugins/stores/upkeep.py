"""Looking after a store: its documents, its figures, and deriving every merged vector again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from merger_plugins.errors import EmptyInputError, StoreError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.calibration import CalibrationStatistics
from merger_plugins.stores.backend import Backend, Layout, Payload, Point, Shelf, Swap, Where
from merger_plugins.stores.changes import Change, begin, complete, is_claim, planned
from merger_plugins.stores.commits import Tries, alone, next_version, sealed, stamped, version_of
from merger_plugins.stores.desk import Desk, stored_chunks
from merger_plugins.stores.planning import SOURCES, is_conversation
from merger_plugins.stores.records import METADATA
from merger_plugins.stores.settings import Settings

CHUNKS_AT_ONCE = 512
"""Chunks that one round of requests is about."""

_ROOTS = Where({"kind": "root"})
ROOTS_AT_ONCE = 256
_TREE = [
    "document_id",
    "edition",
    "version",
    "stop",
    "count",
    "gaps",
    "content",
    "source",
    "writing",
    METADATA,
]
_SAMPLE = 100
_LOSSES = 3
"""How often other writers may be faster before a document's root is marked first, and read afterwards."""


@dataclass(frozen=True)
class StoredDocument:
    """A document or conversation in the store.

    Attributes:
        id: its name.
        chunks: how many chunks it has.
        mass: in tokens.
        conversation: whether it grew turn by turn.
        metadata: what all its chunks share.
    """

    id: str
    chunks: int
    mass: float
    conversation: bool
    metadata: Payload


@dataclass(frozen=True)
class Inspection:
    """The figures of a store.

    Attributes:
        collection: its name.
        dimension: d; None where the collection does not exist yet.
        chunks: chunk points.
        sections: section points of each level, from 1 on.
        documents: documents that were ingested.
        conversations: documents that grew turn by turn.
        depth: levels above the chunks, the roots' included; 0 for an empty store.
        contextual: whether chunk points carry contextual vectors.
        vector_bytes: of all vectors, as float32.
        payload_bytes: of all payloads as JSON, estimated from a sample; calibration left out.
        fingerprint: of the merger.
        calibration_vectors: how many chunk vectors the stored calibration saw; 0 for none.
        calibration_bytes: of the stored calibration as JSON.
    """

    collection: str
    dimension: int | None
    chunks: int
    sections: dict[int, int]
    documents: int
    conversations: int
    depth: int
    contextual: bool
    vector_bytes: int
    payload_bytes: int
    fingerprint: str
    calibration_vectors: int
    calibration_bytes: int


def documents(backend: Backend, match: Mapping[str, str | int]) -> Iterator[StoredDocument]:
    """The documents of a store, in no particular order; `match` as that of `ChunkPoints`."""
    keys = ["document_id", "count", "mass", "source", METADATA]
    for root in backend.scan("merged", Where({"kind": "root", **match}), payload=keys):
        payload = root.payload
        yield StoredDocument(
            payload["document_id"],
            payload["count"],
            payload["mass"],
            is_conversation(root),
            payload[METADATA],
        )


def inspect(
    backend: Backend,
    settings: Settings | None,
    layout: Layout | None,
    merger: SequenceMerger,
    match: Mapping[str, str | int],
) -> Inspection:
    """Count what a store holds; `match` as that of `ChunkPoints`."""
    dimension = layout.dimension if layout else None
    if dimension is None or settings is None:
        chunks = 0 if dimension is None else backend.count("chunks", Where())
        return Inspection(
            collection=backend.collection,
            dimension=dimension,
            chunks=chunks,
            sections={},
            documents=0,
            conversations=0,
            depth=0,
            contextual=False,
            vector_bytes=4 * chunks * (dimension or 0),
            payload_bytes=_payload_bytes(backend, "chunks", Where(), chunks),
            fingerprint=merger.fingerprint,
            calibration_vectors=0,
            calibration_bytes=0,
        )
    chunks = backend.count("chunks", Where())
    sections: dict[int, int] = {}
    below, tops = {"kind": "section", **match}, {"kind": "root", **match}
    while count := backend.count("merged", Where({**below, "level": len(sections) + 1})):
        sections[len(sections) + 1] = count
    roots = {source: backend.count("merged", Where({**tops, "source": source})) for source in SOURCES}
    merged = sum(sections.values()) + sum(roots.values())
    pieces = backend.scan("merged", Where({"kind": "calibration"}))
    return Inspection(
        collection=backend.collection,
        dimension=dimension,
        chunks=chunks,
        sections=sections,
        documents=roots["document"],
        conversations=roots["conversation"],
        depth=_depth(backend, tops, sections, sum(roots.values())),
        contextual=settings.contextual,
        vector_bytes=4 * dimension * (chunks * (2 if settings.contextual else 1) + merged),
        payload_bytes=_payload_bytes(backend, "chunks", Where(), chunks)
        + _payload_bytes(backend, "merged", Where(below), sum(sections.values()))
        + _payload_bytes(backend, "merged", Where(tops), sum(roots.values())),
        fingerprint=settings.fingerprint,
        calibration_vectors=settings.calibration_vectors,
        calibration_bytes=sum(_size(point) for point in pieces),
    )


def _depth(backend: Backend, tops: Mapping[str, str | int], sections: dict[int, int], roots: int) -> int:
    if not roots:
        return 0
    depth = len(sections)
    return depth + bool(backend.count("merged", Where({**tops, "level": depth + 1})))


def _payload_bytes(backend: Backend, shelf: Shelf, where: Where, count: int) -> int:
    sizes = [_size(point) for point in islice(backend.scan(shelf, where), _SAMPLE)] if count else []
    return round(sum(sizes) / len(sizes) * count) if sizes else 0


def _size(point: Point) -> int:
    return len(json.dumps(point.payload).encode())


def gather(desk: Desk) -> CalibrationStatistics:
    """Statistics of all chunk vectors, document by document.

    Raises:
        EmptyInputError: the store is empty.
        StoreError: the database fails, or a chunk is missing.
    """
    statistics: CalibrationStatistics | None = None
    roots = desk.backend.scan("merged", _ROOTS, payload=_TREE)
    for batch in batches(root for root in roots if desk.ids.owns(root.payload)):
        for _, points in steady_chunks(desk, batch):
            vectors = [p.vector for p in points if p is not None and p.vector is not None]
            statistics = statistics or CalibrationStatistics(len(vectors[0]))
            statistics.update(vectors)
    if statistics is None:
        raise EmptyInputError(
            f"{desk.backend.place} holds no document in {desk.backend.collection!r}; ingest some before "
            "calibrate()."
        )
    return statistics


def steady_chunks(desk: Desk, roots: Sequence[Point]) -> Iterator[tuple[Point, list[Point | None]]]:
    """Documents with their chunk points, as `stored_chunks` gives them; those that are changing are left out.

    Args:
        desk: the store.
        roots: as they were read.

    Raises:
        StoreError: a chunk of a document that nobody is changing is missing, or the database fails.
    """
    try:
        yield from zip(roots, stored_chunks(desk, roots), strict=True)
        return
    except StoreError as error:
        if type(error) is not StoreError:
            raise
    for root in roots:
        try:
            (chunks,) = stored_chunks(desk, [root])
        except StoreError as error:
            if type(error) is not StoreError or not _is_changing(desk, root):
                raise
        else:
            yield root, chunks


def _is_changing(desk: Desk, root: Point) -> bool:
    if root.payload["writing"]:
        return True
    now = desk.backend.fetch("merged", [root.id], payload=["version", "writing", "pending"]).get(root.id)
    return now is None or version_of(now) != version_of(root) or "pending" in now.payload


def derive(desk: Desk) -> None:
    """Make every section, root and contextual vector again in place, from the chunk points."""
    ids = root_ids(desk)
    for start in range(0, len(ids), ROOTS_AT_ONCE):
        found = desk.backend.fetch("merged", ids[start : start + ROOTS_AT_ONCE], vectors=True)
        for batch in batches([root for root in found.values() if not is_claim(root)]):
            remake(desk, batch)


def root_ids(desk: Desk, *, claims: bool = False) -> list[str]:
    """Ids of the roots of this edition, or of its claims."""
    kind = Where({"kind": "claim" if claims else "root"})
    found = desk.backend.scan("merged", kind, payload=["edition"])
    return [point.id for point in found if desk.ids.owns(point.payload)]


def remake(desk: Desk, roots: Sequence[Point]) -> None:
    """Make the sections, the roots and the contextual vectors of documents again from their chunks.

    Args:
        desk: the store.
        roots: as they are stored, with their vectors. A change that is pending in one is made on the way.

    Raises:
        StoreError: the database fails, or a chunk is missing.
        ConflictError: other writers were faster for too long.
    """
    tries = Tries(desk.backend)
    left = list(roots)
    with alone(desk.backend, [root.payload["document_id"] for root in roots]):
        losses = 0
        while left:
            if losses < _LOSSES:
                lost = _remade(desk, left)
            else:  # on a document that never rests, what takes long comes after its root was won
                lost = [root for root in left if not _begun_and_completed(desk, root)]
            losses += 1
            again = desk.lookup([root.id for root in lost]) if lost else {}
            left = [root for root in again.values() if not is_claim(root)]
            if left:
                tries.lost(left[0].payload["document_id"])


def _begun_and_completed(desk: Desk, root: Point) -> bool:
    """Make a document again, its root marked first; False where another writer was faster."""
    change = replace(Change.of(root) or Change.nothing(root), afresh=True)
    begun = begin(desk, root.payload["document_id"], root, change, next_version(root))
    if begun is not None:
        complete(desk, begun, change)
    return begun is not None


def _remade(desk: Desk, roots: Sequence[Point]) -> list[Point]:
    """Returns the roots that another writer was faster with."""
    backend = desk.backend
    changes = [replace(Change.of(root) or Change.nothing(root), afresh=True) for root in roots]
    version = next_version(*roots)
    begun = [
        sealed(root, version, {"pending": change.payload()})
        for root, change in zip(roots, changes, strict=True)
    ]
    plain = all(not change.chunks for change in changes)
    chunks = stored_chunks(desk, roots) if plain else [None] * len(roots)
    plans = [
        planned(desk, root.payload["document_id"], root, change, chunks=own)
        for root, change, own in zip(begun, changes, chunks, strict=True)
    ]
    claims = [Swap(new, version_of(root)) for new, root in zip(begun, roots, strict=True)]
    mine = backend.swap(claims)
    won = [plan for plan, ok in zip(plans, mine, strict=True) if ok]
    written = stamped([point for plan in won for point in plan.chunks], version)
    sections = stamped([point for plan in won for point in plan.merged[:-1]], version)
    gone = [point_id for plan in won for point_id in plan.gone_chunks]
    gone_sections = [point_id for plan in won for point_id in plan.gone_sections]
    if written:
        backend.write("chunks", written, below=version)
    if gone:
        backend.delete("chunks", gone, below=version)
    if gone_sections:
        backend.delete("merged", gone_sections, below=version)
    tops = [Swap(sealed(plan.merged[-1], version + 1), version) for plan in won]
    done = iter(backend.swap(tops, first=sections, below=version) if won else ())
    return [root for root, ok in zip(roots, mine, strict=True) if not (ok and next(done))]


def batches(roots: Iterable[Point]) -> Iterator[list[Point]]:
    """Roots of documents that have about `CHUNKS_AT_ONCE` chunks together."""
    batch: list[Point] = []
    waiting = 0
    for root in roots:
        batch.append(root)
        waiting += root.payload["count"]
        if waiting >= CHUNKS_AT_ONCE:
            yield batch
            batch, waiting = [], 0
    if batch:
        yield batch
