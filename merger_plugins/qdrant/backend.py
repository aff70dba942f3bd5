"""One collection of Qdrant and its companion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from merger_plugins._batching import unit
from merger_plugins._types import Vector
from merger_plugins.errors import StoreError
from merger_plugins.qdrant.connection import Connection, Location, embedded
from merger_plugins.qdrant.dividing import id_key, id_spans
from merger_plugins.qdrant.filters import OWN_FORM, above, as_filter, not_above
from merger_plugins.stores.backend import Backend, Layout, Point, Scored, Shelf, Span, Swap, VectorForm, Where

CHUNK, CONTEXTUAL = "chunk", "contextual"
"""Names of the two vectors of a chunk point where a collection has both; a single one has no name."""

_POINTS_AT_ONCE = 256
_FLOATS_AT_ONCE = 500_000
"""About 10 MB of JSON; servers refuse requests of more than 32 MB."""

_IDS_AT_ONCE = 1_000
_INDEXES = {
    "document_id": models.PayloadSchemaType.KEYWORD,
    "kind": models.PayloadSchemaType.KEYWORD,
    "level": models.PayloadSchemaType.INTEGER,
    "source": models.PayloadSchemaType.KEYWORD,
    "edition": models.PayloadSchemaType.KEYWORD,
    "fingerprint": models.PayloadSchemaType.KEYWORD,
    "chunks": models.PayloadSchemaType.KEYWORD,
}


class QdrantBackend(Backend):
    """One collection and its companion in Qdrant; the base class says what the methods do."""

    def __init__(self, location: Location, collection: str) -> None:
        self.collection = collection
        self._connection = Connection(location)
        self._named = False
        self._raw = ""
        self.place = self._connection.place

    @property
    def exclusive(self) -> bool:
        """Whether Qdrant is embedded: its folder is locked, and memory is this process's own."""
        return self._connection.exclusive

    def vectors(self) -> dict[str, VectorForm] | None:
        """As the server describes them; sparse vectors and multivectors are left out."""
        with self._connection.use() as client:
            if not client.collection_exists(self.collection):
                return None
            described = client.get_collection(self.collection).config.params.vectors
        self._named = isinstance(described, dict)
        named = described if isinstance(described, dict) else {} if described is None else {"": described}
        return {
            name: VectorForm(
                params.size,
                None if params.distance == models.Distance.COSINE else params.distance.value,
                as_cosine=params.distance != models.Distance.MANHATTAN,
            )
            for name, params in named.items()
            if params.multivector_config is None
        }

    def has_companion(self) -> bool:
        """Asked by name."""
        with self._connection.use() as client:
            return client.collection_exists(self.companion)

    def layout(self) -> Layout | None:
        """As the server describes it."""
        vectors = self.vectors()
        if vectors is None:
            return None
        self._raw = next((name for name in (self.form.vector, CHUNK, "") if name in vectors), CHUNK)
        chosen = vectors.get(self._raw)
        if chosen is None or self.form.vector not in (None, self._raw):
            raise StoreError(
                f"The collection {self.collection!r} has vectors named {sorted(vectors)}, and none named "
                f"{self.form.vector or CHUNK!r}. Choose a collection with one vector without a name, or a "
                "new one; or run backfill() to say which vector is the chunks'."
            )
        if chosen.distance != self.form.distance:
            raise StoreError(
                f"The collection {self.collection!r} compares by {chosen.distance}, and merged vectors are "
                "compared by cosine. Choose a collection with Distance.COSINE, or a new one; for one that "
                "another application wrote with unit vectors, run backfill()."
            )
        return Layout(chosen.dimension, self._context in vectors, self.has_companion())

    def create(self, dimension: int, *, contextual: bool) -> None:
        """With the payload indexes that filters need, where the database has indexes."""
        params = models.VectorParams(size=dimension, distance=models.Distance.COSINE)
        with self._connection.use() as client:
            if not client.collection_exists(self.collection):
                if client.collection_exists(self.companion):
                    client.delete_collection(self.companion)
                config = {CHUNK: params, CONTEXTUAL: params} if contextual else params
                _create(client, self.collection, config)
                self._named, self._raw = contextual, CHUNK if contextual else ""
                if not embedded(client):
                    client.create_payload_index(self.collection, "document_id", _INDEXES["document_id"])
            if not client.collection_exists(self.companion):
                _create(client, self.companion, params)
            if not embedded(client):  # it has no indexes
                for key, schema in _INDEXES.items():
                    client.create_payload_index(self.companion, key, schema)

    def fetch(
        self, shelf: Shelf, ids: Sequence[str], *, payload: bool | list[str] = True, vectors: bool = False
    ) -> dict[str, Point]:
        """In requests of 1,000 ids."""
        found: dict[str, Point] = {}
        for start in range(0, len(ids), _IDS_AT_ONCE):
            with self._connection.use() as client:
                records = client.retrieve(
                    self._name(shelf),
                    [_native(point_id) for point_id in ids[start : start + _IDS_AT_ONCE]],
                    with_payload=payload,
                    with_vectors=vectors,
                )
            found |= {str(record.id): self._point(shelf, record) for record in records}
        return found

    def write(self, shelf: Shelf, points: Sequence[Point], *, below: int | None = None) -> None:
        """In requests of at most 256 points."""
        guard = None if below is None else not_above(below)
        for batch in _batches(points):
            structs = self._structs(shelf, batch)
            with self._connection.use() as client:
                client.upsert(self._name(shelf), structs, wait=True, update_filter=guard)

    def swap(
        self, swaps: Sequence[Swap], *, first: Sequence[Point] = (), below: int | None = None
    ) -> list[bool]:
        """In one request and another to read back; more if there are many points.

        A request is atomic for each point. `STRONG` ordering keeps that on a cluster, where one replica then
        decides; let its collections have a `write_consistency_factor` of all replicas, so that what is read
        back is what was decided.
        """
        if not swaps:
            self.write("merged", first, below=below)
            return []
        batches = list(_batches(first))
        for batch in batches[:-1]:
            self.write("merged", batch, below=below)
        lists = [_points(self._structs("merged", batch), below) for batch in batches[-1:]]
        expected: dict[int | None, list[Point]] = {}
        for swap in swaps:
            expected.setdefault(swap.expected, []).append(swap.point)
        for version, points in expected.items():
            lists += [_conditional(self._structs("merged", batch), version) for batch in _batches(points)]
        with self._connection.use() as client:
            if embedded(client):  # a batch would have each point checked twice
                for one in lists:
                    client.upsert(
                        self.companion,
                        one.points,
                        update_filter=one.update_filter,
                        update_mode=one.update_mode,
                    )
            else:
                operations = [models.UpsertOperation(upsert=one) for one in lists]
                strong = models.WriteOrdering.STRONG
                client.batch_update_points(self.companion, operations, wait=True, ordering=strong)
        ids = [swap.point.id for swap in swaps]
        stored = self.fetch("merged", ids, payload=["token"])
        return [
            swap.point.id in stored
            and stored[swap.point.id].payload.get("token") == swap.point.payload["token"]
            for swap in swaps
        ]

    def delete(self, shelf: Shelf, ids: Sequence[str], *, below: int | None = None) -> None:
        """In requests of 1,000 ids."""
        for start in range(0, len(ids), _IDS_AT_ONCE):
            some: list[Any] = list(ids[start : start + _IDS_AT_ONCE])
            with self._connection.use() as client:
                selector: models.PointIdsList | models.FilterSelector
                if below is not None and embedded(client):  # it would look at every point for a filter
                    stored = self.fetch(shelf, some, payload=["version"])
                    some = [i for i in some if i in stored and stored[i].payload.get("version", 0) <= below]
                if below is None or embedded(client):
                    selector = models.PointIdsList(points=some)
                else:
                    chosen = models.HasIdCondition(has_id=some)
                    selector = models.FilterSelector(
                        filter=models.Filter(must=[chosen], must_not=above(below))
                    )
                if some:
                    client.delete(self._name(shelf), selector, wait=True)

    def delete_document(self, shelf: Shelf, document_id: str, *, below: int | None = None) -> None:
        """By a filter, so that strays go too."""
        own = models.FieldCondition(key="document_id", match=models.MatchValue(value=document_id))
        chosen = models.Filter(must=[own], must_not=None if below is None else above(below))
        with self._connection.use() as client:
            client.delete(self._name(shelf), models.FilterSelector(filter=chosen), wait=True)

    def write_contextual(self, points: Sequence[Point]) -> None:
        """In requests of at most 256 points."""
        for batch in _batches(points):
            structs = [
                models.PointVectors.model_construct(
                    id=_native(point.id), vector={self._context: _listed(point.contextual)}
                )
                for point in batch
            ]
            with self._connection.use() as client:
                client.update_vectors(self.collection, structs, wait=True)

    def scan(
        self,
        shelf: Shelf,
        where: Where,
        *,
        payload: bool | list[str] = True,
        vectors: bool = False,
        offset: Any = None,
    ) -> Iterator[Point]:
        """In pages of 1,000 points, from the id `offset` on."""
        while True:
            with self._connection.use() as client:
                records, offset = client.scroll(
                    self._name(shelf),
                    scroll_filter=self._filter(shelf, where),
                    limit=_IDS_AT_ONCE,
                    offset=offset,
                    with_payload=payload,
                    with_vectors=([self._raw] if self._named and shelf == "chunks" else True)
                    if vectors
                    else False,
                )
            for record in records:
                yield self._point(shelf, record)
            if offset is None:
                return

    def spans(self, parts: int) -> list[Span]:
        """Spans of ids: of numbers as far as there are any, and of UUIDs."""
        with self._connection.use() as client:

            def at(number: int | str | None) -> Any:
                """The first id from here on."""
                records, _ = client.scroll(
                    self.collection, limit=1, offset=number, with_payload=False, with_vectors=False
                )
                return records[0].id if records else None

            return id_spans(at, parts)

    def scan_span(self, span: Span) -> Iterator[Point]:
        """In pages of 1,000 points, the last of which reaches into the next span."""
        start, stop = span
        for point in self.scan("chunks", Where(), vectors=True, offset=start):
            if stop is not None and id_key(point.id) >= id_key(stop):
                return
            yield point

    def count(self, shelf: Shelf, where: Where) -> int:
        """Exactly."""
        with self._connection.use() as client:
            return client.count(self._name(shelf), count_filter=self._filter(shelf, where), exact=True).count

    def nearest(
        self,
        shelf: Shelf,
        query: Vector,
        limit: int,
        where: Where,
        *,
        contextual: bool = False,
        per_document: bool = False,
        exact: bool = False,
        payload: bool | list[str] = True,
    ) -> list[Scored]:
        """By Qdrant's index, or past it."""
        using = (self._context if contextual else self._raw) if self._named and shelf == "chunks" else None
        distance = self.form.distance if shelf == "chunks" else None
        asked: dict[str, Any] = {
            "query": (query if distance is None else unit(query[None])[0]).tolist(),
            "using": using,
            "query_filter": self._filter(shelf, where),
            "limit": limit,
            "with_payload": payload,
        }
        with self._connection.use() as client:
            if exact and not embedded(client):  # which is always exact
                asked["search_params"] = models.SearchParams(exact=True)
            if per_document:
                key = self.form.document if shelf == "chunks" else OWN_FORM.document
                groups = client.query_points_groups(
                    self._name(shelf), group_by=key, group_size=1, **asked
                ).groups
                found = [group.hits[0] for group in groups]
            else:
                found = client.query_points(self._name(shelf), **asked).points
        return [Scored(self._point(shelf, point), _cosine(point.score, distance)) for point in found]

    def scores(self, shelf: Shelf, ids: Sequence[str], query: Vector) -> dict[str, float]:
        """Computed by a server, so that no vectors travel; in requests of 1,000 ids."""
        if self.exclusive:
            return super().scores(shelf, ids, query)
        found: dict[str, float] = {}
        for start in range(0, len(ids), _IDS_AT_ONCE):
            some: list[Any] = [_native(point_id) for point_id in ids[start : start + _IDS_AT_ONCE]]
            with self._connection.use() as client:
                points = client.query_points(
                    self._name(shelf),
                    query=query.tolist(),
                    using=self._raw if self._named and shelf == "chunks" else None,
                    query_filter=models.Filter(must=[models.HasIdCondition(has_id=some)]),
                    search_params=models.SearchParams(exact=True),
                    limit=len(some),
                    with_payload=False,
                ).points
            found |= {str(point.id): point.score for point in points}
        return found

    def close(self) -> None:
        """Unless the client was passed in."""
        self._connection.close()

    def _structs(self, shelf: Shelf, points: Sequence[Point]) -> list[models.PointStruct]:
        # Validating each number again would take longer than the merge; the vectors were checked.
        named = self._named and shelf == "chunks"
        return [
            models.PointStruct.model_construct(
                id=point.id, vector=_vector(point, named), payload=point.payload
            )
            for point in points
        ]

    @property
    def _context(self) -> str:
        return self.form.contextual or CONTEXTUAL

    def _filter(self, shelf: Shelf, where: Where) -> models.Filter | None:
        return as_filter(where, self.form, shelf)

    def _point(self, shelf: Shelf, record: models.Record | models.ScoredPoint) -> Point:
        raw = self._raw if shelf == "chunks" else ""
        vectors = record.vector if isinstance(record.vector, dict) else {raw: record.vector}
        return Point(
            str(record.id), record.payload or {}, _array(vectors.get(raw)), _array(vectors.get(self._context))
        )

    def _name(self, shelf: Shelf) -> str:
        return self.collection if shelf == "chunks" else self.companion


def _create(client: QdrantClient, collection: str, vectors: Any) -> None:
    try:
        client.create_collection(collection, vectors_config=vectors)
    except UnexpectedResponse as error:
        if error.status_code != 409:  # another writer made it just now
            raise


def _batches(points: Sequence[Point]) -> Iterator[Sequence[Point]]:
    """Points in order, as many at a time as one request takes."""
    widest = max((point.vector.size for point in points if point.vector is not None), default=1)
    size = max(1, min(_POINTS_AT_ONCE, _FLOATS_AT_ONCE // (2 * widest)))
    for start in range(0, len(points), size):
        yield points[start : start + size]


def _points(structs: list[models.PointStruct], below: int | None) -> models.PointsList:
    guard = None if below is None else not_above(below)
    return models.PointsList(points=structs, update_filter=guard)


def _conditional(structs: list[models.PointStruct], expected: int | None) -> models.PointsList:
    """An insertion that replaces nothing, or a replacement that inserts nothing."""
    if expected is None:
        return models.PointsList(points=structs, update_mode=models.UpdateMode.INSERT_ONLY)
    version: models.Condition = (
        models.FieldCondition(key="version", match=models.MatchValue(value=expected))
        if expected
        else models.IsEmptyCondition(is_empty=models.PayloadField(key="version"))
    )
    return models.PointsList(
        points=structs,
        update_filter=models.Filter(must=[version]),
        update_mode=models.UpdateMode.UPDATE_ONLY,
    )


def _vector(point: Point, named: bool) -> Any:
    if point.vector is None:
        return {}
    if not named:
        return point.vector.tolist()
    vectors = {CHUNK: point.vector.tolist()}
    if point.contextual is not None:
        vectors[CONTEXTUAL] = point.contextual.tolist()
    return vectors


def _cosine(score: float, distance: str | None) -> float:
    """The cosine of two unit vectors by what Qdrant says of them."""
    return 1 - score * score / 2 if distance == models.Distance.EUCLID.value else score


def _array(values: Any) -> Vector | None:
    return None if values is None else np.asarray(values, np.float32)


def _native(point_id: str) -> Any:
    """An id as Qdrant has it: a UUID, or a number."""
    return int(point_id) if point_id.isdecimal() and len(point_id) <= 20 else point_id


def _listed(vector: Vector | None) -> list[float]:
    assert vector is not None
    listed: list[float] = vector.tolist()
    return listed
