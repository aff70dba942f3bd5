"""Searching on every level of the tree, and on several at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from merger_plugins._batching import unit
from merger_plugins._types import Vector
from merger_plugins.errors import InputError
from merger_plugins.stores.backend import Backend, Payload, Scored, Where
from merger_plugins.stores.records import METADATA, TEXT, PointIds

SearchLevel = Literal["chunk", "contextual", "section", "document", "fused"]

OVERSAMPLING = 10
"""Candidates for each hit of a fused search."""

_SECTIONS: Mapping[str, str | int] = {"level": 1}  # the root of a short document is its only section
_ROOTS: Mapping[str, str | int] = {"kind": "root"}


@dataclass(frozen=True)
class FusionWeights:
    """How much each level counts in a fused score, on plain cosines.

    Attributes:
        chunk: of the chunk, contextual where the store has contextual vectors.
        section: of the section that the chunk belongs to.
        root: of its document's root.
    """

    chunk: float = 1.0
    section: float = 0.3
    root: float = 0.1

    def __post_init__(self) -> None:
        for name in ("chunk", "section", "root"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value >= 0):
                raise InputError(f"{name} is {value}; a weight is a number from 0 on.")


@dataclass(frozen=True)
class ScoreParts:
    """The cosines behind a fused score; None where a weight of 0 made it unnecessary, or there is none."""

    chunk: float
    section: float | None
    root: float | None


@dataclass(frozen=True)
class Hit:
    """What a search found.

    Attributes:
        id: of the point.
        document_id: None for a point that this package did not write.
        level: ``"chunk"``, ``"section"`` or ``"document"``.
        score: cosine with the query, or the fused score; larger is better.
        text: of the chunk, or of all chunks of a section; None for a document, or where none is stored.
        position: place of its first chunk in the document.
        stop: place after its last chunk.
        start: offset of its first character in the document's text; None where that is not known.
        end: offset after its last character.
        metadata: as it was passed in.
        speaker: who said it, for a turn.
        time: when, for a turn.
        parts: the cosines behind a fused score.
    """

    id: str
    document_id: str | None
    level: str
    score: float
    text: str | None
    position: int | None
    stop: int | None
    start: int | None
    end: int | None
    metadata: Payload
    speaker: str | None = None
    time: float | str | None = None
    parts: ScoreParts | None = None


def search(
    backend: Backend,
    ids: PointIds,
    query: Vector,
    k: int,
    level: SearchLevel,
    *,
    contextual: bool,
    filter: Any,
    weights: FusionWeights,
    per_document: bool,
    oversampling: int,
    fanout: int,
) -> list[Hit]:
    """The k best hits of a level, best first; see `MergedStore.search`."""
    if level == "fused":
        return _fused(backend, ids, query, k, filter, weights, contextual, per_document, oversampling, fanout)
    if level in ("chunk", "contextual"):
        found = backend.nearest(
            "chunks",
            query,
            k,
            Where(filter=filter),
            contextual=level == "contextual",
            per_document=per_document,
        )
        return [_chunk_hit(scored) for scored in found]
    match = _SECTIONS if level == "section" else _ROOTS
    found = backend.nearest("merged", query, k, Where(match, filter=filter), per_document=per_document)
    if level == "section":
        return _section_hits(backend, ids, found)
    return [_merged_hit(scored, "document") for scored in found]


def checked_level(level: str, *, contextual: bool) -> None:
    """Refuse a level that there is not.

    Raises:
        InputError: no such level, or no contextual vectors.
    """
    if level not in get_args(SearchLevel):
        raise InputError(f"level is {level!r}; choose one of {', '.join(get_args(SearchLevel))}.")
    if level == "contextual" and not contextual:
        raise InputError(
            "This store has no contextual chunk vectors. Make a new collection with contextual=True, or "
            "search the level 'chunk' or 'fused'."
        )


def _fused(
    backend: Backend,
    ids: PointIds,
    query: Vector,
    k: int,
    filter: Any,
    weights: FusionWeights,
    contextual: bool,
    per_document: bool,
    oversampling: int,
    fanout: int,
) -> list[Hit]:
    depth = k * oversampling
    found = backend.nearest("chunks", query, depth, Where(filter=filter), contextual=contextual)
    roots: dict[str, float] = {}
    if weights.root:
        roots = _by_document(backend.nearest("merged", query, 2 * k, Where(_ROOTS), payload=["document_id"]))
        if roots:
            inside = Where(documents=sorted(roots), filter=filter)
            found += backend.nearest("chunks", query, depth, inside, contextual=contextual)
    candidates = {scored.point.id: scored for scored in found}
    documents = {scored.point.payload.get("document_id") for scored in found}
    named = sorted(document for document in documents if isinstance(document, str))
    roots |= _root_scores(backend, query, [document for document in named if document not in roots])
    section_of = {
        point_id: ids.section(
            scored.point.payload["document_id"], 1, scored.point.payload["position"] // fanout
        )
        for point_id, scored in candidates.items()
        if {"document_id", "position"} <= scored.point.payload.keys()
    }
    sections = _section_scores(backend, query, sorted(set(section_of.values()))) if weights.section else {}
    hits = [
        _fused_hit(scored, weights, sections.get(section_of.get(point_id, "")), roots)
        for point_id, scored in candidates.items()
    ]
    hits.sort(key=lambda hit: (-hit.score, hit.document_id or "", hit.position or 0))
    if per_document:
        best: dict[str, Hit] = {}
        for hit in hits:
            best.setdefault(hit.document_id or hit.id, hit)
        hits = list(best.values())
    return hits[:k]


def _root_scores(backend: Backend, query: Vector, documents: Sequence[str]) -> dict[str, float]:
    """Document id -> the cosine of its root."""
    if not documents:
        return {}
    where = Where(_ROOTS, documents=documents)
    return _by_document(
        backend.nearest("merged", query, len(documents), where, exact=True, payload=["document_id"])
    )


def _section_scores(backend: Backend, query: Vector, section_ids: Sequence[str]) -> dict[str, float]:
    """Id of a section's point -> its cosine."""
    stored = backend.fetch("merged", section_ids, payload=False, vectors=True)
    direction = unit(query[None])[0]
    return {
        point_id: float(direction @ point.vector)
        for point_id, point in stored.items()
        if point.vector is not None
    }


def _by_document(found: Iterable[Scored]) -> dict[str, float]:
    return {scored.point.payload["document_id"]: scored.score for scored in found}


def _fused_hit(
    scored: Scored, weights: FusionWeights, section: float | None, roots: Mapping[str, float]
) -> Hit:
    root = roots.get(scored.point.payload.get("document_id") or "")
    # A document too short for a section has its root for one.
    inside = root if section is None else section
    parts = ScoreParts(scored.score, inside if weights.section else None, root if weights.root else None)
    score = (
        weights.chunk * parts.chunk
        + weights.section * (parts.section or 0.0)
        + weights.root * (parts.root or 0.0)
    )
    return _chunk_hit(scored, score, parts)


def _chunk_hit(scored: Scored, score: float | None = None, parts: ScoreParts | None = None) -> Hit:
    payload = scored.point.payload
    position = payload.get("position")
    return Hit(
        id=scored.point.id,
        document_id=payload.get("document_id"),
        level="chunk",
        score=scored.score if score is None else score,
        text=payload.get(TEXT),
        position=position,
        stop=None if position is None else position + 1,
        start=payload.get("start"),
        end=payload.get("end"),
        metadata=payload.get(METADATA) or {},
        speaker=payload.get("speaker"),
        time=payload.get("time"),
        parts=parts,
    )


def _section_hits(backend: Backend, ids: PointIds, found: Sequence[Scored]) -> list[Hit]:
    """Hits of sections, their text put together from their chunks."""
    places = {
        scored.point.id: [
            ids.chunk(scored.point.payload["document_id"], position)
            for position in range(scored.point.payload["position"], scored.point.payload["stop"])
        ]
        for scored in found
    }
    wanted = [point_id for point_ids in places.values() for point_id in point_ids]
    chunks = backend.fetch("chunks", wanted, payload=[TEXT, "start", "end"]) if wanted else {}
    hits = []
    for scored in found:
        inside = [chunks[point_id].payload for point_id in places[scored.point.id] if point_id in chunks]
        texts = [payload[TEXT] for payload in inside if payload.get(TEXT) is not None]
        span = (inside[0].get("start"), inside[-1].get("end")) if inside else (None, None)
        hits.append(_merged_hit(scored, "section", "\n".join(texts) if texts else None, span))
    return hits


def _merged_hit(
    scored: Scored, level: str, text: str | None = None, span: tuple[int | None, int | None] = (None, None)
) -> Hit:
    payload = scored.point.payload
    return Hit(
        id=scored.point.id,
        document_id=payload["document_id"],
        level=level,
        score=scored.score,
        text=text,
        position=payload["position"],
        stop=payload["stop"],
        start=span[0],
        end=span[1],
        metadata=payload[METADATA],
    )
