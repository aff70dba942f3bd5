"""Searching on every level of the tree, and on several at once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from merger_plugins._types import Vector
from merger_plugins.errors import InputError
from merger_plugins.stores.backend import Backend, Payload, Scored, Where
from merger_plugins.stores.chunks import ChunkPoints, Place
from merger_plugins.stores.records import METADATA

SearchLevel = Literal["chunk", "contextual", "section", "document", "fused"]

OVERSAMPLING = 10
"""Candidates for each hit of a fused search."""

_SECTIONS: Mapping[str, str | int] = {"level": 1}  # the root of a short document is its only section
_ROOTS: Mapping[str, str | int] = {"kind": "root"}
_NOWHERE = Place(None, None)


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

    @property
    def total(self) -> float:
        """The score of a chunk whose cosines are all 1."""
        return self.chunk + self.section + self.root


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
        document_id: None for a point that tells none.
        level: ``"chunk"``, ``"section"`` or ``"document"``.
        score: cosine with the query, or the fused score; larger is better.
        text: of the chunk, or of all chunks of a section; None for a document, or where none is stored.
        position: place of its first chunk in the document; None where the point does not say.
        stop: place after its last chunk.
        start: offset of its first character in the document's text; None where that is not known.
        end: offset after its last character.
        metadata: as it was passed in.
        speaker: who said it, for a turn.
        time: when, for a turn.
        parts: the cosines behind a fused score.
        stored: of a chunk that another application wrote: all that it stored beside the vector, as it is.
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
    stored: Payload | None = field(default=None, repr=False, compare=False)

    def described(self) -> dict[str, Any]:
        """Its fields by their names, without `stored`."""
        described = asdict(replace(self, stored=None))
        del described["stored"]
        return described


def search(
    backend: Backend,
    chunks: ChunkPoints,
    query: Vector,
    k: int,
    level: SearchLevel,
    *,
    where: Where,
    weights: FusionWeights,
    per_document: bool,
    oversampling: int,
    without: Collection[str] = (),
) -> list[Hit]:
    """The k best hits of a level among the points that `where` says, best first; see `MergedStore.search`.

    `without` has ids of chunk points that are no hits.
    """
    if without:
        limit = k + len(without)
        while True:
            more = search(
                backend,
                chunks,
                query,
                limit,
                level,
                where=where,
                weights=weights,
                per_document=False,
                oversampling=oversampling,
            )
            hits = [hit for hit in more if hit.id not in without]
            if per_document:
                hits = _best_of_each(hits)
            if len(hits) >= k or len(more) < limit:
                return hits[:k]
            limit *= 2
    if level == "fused":
        return _fused(backend, chunks, query, k, where, weights, per_document, oversampling)
    if level in ("chunk", "contextual"):
        found = chunks.nearest(query, k, where, contextual=level == "contextual", per_document=per_document)
        return [_chunk_hit(chunks, scored) for scored in found]
    match = {**where.match, **(_SECTIONS if level == "section" else _ROOTS), **chunks.match}
    found = backend.nearest("merged", query, k, replace(where, match=match), per_document=per_document)
    if level == "section":
        return _section_hits(chunks, found)
    return [_merged_hit(scored, "document") for scored in found]


def passages(
    backend: Backend,
    chunks: ChunkPoints,
    queries: Sequence[Vector],
    doubts: Sequence[float],
    k: int,
    *,
    where: Where,
    per_document: int,
) -> list[Hit]:
    """At most k chunks of the best documents, of each its best ones in reading order.

    See `MergedStore.passages`. Of several queries, the one nearest to a document or chunk counts, less its
    doubt.
    """
    contextual = chunks.contextual
    among = Where({**_ROOTS, **chunks.match})
    if where.filter is not None:  # which may be about chunks, and roots know what all chunks share
        fitting = [
            scored
            for query in queries
            for scored in chunks.nearest(
                query, k * OVERSAMPLING, where, contextual=contextual, per_document=True
            )
        ]
        names = {chunks.document(scored.point.payload) for scored in fitting}
        among = replace(among, documents=sorted(name for name in names if name is not None))
    hits: list[Hit] = []
    roots = [backend.nearest("merged", query, k, among, payload=["document_id"]) for query in queries]
    for root in _nearest_of(roots, doubts, k):
        inside = replace(where, documents=[root.point.payload["document_id"]])
        some = min(per_document, k - len(hits))
        found = _nearest_of(
            [chunks.nearest(query, some, inside, contextual=contextual) for query in queries], doubts, some
        )
        places = chunks.positions([scored.point for scored in found])
        own = [
            _chunk_hit(
                chunks,
                scored,
                parts=ScoreParts(scored.score, None, root.score),
                position=places.get(scored.point.id),
            )
            for scored in found
        ]
        hits += sorted(own, key=lambda hit: (hit.position is None, hit.position or 0))
        if len(hits) == k:
            break
    return hits


def _nearest_of(found: Sequence[Sequence[Scored]], doubts: Sequence[float], k: int) -> Sequence[Scored]:
    """The k best points of several searches, a point of several by its best score less the search's doubt."""
    if len(found) == 1:
        return found[0][:k]
    every = [(one.score - doubt, one) for own, doubt in zip(found, doubts, strict=True) for one in own]
    best: dict[str, Scored] = {}
    for _, scored in sorted(every, key=lambda pair: -pair[0]):
        best.setdefault(scored.point.id, scored)
    return list(best.values())[:k]


def any_merged(hits: Iterable[Hit]) -> bool:
    """Whether merged vectors had a part in any of these hits."""
    return any(hit.parts is None or hit.parts.section or hit.parts.root for hit in hits)


def checked_level(level: str, *, contextual: bool) -> None:
    """Refuse a level that there is not.

    Raises:
        InputError: no such level, or no contextual vectors.
    """
    if level not in get_args(SearchLevel):
        raise InputError(f"level is {level!r}; choose one of {', '.join(get_args(SearchLevel))}.")
    if level == "contextual" and not contextual:
        raise InputError(
            "This store has no contextual chunk vectors. Make a new collection with contextual=True, call "
            "backfill(contextual='companion', anew=True) where another application wrote it, or search "
            "the level 'chunk' or 'fused'."
        )


def _fused(
    backend: Backend,
    chunks: ChunkPoints,
    query: Vector,
    k: int,
    where: Where,
    weights: FusionWeights,
    per_document: bool,
    oversampling: int,
) -> list[Hit]:
    depth = k * oversampling
    contextual = chunks.contextual
    match = {**_ROOTS, **chunks.match}
    found = chunks.nearest(query, depth, where, contextual=contextual)
    roots: dict[str, float] = {}
    if weights.root:
        among = Where(match, documents=where.documents)
        roots = _by_document(backend.nearest("merged", query, 2 * k, among, payload=["document_id"]))
        if roots:
            inside = replace(where, documents=sorted(roots))
            found += chunks.nearest(query, depth, inside, contextual=contextual)
    candidates = {scored.point.id: scored for scored in found}
    documents = {chunks.document(scored.point.payload) for scored in found}
    named = sorted(document for document in documents if isinstance(document, str))
    left = {chunks.root(document): document for document in named if document not in roots}
    scores = backend.scores("merged", list(left), query)
    roots |= {left[root_id]: score for root_id, score in scores.items()}
    points = [scored.point for scored in candidates.values()]
    places = chunks.places(points, query, sections=bool(weights.section))
    hits = [
        _fused_hit(chunks, scored, weights, places.get(point_id, _NOWHERE), roots)
        for point_id, scored in candidates.items()
    ]
    hits.sort(key=lambda hit: (-hit.score, hit.document_id or "", hit.position or 0))
    return (_best_of_each(hits) if per_document else hits)[:k]


def best_hits(
    found: Sequence[Sequence[Hit]], doubts: Sequence[float], k: int, *, per_document: bool
) -> list[Hit]:
    """The k best hits of several searches, a hit of several by its best score less the search's doubt."""
    if len(found) == 1:
        return list(found[0])
    each = zip(found, doubts, strict=True)
    hits = [replace(hit, score=hit.score - doubt) for own, doubt in each for hit in own]
    hits.sort(key=lambda hit: -hit.score)
    by_id: dict[str, Hit] = {}
    for hit in hits:
        by_id.setdefault(hit.id, hit)
    return (_best_of_each(by_id.values()) if per_document else list(by_id.values()))[:k]


def _best_of_each(hits: Iterable[Hit]) -> list[Hit]:
    """The first hit of each document."""
    best: dict[str, Hit] = {}
    for hit in hits:
        best.setdefault(hit.document_id or hit.id, hit)
    return list(best.values())


def _by_document(found: Iterable[Scored]) -> dict[str, float]:
    return {scored.point.payload["document_id"]: scored.score for scored in found}


def _fused_hit(
    chunks: ChunkPoints, scored: Scored, weights: FusionWeights, place: Place, roots: Mapping[str, float]
) -> Hit:
    root = roots.get(chunks.document(scored.point.payload) or "")
    # A document too short for a section has its root for one.
    inside = root if place.section is None else place.section
    parts = ScoreParts(scored.score, inside if weights.section else None, root if weights.root else None)
    score = (
        weights.chunk * parts.chunk
        + weights.section * (parts.section or 0.0)
        + weights.root * (parts.root or 0.0)
    )
    return _chunk_hit(chunks, scored, score, parts, place.position)


def _chunk_hit(
    chunks: ChunkPoints,
    scored: Scored,
    score: float | None = None,
    parts: ScoreParts | None = None,
    position: int | None = None,
) -> Hit:
    payload = scored.point.payload
    if position is None:
        position = chunks.position(payload)
    return Hit(
        id=scored.point.id,
        document_id=chunks.document(payload),
        level="chunk",
        score=scored.score if score is None else score,
        text=chunks.text(payload),
        position=position,
        stop=None if position is None else position + 1,
        start=chunks.offset(payload, "start"),
        end=chunks.offset(payload, "end"),
        metadata=chunks.metadata(payload),
        speaker=payload.get("speaker"),
        time=payload.get("time"),
        parts=parts,
        stored=chunks.stored(payload),
    )


def _section_hits(chunks: ChunkPoints, found: Sequence[Scored]) -> list[Hit]:
    """Hits of sections, their text put together from their chunks."""
    payloads = chunks.inside([scored.point for scored in found])
    hits = []
    for scored in found:
        inside = payloads.get(scored.point.id, [])
        texts = [text for payload in inside if (text := chunks.text(payload)) is not None]
        span = (
            (chunks.offset(inside[0], "start"), chunks.offset(inside[-1], "end")) if inside else (None, None)
        )
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
