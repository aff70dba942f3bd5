"""How searches read the chunk points of a store: those that it wrote, and those of other applications."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from merger_plugins._types import Vector
from merger_plugins.stores.backend import Backend, Payload, Point, Scored, Where
from merger_plugins.stores.changes import tree_of
from merger_plugins.stores.foreign import CHUNK, CHUNKS, CONTEXTUAL_KIND, Edition
from merger_plugins.stores.places import filled
from merger_plugins.stores.records import METADATA, TEXT, PointIds

_SECTIONS_BY_ID = 2_000
"""How many sections of documents are looked up by their ids; more are asked for by a filter."""


@dataclass(frozen=True)
class Place:
    """Where a chunk stands.

    Attributes:
        position: in its document, counted from 0; None where the point does not say.
        section: cosine of its section with the query; None where it has none, or it was not asked for.
    """

    position: int | None
    section: float | None


class ChunkPoints(ABC):
    """The chunk points of a store, as a search needs them.

    Attributes:
        match: what sections and roots of this store have in their payload, beside what a search asks for.
        contextual: whether there are contextual vectors.
    """

    match: Mapping[str, str | int]
    contextual: bool

    @abstractmethod
    def nearest(
        self, query: Vector, limit: int, where: Where, *, contextual: bool, per_document: bool = False
    ) -> list[Scored]:
        """Chunk points by cosine, best first; arguments as `Backend.nearest`."""

    @abstractmethod
    def root(self, document_id: str) -> str:
        """The id of a document's root."""

    @abstractmethod
    def document(self, payload: Payload) -> str | None:
        """The document of a chunk point."""

    @abstractmethod
    def text(self, payload: Payload) -> str | None:
        """The text of a chunk point."""

    @abstractmethod
    def metadata(self, payload: Payload) -> Payload:
        """What was stored with a chunk point."""

    @abstractmethod
    def stored(self, payload: Payload) -> Payload | None:
        """What another application stored beside a chunk's vector; None for a chunk of this package."""

    @abstractmethod
    def position(self, payload: Payload) -> int | None:
        """The place of a chunk in its document; None where the point itself does not say."""

    @abstractmethod
    def offset(self, payload: Payload, key: Literal["start", "end"]) -> int | None:
        """Where a chunk begins or ends in the text of its document; None where that is not known."""

    @abstractmethod
    def places(self, points: Sequence[Point], query: Vector, *, sections: bool) -> dict[str, Place]:
        """Where chunk points stand, by id; `sections` says whether cosines of sections are wanted."""

    @abstractmethod
    def positions(self, points: Sequence[Point]) -> dict[str, int]:
        """Places of chunk points in their documents, by id, as far as they are known."""

    @abstractmethod
    def of(self, document_id: str, last: int | None = None) -> list[Point]:
        """Chunk points of a document in reading order, without vectors: the `last` ones, or all."""

    @abstractmethod
    def inside(self, merged: Sequence[Point]) -> dict[str, list[Payload]]:
        """Texts and offsets of the chunk points of each section, in order, by the section's id."""


class OwnChunks(ChunkPoints):
    """Chunk points that this package wrote: their ids follow from document and position.

    Args:
        backend: the database.
        ids: of the collection.
        fanout: of the merger.
        fingerprint: of the merger.
        contextual: whether there are contextual vectors, all of this merger; raw ones are searched otherwise.
    """

    def __init__(
        self, backend: Backend, ids: PointIds, fanout: int, fingerprint: str, *, contextual: bool
    ) -> None:
        self._backend = backend
        self._ids = ids
        self._fanout = fanout
        self.match = {"fingerprint": fingerprint, **ids.mark}
        self.contextual = contextual

    def nearest(
        self, query: Vector, limit: int, where: Where, *, contextual: bool, per_document: bool = False
    ) -> list[Scored]:
        """In one request."""
        contextual = contextual and self.contextual
        return self._backend.nearest(
            "chunks", query, limit, where, contextual=contextual, per_document=per_document
        )

    def root(self, document_id: str) -> str:
        """By the document's name."""
        return self._ids.root(document_id)

    def document(self, payload: Payload) -> str | None:
        """As it was ingested."""
        return payload.get("document_id")

    def text(self, payload: Payload) -> str | None:
        """As it was ingested."""
        return payload.get(TEXT)

    def metadata(self, payload: Payload) -> Payload:
        """As it was passed in."""
        return payload.get(METADATA) or {}

    def stored(self, payload: Payload) -> Payload | None:  # noqa: ARG002 - the payload is our own
        """None."""
        return None

    def position(self, payload: Payload) -> int | None:
        """As it was ingested."""
        return payload.get("position")

    def offset(self, payload: Payload, key: Literal["start", "end"]) -> int | None:
        """As it was ingested."""
        return payload.get(key)

    def places(self, points: Sequence[Point], query: Vector, *, sections: bool) -> dict[str, Place]:
        """Sections by their ids."""
        section_of = {
            point.id: self._ids.section(
                point.payload["document_id"], 1, point.payload["position"] // self._fanout
            )
            for point in points
            if {"document_id", "position"} <= point.payload.keys()
        }
        wanted = sorted(set(section_of.values())) if sections else []
        cosines = self._backend.scores("merged", wanted, query)
        return {
            point.id: Place(point.payload.get("position"), cosines.get(section_of.get(point.id, "")))
            for point in points
        }

    def positions(self, points: Sequence[Point]) -> dict[str, int]:
        """As they were ingested."""
        known = {point.id: point.payload.get("position") for point in points}
        return {point_id: position for point_id, position in known.items() if position is not None}

    def of(self, document_id: str, last: int | None = None) -> list[Point]:
        """In two requests."""
        root_id = self._ids.root(document_id)
        root = self._backend.fetch("merged", [root_id]).get(root_id)
        places, gaps = tree_of(root)
        taken = filled(gaps, 0, places)
        return _in_order(
            self._backend,
            [self._ids.chunk(document_id, place) for place in (taken[-last:] if last else taken)],
        )

    def inside(self, merged: Sequence[Point]) -> dict[str, list[Payload]]:
        """By the ids of their positions."""
        wanted = {
            point.id: [
                self._ids.chunk(point.payload["document_id"], position)
                for position in range(point.payload["position"], point.payload["stop"])
            ]
            for point in merged
        }
        return _payloads(self._backend, wanted, [TEXT, "start", "end"])


class ForeignChunks(ChunkPoints):
    """Chunk points that another application wrote: sections name theirs.

    Args:
        backend: the database, its form that of the edition.
        edition: what is searched.
        ids: of the edition.
        fanout: of its merger.
    """

    def __init__(self, backend: Backend, edition: Edition, ids: PointIds, fanout: int) -> None:
        self._backend = backend
        self._reading = edition.reading
        self._ids = ids
        self._fanout = fanout
        self.match = {"edition": edition.name}
        self.contextual = edition.reading.contextual != "none"

    def nearest(
        self, query: Vector, limit: int, where: Where, *, contextual: bool, per_document: bool = False
    ) -> list[Scored]:
        """In one request, or two where contextual vectors are in the companion."""
        if not contextual or self._reading.contextual == "named":
            return self._backend.nearest(
                "chunks", query, limit, where, contextual=contextual, per_document=per_document
            )
        among = replace(where, match={**where.match, **self.match, "kind": CONTEXTUAL_KIND})
        found = self._backend.nearest(
            "merged", query, limit, among, per_document=per_document, payload=[CHUNK]
        )
        stored = self._backend.fetch("chunks", [scored.point.payload[CHUNK] for scored in found])
        return [
            Scored(stored[scored.point.payload[CHUNK]], scored.score)
            for scored in found
            if scored.point.payload[CHUNK] in stored
        ]

    def root(self, document_id: str) -> str:
        """By the document's name."""
        return self._ids.root(document_id)

    def document(self, payload: Payload) -> str | None:
        """By the field that the collection is grouped by."""
        return self._reading.document_of(payload)

    def text(self, payload: Payload) -> str | None:
        """By the field that holds it."""
        return self._reading.text_of(payload)

    def metadata(self, payload: Payload) -> Payload:
        """All that the payload says beside the text."""
        return self._reading.metadata_of(payload)

    def stored(self, payload: Payload) -> Payload | None:
        """The payload, or the mapping in it that filters look into."""
        return self._reading.stored_in(payload)

    def position(self, payload: Payload) -> int | None:  # noqa: ARG002 - the application's order is no number
        """Only sections know."""
        return None

    def offset(
        self,
        payload: Payload,  # noqa: ARG002 - applications count in ways of their own
        key: Literal["start", "end"],  # noqa: ARG002
    ) -> int | None:
        """Not known."""
        return None

    def places(self, points: Sequence[Point], query: Vector, *, sections: bool) -> dict[str, Place]:
        """Three requests, for the sections of the documents; one by a filter where these have too many."""
        ids, documents = self._named(points)
        if not sections or not documents:
            return {}
        parts = self._parts(documents)
        if parts is None:
            where = Where({**self.match, "level": 1}, documents=documents, members=sorted(ids))
            found = self._backend.nearest(
                "merged", query, len(ids), where, exact=True, payload=[CHUNKS, "position"]
            )
            return {
                point_id: Place(scored.point.payload["position"] + offset, scored.score)
                for scored in found
                for offset, point_id in enumerate(scored.point.payload[CHUNKS])
            }
        naming = [part for part in parts if not ids.isdisjoint(part.payload[CHUNKS])]
        cosines = self._backend.scores(
            "merged", [part.id for part in naming if part.payload["level"] == 1], query
        )
        return {
            point_id: Place(part.payload["position"] + offset, cosines.get(part.id))
            for part in naming
            for offset, point_id in enumerate(part.payload[CHUNKS])
        }

    def positions(self, points: Sequence[Point]) -> dict[str, int]:
        """Two requests, for the sections and short documents that name these chunks, or one by a filter."""
        ids, documents = self._named(points)
        if not documents:
            return {}
        parts: Iterable[Point] | None = self._parts(documents)
        if parts is None:
            where = Where(self.match, documents=documents, members=sorted(ids))
            parts = self._backend.scan("merged", where, payload=[CHUNKS, "position"])
        return {
            point_id: part.payload["position"] + offset
            for part in parts
            for offset, point_id in enumerate(part.payload[CHUNKS])
        }

    def of(self, document_id: str, last: int | None = None) -> list[Point]:
        """In three requests."""
        parts = self._parts([document_id], most=None) or []
        naming = sorted(parts, key=lambda part: part.payload["position"])
        ids = [point_id for part in naming for point_id in part.payload[CHUNKS]]
        return _in_order(self._backend, ids[-last:] if last else ids)

    def _named(self, points: Sequence[Point]) -> tuple[set[str], list[str]]:
        """The ids of points, and the names of their documents."""
        names = {name for point in points if (name := self.document(point.payload)) is not None}
        return {point.id for point in points}, sorted(names)

    def _parts(self, documents: Sequence[str], most: int | None = _SECTIONS_BY_ID) -> list[Point] | None:
        """The points that name the chunks of documents: sections, or the root of a short one.

        None where they are more than `most`.
        """
        name_of = {self._ids.root(name): name for name in documents}
        keys = [CHUNKS, "position", "level"]
        roots = self._backend.fetch("merged", list(name_of), payload=[*keys, "stop"])
        short = [root for root in roots.values() if CHUNKS in root.payload]
        wanted = [
            self._ids.section(name_of[root.id], 1, index)
            for root in roots.values()
            if CHUNKS not in root.payload
            for index in range(-(-root.payload.get("stop", 0) // self._fanout))
        ]
        if most is not None and len(wanted) > most:
            return None
        sections = self._backend.fetch("merged", wanted, payload=keys) if wanted else {}
        return [*short, *sections.values()]

    def inside(self, merged: Sequence[Point]) -> dict[str, list[Payload]]:
        """By the ids that each section names."""
        wanted = {point.id: list(point.payload[CHUNKS]) for point in merged}
        text = self._reading.text
        return _payloads(self._backend, wanted, [text.partition(".")[0]]) if text else {}


def _in_order(backend: Backend, ids: Sequence[str]) -> list[Point]:
    stored = backend.fetch("chunks", ids) if ids else {}
    return [stored[point_id] for point_id in ids if point_id in stored]


def _payloads(
    backend: Backend, wanted: Mapping[str, Sequence[str]], keys: list[str]
) -> dict[str, list[Payload]]:
    ids: Iterable[str] = (point_id for own in wanted.values() for point_id in own)
    stored = backend.fetch("chunks", list(ids), payload=keys) if wanted else {}
    return {
        name: [stored[point_id].payload for point_id in own if point_id in stored]
        for name, own in wanted.items()
    }
