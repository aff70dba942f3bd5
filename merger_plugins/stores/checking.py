"""Whether what is stored is what the chunks give, and putting it right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from merger_plugins._types import Vector
from merger_plugins.errors import InputError, StoreError
from merger_plugins.stores.backend import Point, Shelf, Where
from merger_plugins.stores.changes import (
    Change,
    complete,
    finish_deletion,
    given_up,
    is_claim,
    is_deletion,
    tree_of,
)
from merger_plugins.stores.commits import alone, next_version, sealed, swapped, version_of
from merger_plugins.stores.desk import Desk
from merger_plugins.stores.fading import FADED
from merger_plugins.stores.nodes import Head
from merger_plugins.stores.places import Gaps, filled, is_empty
from merger_plugins.stores.planning import whole
from merger_plugins.stores.records import METADATA, unpack
from merger_plugins.stores.recovering import RECOVER, recover
from merger_plugins.stores.settings import Settings, check
from merger_plugins.stores.upkeep import remake

TOLERANCE = 1e-5
"""How far a stored number may be from the one derived again; of nodes, in relation to their length."""

_ROOT = ("document_id", "position", "stop", "mass", "count", "content", "source", "writing", METADATA)
_AT_ONCE = 256
_LOST = "not in the store; repair() and ingest the document again, or replace() or remove() it"
SHELVES: tuple[Shelf, ...] = ("chunks", "merged")

ProblemKind = Literal["missing", "wrong", "stray", "unfinished", "fingerprint", "outdated"]


@dataclass(frozen=True)
class Problem:
    """A difference between what is stored and what the chunks give.

    Attributes:
        kind: ``"missing"``, ``"wrong"``, ``"stray"`` (a point that nothing accounts for), ``"unfinished"``
            (an operation that was interrupted, or is under way), ``"fingerprint"`` (another merger's), or
            ``"outdated"`` (no damage: the application changed its chunks since the last `backfill`).
        document_id: of which document; None for the whole store.
        level: 0 for a chunk, 1 and above for sections; None for a root, or a document as a whole.
        position: place of its first chunk; None for a document as a whole.
        detail: what is the matter, and what to do where `repair` cannot mend it.
        point_id: of the point; None where there is none in particular.
        shelf: the collection of the point.
    """

    kind: ProblemKind
    document_id: str | None
    level: int | None
    position: int | None
    detail: str
    point_id: str | None = None
    shelf: Shelf = "merged"


def verify(desk: Desk, settings: Settings, document_id: str | None = None) -> Iterator[Problem]:
    """Tell each difference as it is found.

    Args:
        desk: the store.
        settings: of the store.
        document_id: only this document; None for all.
    """
    if settings.fingerprint != desk.merger.fingerprint:
        detail = (
            f"the store holds vectors of the merger {settings.fingerprint}, and {desk.merger!r} is "
            f"{desk.merger.fingerprint}; call rebuild() or calibrate()"
        )
        yield Problem("fingerprint", None, None, None, detail)
        return
    trees: dict[str, tuple[int, Gaps]] = {}
    for roots in _roots(desk, document_id):
        for root in roots:
            name = root.payload.get("document_id")
            if name is None:
                continue  # its chunks will say that they have none
            trees[name] = (-1, ()) if _lacking(root) or _is_unfinished(root) else tree_of(root)
            if lacking := _lacking(root):
                yield Problem("wrong", name, None, 0, f"it lacks {', '.join(lacking)}", root.id)
        yield from _of_documents(desk, [root for root in roots if not _lacking(root)])
    yield from _strays(desk, trees, document_id)


def _roots(desk: Desk, document_id: str | None) -> Iterator[list[Point]]:
    """Roots and claims, some at a time."""
    if document_id is not None:
        ids = [desk.ids.root(document_id)]
    else:
        kinds = ("root", "claim")
        ids = [
            point.id
            for kind in kinds
            for point in desk.backend.scan("merged", Where({"kind": kind}), payload=["edition"])
            if desk.ids.owns(point.payload)
        ]
    batch: list[Point] = []
    waiting = 0
    for start in range(0, len(ids), _AT_ONCE):
        found = desk.backend.fetch("merged", ids[start : start + _AT_ONCE], vectors=True)
        for root in found.values():
            batch.append(root)
            waiting += root.payload.get("stop", 0)
            if waiting > 4 * _AT_ONCE:
                yield batch
                batch, waiting = [], 0
    if batch:
        yield batch


def _lacking(root: Point) -> list[str]:
    """The fields that a root or claim should have and has not."""
    kind = root.payload.get("kind")
    needed = ("document_id", "act") if kind == "claim" else _ROOT if kind == "root" else ("kind",)
    return [key for key in needed if key not in root.payload]


def _is_unfinished(root: Point) -> bool:
    return is_claim(root) or Change.of(root) is not None or bool(root.payload["writing"])


def _of_documents(desk: Desk, roots: list[Point]) -> Iterator[Problem]:
    clean = [root for root in roots if not _is_unfinished(root)]
    for root in roots:
        if _is_unfinished(root):
            yield _unfinished(root)
            yield from _lost_for_good(desk, root)
    chunk_ids, section_ids = [], []
    for root in clean:
        places, gaps = tree_of(root)
        document_id = root.payload["document_id"]
        chunk_ids += [desk.ids.chunk(document_id, place) for place in filled(gaps, 0, places)]
        section_ids += desk.section_ids(document_id, places)
    chunks = desk.backend.fetch("chunks", chunk_ids, vectors=True) if chunk_ids else {}
    sections = desk.backend.fetch("merged", section_ids, vectors=True) if section_ids else {}
    for root in clean:
        problems = list(_of_document(desk, root, chunks, sections))
        if problems:
            now = desk.backend.fetch("merged", [root.id], payload=["version"]).get(root.id)
            if now is not None and version_of(now) == version_of(root):
                yield from problems
            elif now is not None:  # it was changed while it was read
                again = desk.backend.fetch("merged", [root.id], vectors=True)
                yield from _of_documents(desk, list(again.values()))


def _unfinished(root: Point) -> Problem:
    document_id = root.payload["document_id"]
    if Change.of(root) is not None:
        detail = "a change was interrupted, or is under way"
    elif is_deletion(root):
        detail = "deleting it was interrupted, or is under way"
    else:
        detail = "ingesting it was interrupted, or is under way; ingest it again, or delete it"
    return Problem("unfinished", document_id, None, None, detail, root.id)


def _lost_for_good(desk: Desk, root: Point) -> Iterator[Problem]:
    """Chunks that are missing, and that the pending change does not bring."""
    change = Change.of(root)
    if change is None or is_claim(root):
        return
    places, gaps = tree_of(root)
    name = root.payload["document_id"]
    ids = {desk.ids.chunk(name, p): p for p in filled(gaps, 0, places) if p not in change.chunks}
    found = desk.backend.fetch("chunks", list(ids), payload=False, vectors=True)
    lost = [p for point_id, p in ids.items() if point_id not in found or found[point_id].vector is None]
    now = desk.backend.fetch("merged", [root.id], payload=["version"]).get(root.id) if lost else None
    if now is not None and version_of(now) == version_of(root):
        yield from (Problem("missing", name, 0, place, _LOST, shelf="chunks") for place in lost)


def _of_document(
    desk: Desk, root: Point, chunks: Mapping[str, Point], sections: Mapping[str, Point]
) -> Iterator[Problem]:
    places, gaps = tree_of(root)
    head = Head.of(root)
    name = head.document_id
    slots: list[Point | None] = [None] * places
    missing = False
    for place in filled(gaps, 0, places):
        point = chunks.get(desk.ids.chunk(name, place))
        if point is None or point.vector is None or "mass" not in point.payload:
            missing = True
            yield Problem("missing", name, 0, place, _LOST, shelf="chunks")
            continue
        slots[place] = point
        if (point.payload.get("document_id"), point.payload.get("position")) != (name, place):
            yield Problem("wrong", name, 0, place, "the chunk says it is another", point.id, "chunks")
        if desk.contextual and (
            point.contextual is None or point.payload.get("fingerprint") != desk.merger.fingerprint
        ):
            detail = "its contextual vector is missing, or another merger's"
            yield Problem("wrong", name, 0, place, detail, point.id, "chunks")
    if missing:
        return
    try:
        plan = whole(desk.ids, desk.merger, head, slots, contextual=desk.contextual and head.conversation)
    except InputError as error:
        yield Problem("wrong", name, None, None, f"its chunks cannot be merged: {error}")
        return
    for point in plan.chunks if head.conversation else ():
        there = chunks[point.id]
        if there.contextual is None or there.payload.get("fingerprint") != desk.merger.fingerprint:
            continue
        if point.contextual is not None and (distance := difference_of(point.contextual, there.contextual)):
            place = point.payload["position"]
            detail = f"its contextual vector is off by {distance:.1g}"
            yield Problem("wrong", name, 0, place, detail, point.id, "chunks")
    for point in plan.merged[:-1]:
        level, position = point.payload["level"], point.payload["position"]
        stored = sections.get(point.id)
        if stored is None:
            yield Problem("missing", name, level, position, "the section is not in the store")
        elif difference := _difference(point, stored):
            yield Problem(_kind(difference), name, level, position, difference, point.id)
    if difference := _difference(plan.merged[-1], root):
        yield Problem(_kind(difference), name, None, 0, difference, root.id)


def _kind(difference: str) -> ProblemKind:
    return "fingerprint" if difference.startswith("its fingerprint") else "wrong"


def _difference(point: Point, stored: Point) -> str:
    """What is wrong with a stored section or root; nothing where it is right."""
    for key in ("fingerprint", "kind", "document_id", "level", "position", "stop", "count"):
        if stored.payload.get(key) != point.payload[key]:
            return f"its {key} is {stored.payload.get(key)!r} and should be {point.payload[key]!r}"
    mass = stored.payload.get("mass", np.nan)
    if not np.isclose(mass, point.payload["mass"], rtol=TOLERANCE):
        return f"its mass is {mass} and should be {point.payload['mass']}"
    assert point.vector is not None
    if stored.vector is None or len(stored.vector) != len(point.vector):
        return "it has no vector, or one of another dimension"
    if distance := difference_of(stored.vector, point.vector):
        return f"its vector is off by {distance:.1g}"
    if "node" in point.payload:
        wrong = _wrong_node(point.payload["node"], stored.payload.get("node", ""))
        if wrong:
            return wrong
    if FADED in point.payload:
        expected, kept = point.payload[FADED], stored.payload.get(FADED) or {}
        if kept.get("at") != expected["at"] or not np.isclose(kept["mass"], expected["mass"], rtol=TOLERANCE):
            return "its faded node has another age or mass"
        return _wrong_node(expected["node"], kept["node"])
    return ""


def difference_of(one: Vector, other: Vector) -> float:
    """The largest difference of two vectors; 0 where that is tolerable."""
    distance = float(np.abs(one - other).max())
    return 0.0 if distance <= TOLERANCE else distance


def _wrong_node(expected: str, stored: str) -> str:
    try:
        node, wanted = unpack(stored), unpack(expected)
    except StoreError:
        return "its node is damaged"
    scale = max(float(np.linalg.norm(wanted)), 1e-30)
    if len(node) != len(wanted) or not np.abs(node - wanted).max() <= TOLERANCE * scale:
        return "its node is not the sum of its chunks"
    return ""


def _strays(desk: Desk, trees: dict[str, tuple[int, Gaps]], document_id: str | None) -> Iterator[Problem]:
    own: dict[str, str | int] = {} if document_id is None else {"document_id": document_id}
    rootless: set[str] = set()
    found = desk.backend.scan("chunks", Where(own), payload=["document_id", "position"])
    for point in found:
        name, place = point.payload.get("document_id"), point.payload.get("position")
        if not isinstance(name, str) or not isinstance(place, int):
            continue  # somebody else's
        places, gaps = _tree(desk, trees, name)
        if places == -1:
            continue  # unfinished, which was told
        if not places and name not in rootless:
            rootless.add(name)
            yield Problem("missing", name, None, None, "it has chunks and no root")
            continue
        there = place < places and not is_empty(gaps, place) and point.id == desk.ids.chunk(name, place)
        if places and not there and _tree(desk, trees, name, again=True) == (places, gaps):
            yield Problem("stray", name, 0, place, "no root accounts for it", point.id, "chunks")
    found = desk.backend.scan(
        "merged", Where({"kind": "section", **own}), payload=["document_id", "level", "position", "edition"]
    )
    for point in found:
        if not desk.ids.owns(point.payload):
            continue  # of an edition that is being made, or goes with the next calibrate() or rebuild()
        name = point.payload.get("document_id")
        if name is None or not {"level", "position"} <= point.payload.keys():
            continue  # told with its document
        places, gaps = _tree(desk, trees, name)
        stray = places != -1 and not _is_section_of(desk, point, places, gaps)
        if stray and _tree(desk, trees, name, again=True) == (places, gaps):
            level, place = point.payload["level"], point.payload["position"]
            yield Problem("stray", name, level, place, "no root accounts for it", point.id)


def _is_section_of(desk: Desk, point: Point, places: int, gaps: Gaps) -> bool:
    level, first, fanout = point.payload["level"], point.payload["position"], desk.merger.fanout
    size = fanout**level
    stop = min(first + size, places)
    complete = stop == first + size or (level == 1 and places > fanout and stop > first)
    expected = desk.ids.section(point.payload["document_id"], level, first // size)
    return complete and not is_empty(gaps, first, stop) and point.id == expected


def _tree(
    desk: Desk, trees: dict[str, tuple[int, Gaps]], name: str, *, again: bool = False
) -> tuple[int, Gaps]:
    """How many places a document has and which are empty; (-1, ()) for one that is unfinished."""
    if again or name not in trees:
        root_id = desk.ids.root(name)
        root = desk.backend.fetch("merged", [root_id]).get(root_id)
        if root is not None and _lacking(root):
            root = None
        trees[name] = (-1, ()) if root is not None and _is_unfinished(root) else tree_of(root)
    return trees[name]


def repair(desk: Desk, settings: Settings, document_id: str | None = None) -> list[Problem]:
    """Put right what can be derived from the chunks; returns what is left.

    Args:
        desk: the store.
        settings: of the store.
        document_id: only this document; None for all.

    Raises:
        FingerprintError: the store holds vectors of another merger.
        StoreError: the database fails.
    """
    check(settings, desk.merger, desk.backend.place)
    documents: dict[str, list[Problem]] = {}
    for problem in verify(desk, settings, document_id):
        if problem.document_id is not None:
            documents.setdefault(problem.document_id, []).append(problem)
    left: list[Problem] = []
    for name, problems in documents.items():
        _repair(desk, name, problems)
        left += verify(desk, settings, name)
    return left


def _repair(desk: Desk, name: str, problems: Iterable[Problem]) -> None:
    root_id = desk.ids.root(name)
    with alone(desk.backend, [name]):
        root = desk.lookup([root_id]).get(root_id)
        if root is not None and _lacking(root):
            desk.backend.delete("merged", [root_id], below=version_of(root))
            root = None
        if root is not None and is_deletion(root):
            finish_deletion(desk, root)
            return
        change = None if root is None else Change.of(root)
        if root is not None and is_claim(root) and change is not None:
            complete(desk, root, change)
            return
        if root is None or (is_claim(root) and root.payload["act"] == RECOVER):
            recover(desk, name, root)
            return
        if is_claim(root) or root.payload["writing"]:
            return
        wrong = {p.point_id for p in problems if p.kind == "wrong"}  # at its place, but says it is elsewhere
        for shelf in SHELVES:
            strays = [p.point_id for p in problems if p.kind == "stray" and p.shelf == shelf]
            ids = [point_id for point_id in strays if point_id is not None and point_id not in wrong]
            if ids:
                desk.backend.delete(shelf, ids, below=version_of(root))
        lost = any(p.kind == "missing" and p.level == 0 for p in problems)
        if lost and change is not None:
            swapped(desk.backend, sealed(given_up(root), next_version(root)), root)
        elif lost:  # or else the next ingestion of the same text would find that there is nothing to do
            swapped(desk.backend, sealed(root, next_version(root), {"content": ""}), root)
        elif any(p.kind != "stray" for p in problems):
            for problem in problems:
                if problem.kind == "wrong" and problem.level == 0:
                    _rename(desk, problem)
            remake(desk, [root])


def _rename(desk: Desk, problem: Problem) -> None:
    """Let a chunk say again which it is."""
    assert problem.point_id is not None
    found = desk.backend.fetch("chunks", [problem.point_id], vectors=True)
    for point in found.values():
        payload = {**point.payload, "document_id": problem.document_id, "position": problem.position}
        named = Point(point.id, payload, point.vector, point.contextual)
        desk.backend.write("chunks", [named], below=version_of(point))
