"""How a conversation grows: a few points are read, a few are written, whatever its length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from merger_plugins._types import Vector
from merger_plugins.stores.backend import Payload, Point, Where
from merger_plugins.stores.changes import Change, attempted, begin, complete, settled, tree_of
from merger_plugins.stores.commits import Tries, alone, next_version
from merger_plugins.stores.desk import Desk, chunk_points
from merger_plugins.stores.documents import Ingested, Piece, Prepared
from merger_plugins.stores.planning import Plan, is_conversation
from merger_plugins.stores.records import CONTENT_KEYS, METADATA, TURN, content_hash
from merger_plugins.stores.sittings import Last, seated


def append(
    desk: Desk,
    document_id: str,
    pieces: Sequence[Piece],
    *,
    turn_id: str | None = None,
    conversation: bool = True,
) -> Ingested:
    """Add pieces at the end of a conversation or document; the first ones begin one.

    Args:
        desk: the store.
        document_id: its name.
        pieces: at least one, in reading order.
        turn_id: the caller's name for these pieces: they are added once, however often it is called.
        conversation: whether pieces that are the first ones begin a conversation, or else a document.

    Raises:
        StoreError: the database fails, or a point is missing.
        ConflictError: the document is being ingested, or that was interrupted; or other writers were faster
            for too long.
        FingerprintError: the store holds vectors of another merger.
        InputError: vectors that cannot be stored.
    """
    tries = Tries(desk.backend)
    # A swap that seems lost may have been won, and completed by others before it was read back.
    name = uuid4().hex if turn_id is None and not desk.backend.exclusive else turn_id
    absent = turn_id is None
    rows: list[Vector] | None = None
    texts = [piece.embed for piece in pieces if piece.embed is not None]
    with alone(desk.backend, [document_id]):
        while True:
            root, repeated = settled(
                desk, document_id, tries, repeats=lambda change: _repeats(change, pieces, turn_id)
            )
            if repeated or (not absent and name is not None and _has(desk, document_id, name)):
                return Ingested(document_id, _chunks(root))
            if rows is None:
                made = iter(desk.embed(texts) if texts else ())
                rows = [piece.vector if piece.vector is not None else next(made) for piece in pieces]
            own = [piece if name is None else piece.named(name) for piece in pieces]
            change = _change(desk, document_id, root, own, rows, turn_id, conversation)
            plan = attempted(desk, document_id, root, change, tries)
            if plan is None:
                continue
            if root is None:
                plan = _with_leftovers(desk, document_id, plan, len(pieces))
            version = next_version(*([root] if root else []))
            begun = begin(desk, document_id, root, change, version)
            if begun is not None:
                complete(desk, begun, change, plan)
                written = len(plan.chunks) + len(plan.merged)
                deleted = len(plan.gone_chunks) + len(plan.gone_sections)
                return Ingested(document_id, _chunks(plan.merged[-1]), len(texts), written, deleted)
            tries.lost(document_id)
            absent = False


def shared(root: Point | None, payloads: Sequence[Payload]) -> Payload:
    """The metadata that all chunks of a document have in common."""
    first: Payload = root.payload[METADATA] if root else payloads[0][METADATA]
    return {
        key: value
        for key, value in first.items()
        if all(key in own[METADATA] and own[METADATA][key] == value for own in payloads)
    }


def _change(
    desk: Desk,
    document_id: str,
    root: Point | None,
    pieces: list[Piece],
    rows: Sequence[Vector],
    turn_id: str | None,
    conversation: bool,
) -> Change:
    places, _ = tree_of(root)
    metadata = shared(root, [piece.payload for piece in pieces])
    added = chunk_points(desk, Prepared(document_id, metadata, pieces), rows, [None] * len(rows), places)
    conversation = conversation if root is None else is_conversation(root)
    if conversation:
        added = seated(added, None if root is None else Last.of(root.payload), desk.pause)
    return Change(
        content_hash((point.payload for point in added), root.payload["content"] if root else ""),
        metadata,
        conversation,
        dict(enumerate(added, places)),
        turn_id,
    )


def _repeats(change: Change, pieces: Sequence[Piece], turn_id: str | None) -> bool:
    """Whether a change that was left behind says the same, so that it is what this call is about to do."""
    if turn_id is not None or change.turn is not None:
        return change.turn == turn_id
    added = [point for point in change.chunks.values() if point is not None]
    return len(added) == len(change.chunks) == len(pieces) and all(
        _content(point.payload) == _content(piece.payload) for point, piece in zip(added, pieces, strict=True)
    )


def _content(payload: Mapping[str, Any]) -> list[Any]:
    return [payload.get(key) for key in CONTENT_KEYS]


def _has(desk: Desk, document_id: str, turn_id: str) -> bool:
    if not desk.exists():
        return False
    where = Where({"document_id": document_id, TURN: turn_id})
    return any(True for _ in desk.backend.scan("chunks", where, payload=False))


def _chunks(root: Point | None) -> int:
    return 0 if root is None else root.payload["count"]


def _with_leftovers(desk: Desk, document_id: str, plan: Plan, places: int) -> Plan:
    """The plan of a new document, which also removes chunks of one that lost its root."""
    end = desk.end(document_id, 0) if desk.exists() else 0
    kept = set(desk.section_ids(document_id, places))
    sections = [point_id for point_id in desk.section_ids(document_id, end) if point_id not in kept]
    return Plan(plan.chunks, plan.merged, desk.chunk_ids(document_id, places, end)[::-1], sections)
