"""Documents that lost their root."""

from __future__ import annotations

from merger_plugins.stores.backend import Point, Where
from merger_plugins.stores.changes import claim
from merger_plugins.stores.commits import next_version, sealed, stamped, swapped
from merger_plugins.stores.desk import Desk
from merger_plugins.stores.nodes import Head
from merger_plugins.stores.places import runs
from merger_plugins.stores.planning import whole
from merger_plugins.stores.records import METADATA, TURN, content_hash
from merger_plugins.stores.sittings import SITTING, Last

RECOVER = "recover"
"""What the claim in the place of such a root is for."""


def recover(desk: Desk, name: str, before: Point | None) -> None:
    """Make chunks that lost their root a document again, and drop sections that lost all their chunks.

    Args:
        desk: the store.
        name: of the document.
        before: a claim of an earlier attempt; None where there is none.
    """
    own = Where({"document_id": name})
    scanned = desk.backend.scan("chunks", own, payload=["position"])
    ids = [p.id for p in scanned if p.id == desk.ids.chunk(name, p.payload.get("position", -1))]
    chunks = {p.payload["position"]: p for p in desk.backend.fetch("chunks", ids, vectors=True).values()}
    version = next_version(*([] if before is None else [before]))
    if not chunks:
        desk.backend.delete_document("merged", name, below=version)
        return
    claimed = sealed(claim(desk, name, RECOVER), version)
    if not swapped(desk.backend, claimed, before):
        return  # somebody is at work there
    places = max(chunks) + 1
    slots = [chunks.get(place) for place in range(places)]
    points = [point for point in slots if point is not None]
    payloads = [point.payload for point in points]
    metadata = {
        key: value
        for key, value in payloads[0][METADATA].items()
        if all(payload[METADATA].get(key) == value for payload in payloads)
    }
    gaps = runs((place, place + 1) for place, point in enumerate(slots) if point is None)
    conversation = any({"speaker", TURN, SITTING} & payload.keys() for payload in payloads)
    head = Head(
        name,
        content_hash(payloads, f"{gaps}" if gaps else ""),
        conversation,
        metadata,
        gaps=gaps,
        last=Last.among(payloads) if conversation else None,
        half_life=desk.half_life if conversation else None,
    )
    plan = whole(desk.ids, desk.merger, head, slots, contextual=desk.contextual)
    if desk.contextual:
        desk.backend.write("chunks", stamped(plan.chunks, version), below=version)
    *sections, root = plan.merged
    desk.backend.write("merged", stamped(sections, version), below=version)
    swapped(desk.backend, sealed(root, version + 1), claimed)
