"""Changes to the chunks of a document: written into its root first, so that anybody can complete them.

A change is stored in three steps. The root is swapped for itself with the change inside (``pending``); then
chunks and sections are written; then the root is swapped for the new one. Until that last step the root's
vector is the old one. Whoever finds a pending change completes it before anything else: all of it follows
from what is stored, so that it does not matter who does, or how often.

A document without a root has a claim in its place while it is made or deleted, which no search finds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from merger_plugins.errors import ConflictError, StoreError
from merger_plugins.stores.backend import Payload, Point, Swap
from merger_plugins.stores.commits import (
    ABANDONED,
    MOMENT,
    Tries,
    sealed,
    stamped,
    swapped,
    version_of,
)
from merger_plugins.stores.desk import Desk, stored_chunks
from merger_plugins.stores.nodes import Covering, Head
from merger_plugins.stores.places import Gaps, gaps_of, is_empty, section_keys, with_gap, without_gap
from merger_plugins.stores.planning import Needs, Plan, back_of, edited, extended, renewal_of, whole
from merger_plugins.stores.records import METADATA, SCHEMA, pack, unpack
from merger_plugins.stores.settings import EditionError
from merger_plugins.stores.sittings import Last


@dataclass(frozen=True)
class Change:
    """What an operation does to the chunks of a document.

    Attributes:
        chunks: place -> its new chunk point, with its vector; None for one that becomes empty.
        content: the document's `content_hash` afterwards.
        metadata: what all its chunks share afterwards.
        conversation: whether it grew turn by turn.
        turn: the caller's id of the turn, if it gave one.
        afresh: whether every section is made again, from the chunks.
    """

    content: str
    metadata: Payload
    conversation: bool
    chunks: Mapping[int, Point | None] = field(default_factory=dict)
    turn: str | None = None
    afresh: bool = False

    @classmethod
    def nothing(cls, root: Point) -> Self:
        """Makes the sections and the root of a document again."""
        head = Head.of(root)
        return cls(head.content, dict(head.metadata), head.conversation, afresh=True)

    @classmethod
    def of(cls, point: Point) -> Self | None:
        """The pending change of a root or claim; None where there is none."""
        stored = point.payload.get("pending")
        if stored is None:
            return None
        chunks = {
            place: None if chunk is None else Point(chunk["id"], chunk["payload"], unpack(chunk["vector"]))
            for place, chunk in stored["chunks"]
        }
        return cls(
            stored["content"],
            stored[METADATA],
            stored["conversation"],
            chunks,
            stored.get("turn"),
            stored["afresh"],
        )

    def payload(self) -> Payload:
        """As `of` reads it."""
        chunks: list[list[Any]] = []
        for place, point in self.chunks.items():
            if point is None:
                chunks.append([place, None])
            else:
                assert point.vector is not None
                stored = {"id": point.id, "payload": point.payload, "vector": pack(point.vector)}
                chunks.append([place, stored])
        pending = {
            "content": self.content,
            METADATA: self.metadata,
            "conversation": self.conversation,
            "chunks": chunks,
            "afresh": self.afresh,
        }
        return pending if self.turn is None else {**pending, "turn": self.turn}


def claim(desk: Desk, document_id: str, act: str, **extra: object) -> Point:
    """A point that holds the place of a root."""
    payload = {
        "schema": SCHEMA,
        "kind": "claim",
        "document_id": document_id,
        "act": act,
        **desk.ids.mark,
        **extra,
    }
    return Point(desk.ids.root(document_id), payload)


def is_claim(point: Point) -> bool:
    """Whether it stands for a document that is not there yet, or no longer."""
    return bool(point.payload["kind"] == "claim")


def is_deletion(point: Point) -> bool:
    """Whether it stands for a document that is being deleted."""
    return is_claim(point) and point.payload["act"] == "delete"


def given_up(root: Point) -> Point:
    """A root with a change that cannot be completed, as that of an ingestion that was interrupted.

    What was written of the change may stand beside what was there before it, so that only an ingestion of the
    document, or its deletion, puts it right.
    """
    payload = {key: value for key, value in root.payload.items() if key != "pending"}
    return replace(root, payload={**payload, "content": "", "writing": True})


def tree_of(point: Point | None) -> tuple[int, Gaps]:
    """How many places a document has, and which of them are empty."""
    if point is None or is_claim(point):
        return 0, ()
    return point.payload["stop"], gaps_of(point.payload.get("gaps"))


def planned(
    desk: Desk,
    document_id: str,
    root: Point | None,
    change: Change,
    *,
    chunks: list[Point | None] | None = None,
) -> Plan:
    """What a change does to the points of a document, read from the store as far as that is needed.

    Args:
        desk: the store.
        document_id: of which document.
        root: its root or claim; None where there is none.
        change: what changes.
        chunks: all its chunk points as `stored_chunks` gives them, if they were read already.

    Raises:
        StoreError: a point that is needed is missing, or the database fails.
        InputError: as `SequenceMerger.merge`.
    """
    places, gaps = tree_of(root)
    after = gaps
    for place, point in change.chunks.items():
        after = with_gap(after, place) if point is None else without_gap(after, place)
    writing = root is not None and not is_claim(root) and root.payload["writing"]
    known = None if root is None or is_claim(root) else Head.of(root)
    added = [point for place, point in change.chunks.items() if place >= places and point is not None]
    head = Head(
        document_id,
        change.content,
        change.conversation,
        change.metadata,
        writing,
        after,
        Last.among((point.payload for point in added), known.last if known else None),
        known.half_life if known else desk.half_life if change.conversation else None,
    )
    if root is None or is_claim(root):
        return whole(desk.ids, desk.merger, head, added, contextual=desk.contextual)
    if not change.afresh:
        plan = _in_part(desk, root, head, gaps, change, added)
        if plan is not None:
            return plan
    slots = chunks
    if slots is None:  # a chunk that the change replaces need not be there
        unread = [*([place, place + 1] for place in change.chunks), *map(list, gaps)]
        (slots,) = stored_chunks(desk, [Point(root.id, {**root.payload, "gaps": unread})])
    slots = [*slots, *[None] * len(added)]
    for place, point in change.chunks.items():
        slots[place] = point
    plan = whole(desk.ids, desk.merger, head, slots, contextual=desk.contextual)
    fresh = [point for point in change.chunks.values() if point is not None]
    written = {point.id for point in plan.chunks} if desk.contextual else {point.id for point in fresh}
    return Plan(
        [point for point in plan.chunks if point.id in written],
        plan.merged,
        [desk.ids.chunk(document_id, place) for place, point in change.chunks.items() if point is None],
        _sections_without(desk, document_id, len(slots), after),
    )


def attempted(desk: Desk, document_id: str, root: Point | None, change: Change, tries: Tries) -> Plan | None:
    """As `planned`; None, after a pause, where others changed the document since its root was read.

    Raises:
        ConflictError: they were faster for too long.
    """
    try:
        return planned(desk, document_id, root, change)
    except StoreError as error:
        if not _overtaken(desk, document_id, root, error):
            raise
    tries.lost(document_id)
    return None


def _in_part(
    desk: Desk, root: Point, head: Head, gaps: Gaps, change: Change, added: list[Point]
) -> Plan | None:
    """Only what changes; None where all contextual vectors are due."""
    places = root.payload["stop"]
    back = back_of(contextual=desk.contextual, conversation=head.conversation)
    covering = Covering.of(places, desk.merger, back=back)
    inside = {} if added else change.chunks
    needs = Needs.of(covering, list(inside), desk.merger.fanout, back=back)
    chunks, sections = needs.ids(desk.ids, head.document_id, gaps, desk.merger.fanout)
    found = desk.backend.fetch("chunks", chunks, vectors=True) if chunks else {}
    stored = {point_id: point for point_id, point in found.items() if point.vector is not None}
    if sections:
        stored = stored | desk.backend.fetch("merged", sections)
    drifts = desk.contextual and not head.conversation
    renewal = renewal_of(root, head, desk.merger) if drifts else None
    if added:
        return extended(
            desk.ids,
            desk.merger,
            head,
            covering,
            stored,
            added,
            contextual=desk.contextual,
            renewal=renewal,
        )
    return edited(
        desk.ids,
        desk.merger,
        head,
        covering,
        stored,
        change.chunks,
        contextual=desk.contextual,
        renewal=renewal,
    )


def _sections_without(desk: Desk, document_id: str, places: int, gaps: Gaps) -> list[str]:
    """Ids of the sections all of whose places are empty."""
    if not gaps:
        return []
    fanout = desk.merger.fanout
    return [
        desk.ids.section(document_id, level, index)
        for level, index in section_keys(places, fanout)
        if is_empty(gaps, index * fanout**level, min((index + 1) * fanout**level, places))
    ]


def begin(desk: Desk, document_id: str, root: Point | None, change: Change, version: int) -> Point | None:
    """Put a change into the root of a document; None where another writer was faster.

    From here on it happens, whatever becomes of this writer.

    Raises:
        EditionError: other merged vectors are about to take over, and nothing has happened.
    """
    stands = claim(desk, document_id, "begin") if root is None else root
    begun = sealed(stands, version, {"pending": change.payload()})
    if not swapped(desk.backend, begun, root):
        return None
    if root is None:
        _confirm(desk, begun)
    return begun


def _confirm(desk: Desk, begun: Point) -> None:
    """See to it that whoever replaces the merged vectors cannot have overlooked a new document."""
    try:
        desk.lookup([])
    except EditionError:
        version = version_of(begun) + 1
        if swapped(desk.backend, sealed(claim(desk, begun.payload["document_id"], "delete"), version), begun):
            desk.backend.delete("merged", [begun.id], below=version)
            raise


def complete(desk: Desk, begun: Point, change: Change, plan: Plan | None = None) -> Plan:
    """Write what a pending change leads to; somebody else may be doing the same.

    Args:
        desk: the store.
        begun: the root or claim with the change in it.
        change: the change.
        plan: what `planned` made of it, if that is known.
    """
    document_id, version = begun.payload["document_id"], version_of(begun)
    plan = plan or planned(desk, document_id, begun, change)
    backend = desk.backend
    if plan.chunks:
        backend.write("chunks", stamped(plan.chunks, version), below=version)
    if plan.gone_chunks:
        backend.delete("chunks", plan.gone_chunks, below=version)
    if plan.gone_sections:
        backend.delete("merged", plan.gone_sections, below=version)
    *sections, root = plan.merged
    (done,) = backend.swap(
        [Swap(sealed(root, version + 1), version)], first=stamped(sections, version), below=version
    )
    if not done:
        sweep(desk, document_id, [point.id for point in sections], plan.chunks, version)
    return plan


def finish_deletion(desk: Desk, deletion: Point) -> None:
    """Remove what is left of a document, its claim last."""
    document_id, version = deletion.payload["document_id"], version_of(deletion)
    desk.backend.delete_document("chunks", document_id, below=version)
    desk.backend.delete_document("merged", document_id, below=version - 1)
    desk.backend.delete("merged", [deletion.id], below=version)


def settled(
    desk: Desk,
    document_id: str,
    tries: Tries,
    *,
    repeats: Callable[[Change], bool] | None = None,
    found: Point | None = None,
) -> tuple[Point | None, bool]:
    """The root of a document with nothing under way; what others began is completed first.

    Args:
        desk: the store.
        document_id: of which document.
        tries: of this operation.
        repeats: tells whether a change is the one that this operation is about to make.
        found: its root or claim, if it was read just now.

    Returns:
        The root, None where there is none; and whether the change that `repeats` knows was completed here.

    Raises:
        ConflictError: it is being ingested, or that was interrupted.
    """
    root_id = desk.ids.root(document_id)
    while True:
        root = found or desk.lookup([root_id]).get(root_id)
        found = None
        if root is None:
            return None, False
        change = Change.of(root)
        if change is not None:
            repeated = repeats is not None and repeats(change)
            if not tries.waited(root, ABANDONED if repeated else MOMENT):
                try:
                    complete(desk, root, change)
                except StoreError as error:
                    if not _overtaken(desk, document_id, root, error):
                        raise
                if repeated:
                    return desk.lookup([root_id]).get(root_id), True
        elif is_deletion(root):
            if not tries.waited(root, MOMENT):
                finish_deletion(desk, root)
        elif not is_claim(root) and not root.payload["writing"]:
            return root, False
        elif not tries.waited(root, ABANDONED):
            raise ConflictError(
                f"{document_id!r} is being ingested by another writer, or that was interrupted, so that it "
                "mixes two versions. Ingest it again, or delete it, before you change it."
            )


def _overtaken(desk: Desk, document_id: str, root: Point | None, error: StoreError) -> bool:
    """Whether a point was missing because others changed the document since its root was read."""
    if type(error) is not StoreError:
        return False
    root_id = desk.ids.root(document_id)
    now = desk.backend.fetch("merged", [root_id], payload=["version"]).get(root_id)
    versions = [None if point is None else version_of(point) for point in (root, now)]
    return versions[0] != versions[1]


def sweep(desk: Desk, document_id: str, sections: list[str], chunks: list[Point], version: int) -> None:
    """Remove what a writer that fell behind wrote outside of its document, which has changed meanwhile."""
    root_id = desk.ids.root(document_id)
    try:
        root = desk.lookup([root_id]).get(root_id)
    except EditionError:
        return  # what was written goes with its edition
    if root is not None and (is_claim(root) or root.payload["writing"]):
        if not is_deletion(root):
            return  # whoever is at work there knows better
        root = None
    places, gaps = tree_of(root)
    outside = [
        point.id
        for point in chunks
        if point.payload["position"] >= places or is_empty(gaps, point.payload["position"])
    ]
    empty = set(_sections_without(desk, document_id, places, gaps))
    kept = set(desk.section_ids(document_id, places)) - empty
    if outside:
        desk.backend.delete("chunks", outside, below=version)
    stray = [point_id for point_id in sections if point_id not in kept]
    if stray:
        desk.backend.delete("merged", stray, below=version)
