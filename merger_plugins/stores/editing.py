"""Changing chunks in the middle of a document, and deleting documents."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

from merger_plugins._types import Vector
from merger_plugins.errors import InputError
from merger_plugins.stores.appending import shared
from merger_plugins.stores.backend import Payload, Point
from merger_plugins.stores.changes import (
    Change,
    attempted,
    begin,
    claim,
    complete,
    finish_deletion,
    settled,
    tree_of,
)
from merger_plugins.stores.commits import Tries, alone, next_version, sealed, swapped
from merger_plugins.stores.desk import Desk, chunk_points
from merger_plugins.stores.documents import Ingested, Piece, Prepared
from merger_plugins.stores.places import is_empty
from merger_plugins.stores.planning import Head, is_conversation
from merger_plugins.stores.records import content_hash
from merger_plugins.stores.sittings import SITTING, sitting_at, sitting_of


def edit(desk: Desk, document_id: str, position: int, make: Callable[[Payload], Piece] | None) -> Ingested:
    """Put another chunk at a place, which may be empty, or empty the place; repeating that changes nothing.

    Args:
        desk: the store.
        document_id: of which document.
        position: the place.
        make: makes the chunk from the payload of the one before, or, where the place is empty, from what all
            chunks share; None to empty the place.

    Raises:
        InputError: there is no such document or place, or its last chunk would go; or as `make`.
        StoreError: as `append`.
    """
    tries = Tries(desk.backend)
    made: dict[str, Vector] = {}
    with alone(desk.backend, [document_id]):
        while True:
            root, _ = settled(desk, document_id, tries)
            root = _editable(root, document_id, position, remove=make is None)
            if make is None and is_empty(tree_of(root)[1], position):
                return Ingested(document_id, root.payload["count"])
            new = None
            if make is not None:
                chunk_id = desk.ids.chunk(document_id, position)
                old = desk.backend.fetch("chunks", [chunk_id]).get(chunk_id)
                piece = make(root.payload if old is None else old.payload)
                if piece.embed is not None and piece.embed not in made:
                    made[piece.embed] = desk.embed([piece.embed])[0]
                row = made[piece.embed] if piece.embed is not None else piece.vector
                assert row is not None
                (new,) = chunk_points(desk, Prepared(document_id, {}, [piece]), [row], [None], position)
                if is_conversation(root):
                    sitting = _sitting(desk, root, position) if old is None else sitting_of(old)
                    new = replace(new, payload={**new.payload, SITTING: sitting})
            change = _change(root, position, new)
            plan = attempted(desk, document_id, root, change, tries)
            if plan is None:
                continue
            begun = begin(desk, document_id, root, change, next_version(root))
            if begun is not None:
                complete(desk, begun, change, plan)
                written = len(plan.chunks) + len(plan.merged)
                deleted = len(plan.gone_chunks) + len(plan.gone_sections)
                count = plan.merged[-1].payload["count"]
                return Ingested(document_id, count, len(made), written, deleted)
            tries.lost(document_id)


def delete(desk: Desk, document_id: str) -> bool:
    """Remove a document with all its points; returns whether there was one.

    Raises:
        StoreError: the database fails.
        ConflictError: other writers were faster for too long.
    """
    tries = Tries(desk.backend)
    root_id = desk.ids.root(document_id)
    with alone(desk.backend, [document_id]):
        while True:
            version = next_version()
            root = desk.lookup([root_id], any_merger=True).get(root_id)
            if root is None:
                found = desk.backend.fetch("chunks", [desk.ids.chunk(document_id, 0)], payload=False)
                # Chunks and sections without a root; a writer who begins now has a larger version.
                desk.backend.delete_document("merged", document_id, below=version)
                desk.backend.delete_document("chunks", document_id, below=version)
                return bool(found)
            deletion = sealed(claim(desk, document_id, "delete"), next_version(root))
            if swapped(desk.backend, deletion, root):
                finish_deletion(desk, deletion)
                return True
            tries.lost(document_id)


def _sitting(desk: Desk, root: Point, place: int) -> int:
    """The sitting of an empty place."""
    places, gaps = tree_of(root)
    start, stop = next((gap for gap in gaps if gap[0] <= place < gap[1]), (place, place + 1))
    ids = desk.chunk_ids(root.payload["document_id"], start - 1, stop + 1)
    wanted = [ids[0]] * (start > 0) + [ids[-1]] * (stop < places)
    found = desk.backend.fetch("chunks", wanted)
    return sitting_at(place, found.get(ids[0]), found.get(ids[-1]))


def _editable(root: Point | None, document_id: str, position: int, *, remove: bool) -> Point:
    places, gaps = tree_of(root)
    if root is None:
        raise InputError(f"There is no document {document_id!r} in the store; ingest it first.")
    if type(position) is not int or not 0 <= position < places:
        raise InputError(
            f"position {position!r} does not exist in {document_id!r}: it has {places}, counted from 0."
        )
    if remove and root.payload["count"] == 1 and not is_empty(gaps, position):
        raise InputError(
            f"position {position} holds the last chunk of {document_id!r}. Call delete() to remove all of it."
        )
    return root


def _change(root: Point, position: int, new: Point | None) -> Change:
    head = Head.of(root)
    metadata = dict(head.metadata) if new is None else shared(root, [new.payload])
    # Not what a document ingested at once has, so that the next ingestion compares chunk by chunk.
    edited = f"{head.content}/{position}/{'' if new is None else content_hash([new.payload])}"
    content = hashlib.sha256(edited.encode()).hexdigest()[:32]
    return Change(content, metadata, head.conversation, {position: new})
