"""How a conversation grows: a few points are read, a few are written, whatever its length."""

from __future__ import annotations

from collections.abc import Sequence

from merger_plugins.errors import StoreError
from merger_plugins.stores.backend import Payload, Point
from merger_plugins.stores.documents import Ingested, Piece, Prepared
from merger_plugins.stores.ingestion import Desk, chunk_points
from merger_plugins.stores.planning import Covering, Head, Plan, extended, is_conversation, renewal_of, whole
from merger_plugins.stores.records import METADATA, content_hash


def append(desk: Desk, document_id: str, pieces: list[Piece]) -> Ingested:
    """Add pieces at the end of a conversation or document; the first ones begin a conversation.

    Raises:
        StoreError: the database fails, an ingestion of this document was interrupted, or a point is missing.
        FingerprintError: the store holds vectors of another merger.
        InputError: vectors that cannot be stored.
    """
    root = desk.lookup([desk.ids.root(document_id)]).get(desk.ids.root(document_id))
    if root is not None and root.payload["writing"]:
        raise StoreError(
            f"Replacing {document_id!r} was interrupted, so that it mixes two versions. Ingest it again "
            "before you append to it."
        )
    places = root.payload["stop"] if root else 0
    texts = [piece.embed for piece in pieces if piece.embed is not None]
    made = iter(desk.embed(texts) if texts else ())
    rows = [piece.vector if piece.vector is not None else next(made) for piece in pieces]
    prepared = Prepared(document_id, _shared(root, pieces), pieces)
    added = chunk_points(desk, prepared, rows, [None] * len(rows), places)
    content = content_hash((point.payload for point in added), root.payload["content"] if root else "")
    head = Head(document_id, content, root is None or is_conversation(root), prepared.metadata)
    if root is None:
        end = desk.end(document_id, 0)
        plan = whole(desk.ids, desk.merger, head, added, contextual=desk.contextual)
    else:
        plan, end = _extended(desk, head, root, added)
    desk.write(plan)
    stop = places + len(added)
    deleted = _drop_beyond(desk, document_id, stop, end) if end > stop else 0
    return Ingested(document_id, stop, len(texts), len(plan.chunks) + len(plan.merged), deleted)


def _shared(root: Point | None, pieces: Sequence[Piece]) -> Payload:
    """The metadata that all chunks of a document have in common."""
    first: Payload = root.payload[METADATA] if root else pieces[0].payload[METADATA]
    return {
        key: value
        for key, value in first.items()
        if all(key in p.payload[METADATA] and p.payload[METADATA][key] == value for p in pieces)
    }


def _extended(desk: Desk, head: Head, root: Point, added: Sequence[Point]) -> tuple[Plan, int]:
    """What to write, and the position after the last chunk that is stored already."""
    places = root.payload["stop"]
    covering = Covering.of(places, desk.merger, contextual=desk.contextual)
    leaves = desk.chunk_ids(head.document_id, covering.leaves.start, places)
    following = desk.ids.chunk(head.document_id, places)
    stored = desk.backend.fetch("chunks", [*leaves, following], vectors=True)
    # A chunk where the next one goes is what an interrupted call left behind.
    end = desk.end(head.document_id, places) if following in stored else places
    nodes = [desk.ids.section(head.document_id, level, index) for level, index in covering.nodes()]
    if nodes:
        stored |= desk.backend.fetch("merged", nodes)
    renewal = renewal_of(root, head, desk.merger) if desk.contextual else None
    plan = extended(desk.ids, desk.merger, head, covering, stored, added, renewal=renewal)
    if plan is None:
        (chunks,) = stored_chunks(desk, [(head.document_id, places)])
        plan = whole(desk.ids, desk.merger, head, [*chunks, *added], contextual=True)
    return plan, end


def stored_chunks(desk: Desk, documents: Sequence[tuple[str, int]]) -> list[list[Point]]:
    """All chunk points of documents, in reading order, with their vectors.

    Args:
        desk: the store.
        documents: id and number of chunks of each.

    Raises:
        StoreError: a chunk is not there.
    """
    ids = [desk.chunk_ids(document_id, 0, places) for document_id, places in documents]
    stored = desk.backend.fetch("chunks", [point_id for own in ids for point_id in own], vectors=True)
    for own, (document_id, _) in zip(ids, documents, strict=True):
        missing = [position for position, point_id in enumerate(own) if point_id not in stored]
        if missing:
            raise StoreError(
                f"Chunk {missing[0]} of {document_id!r} is not in the store. Ingest the document again, or "
                "delete it."
            )
    return [[stored[point_id] for point_id in own] for own in ids]


def _drop_beyond(desk: Desk, document_id: str, places: int, end: int) -> int:
    """Remove what was stored after the end of a document; returns how many points."""
    kept = set(desk.section_ids(document_id, places))
    sections = [point_id for point_id in desk.section_ids(document_id, end) if point_id not in kept]
    if sections:
        desk.backend.delete("merged", sections)
    chunks = desk.chunk_ids(document_id, places, end)[::-1]
    desk.backend.delete("chunks", chunks)
    return len(sections) + len(chunks)
