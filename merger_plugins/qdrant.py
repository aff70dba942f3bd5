"""Qdrant: the ingestion hook, embedded in the process or on a server."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock, RLock
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np

from merger_plugins._extras import require
from merger_plugins._types import Vector
from merger_plugins.chunking import Chunker
from merger_plugins.errors import (
    InputError,
    MergerError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.stores.asynchronous import WORKERS, AsyncMergedStore, Bridge
from merger_plugins.stores.backend import (
    Backend,
    ChunkForm,
    Layout,
    Point,
    Scored,
    Shelf,
    Swap,
    VectorForm,
    Where,
)
from merger_plugins.stores.records import METADATA
from merger_plugins.stores.store import MergedStore

require("qdrant_client", extra="qdrant", purpose="merger_plugins.qdrant", package="qdrant-client")

from pydantic import BaseModel  # noqa: E402 - of which the client is made
from qdrant_client import AsyncQdrantClient, QdrantClient, models  # noqa: E402 - after the check that it is there
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse  # noqa: E402

OWN_FORM = ChunkForm()

CHUNK, CONTEXTUAL = "chunk", "contextual"
"""Names of the two vectors of a chunk point where a collection has both; a single one has no name."""

_POINTS_AT_ONCE = 256
_FLOATS_AT_ONCE = 500_000
"""About 10 MB of JSON; servers refuse requests of more than 32 MB."""

_IDS_AT_ONCE = 1_000
_URLS = ("http://", "https://")
_INDEXES = {
    "document_id": models.PayloadSchemaType.KEYWORD,
    "kind": models.PayloadSchemaType.KEYWORD,
    "level": models.PayloadSchemaType.INTEGER,
    "source": models.PayloadSchemaType.KEYWORD,
    "edition": models.PayloadSchemaType.KEYWORD,
    "fingerprint": models.PayloadSchemaType.KEYWORD,
    "chunks": models.PayloadSchemaType.KEYWORD,
}
_LOCKS: WeakKeyDictionary[QdrantClient, Any] = WeakKeyDictionary()
"""Of embedded clients, whose calls must not overlap."""

_LOCKS_LOCK = Lock()
_FULL = ("disk is full", "no space left", "disk quota", "out of disk", "available disk space")


class QdrantStore(MergedStore):
    """Documents and conversations in Qdrant, searchable on every level of their trees.

    Chunk points live in the collection itself, in the form that LangChain's Qdrant store reads; sections,
    roots and settings in a companion, ``<collection>__merged``. See `MergedStore` for what it can do.

    Args:
        location: a folder for Qdrant embedded in this process; ``":memory:"``; the URL of a server; or a
            `QdrantClient`, which stays open when the store is closed.
        collection: name of the collection; made when something is ingested, if it is not there.
        merger: see `MergedStore`, as for all that follow.
        embedder: as above.
        chunker: as above.
        contextual: as above.
    """

    def __init__(
        self,
        location: str | os.PathLike[str] | QdrantClient,
        collection: str = "documents",
        *,
        merger: SequenceMerger | None = None,
        embedder: Any = None,
        chunker: Chunker | None = None,
        contextual: bool = False,
    ) -> None:
        super().__init__(
            QdrantBackend(location, collection),
            merger=merger,
            embedder=embedder,
            chunker=chunker,
            contextual=contextual,
        )


class AsyncQdrantStore(AsyncMergedStore):
    """`QdrantStore` for an event loop; see `AsyncMergedStore`.

    With a server or an `AsyncQdrantClient`, all requests run in the caller's event loop, and operations
    proceed side by side. A folder and ``":memory:"`` work in one thread.

    Args:
        location: a folder; ``":memory:"``; the URL of a server; or an `AsyncQdrantClient`, which stays open
            when the store is closed.
        collection: as `QdrantStore`, like all that follow.
        merger: as above.
        embedder: as above.
        chunker: as above.
        contextual: as above.
    """

    def __init__(
        self,
        location: str | os.PathLike[str] | AsyncQdrantClient,
        collection: str = "documents",
        *,
        merger: SequenceMerger | None = None,
        embedder: Any = None,
        chunker: Chunker | None = None,
        contextual: bool = False,
    ) -> None:
        bridge = None
        client: Any = location
        if isinstance(location, AsyncQdrantClient):
            bridge = Bridge(lambda: location, place=_place(location), given=True)
        elif _is_url(location):
            url = os.fspath(location)
            bridge = Bridge(lambda: AsyncQdrantClient(url=url), place=url, given=False)
        store = QdrantStore(
            client if bridge is None else cast(QdrantClient, bridge),
            collection,
            merger=merger,
            embedder=embedder,
            chunker=chunker,
            contextual=contextual,
        )
        super().__init__(store, bridge=bridge, workers=1 if bridge is None else WORKERS)


class QdrantBackend(Backend):
    """One collection and its companion in Qdrant; the base class says what the methods do."""

    def __init__(self, location: str | os.PathLike[str] | QdrantClient, collection: str) -> None:
        self.collection = collection
        self._location = location
        self._client = None if isinstance(location, str | os.PathLike) else location
        self._closed = False
        self._named = False
        self._raw = ""
        self.place = _place(location)

    @property
    def exclusive(self) -> bool:
        """Whether Qdrant is embedded: its folder is locked, and memory is this process's own."""
        if isinstance(self._location, str | os.PathLike):
            return not _is_url(self._location)
        return _embedded(self._location)

    def vectors(self) -> dict[str, VectorForm] | None:
        """As the server describes them; sparse vectors and multivectors are left out."""
        with self._errors() as client:
            if not client.collection_exists(self.collection):
                return None
            described = client.get_collection(self.collection).config.params.vectors
        self._named = isinstance(described, dict)
        named = described if isinstance(described, dict) else {} if described is None else {"": described}
        return {
            name: VectorForm(
                params.size, None if params.distance == models.Distance.COSINE else params.distance.value
            )
            for name, params in named.items()
            if params.multivector_config is None
        }

    def has_companion(self) -> bool:
        """Asked by name."""
        with self._errors() as client:
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
        if chosen.distance is not None:
            raise StoreError(
                f"The collection {self.collection!r} compares by {chosen.distance}, and merged vectors are "
                "compared by cosine. Choose a collection with Distance.COSINE, or a new one."
            )
        return Layout(chosen.dimension, self._context in vectors, self.has_companion())

    def create(self, dimension: int, *, contextual: bool) -> None:
        """With the payload indexes that filters need, where the database has indexes."""
        params = models.VectorParams(size=dimension, distance=models.Distance.COSINE)
        with self._errors() as client:
            if not client.collection_exists(self.collection):
                config = {CHUNK: params, CONTEXTUAL: params} if contextual else params
                _create(client, self.collection, config)
                self._named, self._raw = contextual, CHUNK if contextual else ""
                if not _embedded(client):
                    client.create_payload_index(self.collection, "document_id", _INDEXES["document_id"])
            if not client.collection_exists(self.companion):
                _create(client, self.companion, params)
            if not _embedded(client):  # it has no indexes
                for key, schema in _INDEXES.items():
                    client.create_payload_index(self.companion, key, schema)

    def fetch(
        self, shelf: Shelf, ids: Sequence[str], *, payload: bool | list[str] = True, vectors: bool = False
    ) -> dict[str, Point]:
        """In requests of 1,000 ids."""
        found: dict[str, Point] = {}
        for start in range(0, len(ids), _IDS_AT_ONCE):
            with self._errors() as client:
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
        guard = None if below is None else _not_above(below)
        for batch in _batches(points):
            structs = self._structs(shelf, batch)
            with self._errors() as client:
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
        with self._errors() as client:
            if _embedded(client):  # a batch would have each point checked twice
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
            with self._errors() as client:
                selector: models.PointIdsList | models.FilterSelector
                if below is not None and _embedded(client):  # it would look at every point for a filter
                    stored = self.fetch(shelf, some, payload=["version"])
                    some = [i for i in some if i in stored and stored[i].payload.get("version", 0) <= below]
                if below is None or _embedded(client):
                    selector = models.PointIdsList(points=some)
                else:
                    chosen = models.HasIdCondition(has_id=some)
                    selector = models.FilterSelector(
                        filter=models.Filter(must=[chosen], must_not=_above(below))
                    )
                if some:
                    client.delete(self._name(shelf), selector, wait=True)

    def delete_document(self, shelf: Shelf, document_id: str, *, below: int | None = None) -> None:
        """By a filter, so that strays go too."""
        own = models.FieldCondition(key="document_id", match=models.MatchValue(value=document_id))
        chosen = models.Filter(must=[own], must_not=None if below is None else _above(below))
        with self._errors() as client:
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
            with self._errors() as client:
                client.update_vectors(self.collection, structs, wait=True)

    def scan(
        self, shelf: Shelf, where: Where, *, payload: bool | list[str] = True, vectors: bool = False
    ) -> Iterator[Point]:
        """In pages of 1,000 points."""
        offset: Any = None
        while True:
            with self._errors() as client:
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

    def count(self, shelf: Shelf, where: Where) -> int:
        """Exactly."""
        with self._errors() as client:
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
        asked: dict[str, Any] = {
            "query": query.tolist(),
            "using": using,
            "query_filter": self._filter(shelf, where),
            "limit": limit,
            "with_payload": payload,
        }
        with self._errors() as client:
            if exact and not _embedded(client):  # which is always exact
                asked["search_params"] = models.SearchParams(exact=True)
            if per_document:
                key = self.form.document if shelf == "chunks" else OWN_FORM.document
                groups = client.query_points_groups(
                    self._name(shelf), group_by=key, group_size=1, **asked
                ).groups
                found = [group.hits[0] for group in groups]
            else:
                found = client.query_points(self._name(shelf), **asked).points
        return [Scored(self._point(shelf, point), point.score) for point in found]

    def close(self) -> None:
        """Unless the client was passed in."""
        if self._client is not None and self._client is not self._location:
            self._client.close()
        self._closed = True

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
        return _filter(where, self.form, shelf)

    def _point(self, shelf: Shelf, record: models.Record | models.ScoredPoint) -> Point:
        raw = self._raw if shelf == "chunks" else ""
        vectors = record.vector if isinstance(record.vector, dict) else {raw: record.vector}
        return Point(
            str(record.id), record.payload or {}, _array(vectors.get(raw)), _array(vectors.get(self._context))
        )

    def _name(self, shelf: Shelf) -> str:
        return self.collection if shelf == "chunks" else self.companion

    @contextmanager
    def _errors(self) -> Iterator[QdrantClient]:
        """The client, opened if need be; what goes wrong with it becomes an error of ours."""
        if self._closed:
            raise StoreError(f"The store in {self.place} is closed; make a new one.")
        try:
            if self._client is None:
                self._client = _connect(self._location)
            if _embedded(self._client):  # which is no more than Python objects
                with _lock_of(self._client):
                    yield self._client
            else:
                yield self._client
        except MergerError:
            raise
        except Exception as error:  # HTTP, gRPC, SQLite and files each have errors of their own
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> StoreError:
        text = str(error)
        if isinstance(error, UnexpectedResponse):
            text = error.content.decode(errors="replace") if error.content else text
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or any(sign in text.lower() for sign in _FULL):
            return StoreFullError(
                f"No space is left for {self.place} ({text}). Free some, then repeat the call: it completes "
                "what is there."
            )
        if isinstance(error, ResponseHandlingException) or _unavailable(error):
            return StoreUnavailableError(
                f"Qdrant does not answer at {self.place} ({error}). Check that the server runs and the URL "
                "is right."
            )
        if "already accessed" in text:
            return StoreUnavailableError(
                f"The folder {self.place} is in use by another process, or by another client in this one. "
                "Close that, or run a Qdrant server and pass its URL."
            )
        if isinstance(error, UnexpectedResponse) and error.status_code in (401, 403):
            return StoreUnavailableError(
                f"Qdrant at {self.place} refused access ({text}). Pass a QdrantClient with an api_key."
            )
        return StoreError(f"Qdrant in {self.place} failed: {text or error!r}")


def _create(client: QdrantClient, collection: str, vectors: Any) -> None:
    try:
        client.create_collection(collection, vectors_config=vectors)
    except UnexpectedResponse as error:
        if error.status_code != 409:  # another writer made it just now
            raise


def _lock_of(client: QdrantClient) -> Any:
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(client, RLock())


def _unavailable(error: Exception) -> bool:
    """Whether a gateway found no server behind it, or gRPC none at all."""
    if isinstance(error, UnexpectedResponse):
        return error.status_code in (502, 503, 504)
    code = getattr(error, "code", None)
    return callable(code) and getattr(code(), "name", None) == "UNAVAILABLE"


def _batches(points: Sequence[Point]) -> Iterator[Sequence[Point]]:
    """Points in order, as many at a time as one request takes."""
    widest = max((point.vector.size for point in points if point.vector is not None), default=1)
    size = max(1, min(_POINTS_AT_ONCE, _FLOATS_AT_ONCE // (2 * widest)))
    for start in range(0, len(points), size):
        yield points[start : start + size]


def _above(version: int) -> list[models.Condition]:
    return [models.FieldCondition(key="version", range=models.Range(gt=version))]


def _not_above(version: int) -> models.Filter:
    return models.Filter(must_not=_above(version))


def _points(structs: list[models.PointStruct], below: int | None) -> models.PointsList:
    guard = None if below is None else _not_above(below)
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


def _place(location: str | os.PathLike[str] | QdrantClient | AsyncQdrantClient) -> str:
    if isinstance(location, str | os.PathLike):
        return os.fspath(location)
    if isinstance(location, Bridge):
        return location.place
    options = location.init_options
    return str(options.get("path") or options.get("url") or options.get("location") or options.get("host"))


def _connect(location: str | os.PathLike[str] | QdrantClient) -> QdrantClient:
    assert isinstance(location, str | os.PathLike)
    name = os.fspath(location)
    if name == ":memory:":
        return QdrantClient(name)
    if _is_url(name):
        return QdrantClient(url=name)
    return QdrantClient(path=str(Path(name)))


def _is_url(location: str | os.PathLike[str]) -> bool:
    return os.fspath(location).startswith(_URLS)


def _embedded(client: QdrantClient) -> bool:
    options = client.init_options
    return bool(options.get("path")) or options.get("location") == ":memory:"


def _vector(point: Point, named: bool) -> Any:
    if point.vector is None:
        return {}
    if not named:
        return point.vector.tolist()
    vectors = {CHUNK: point.vector.tolist()}
    if point.contextual is not None:
        vectors[CONTEXTUAL] = point.contextual.tolist()
    return vectors


def _array(values: Any) -> Vector | None:
    return None if values is None else np.asarray(values, np.float32)


def _filter(where: Where, form: ChunkForm = OWN_FORM, shelf: Shelf = "merged") -> models.Filter | None:
    must: list[Any] = [
        models.FieldCondition(key=key, match=models.MatchValue(value=value))
        for key, value in where.match.items()
    ]
    if where.documents is not None:
        must.append(_one_of((form if shelf == "chunks" else OWN_FORM).document, where.documents))
    if where.members is not None:
        must.append(models.FieldCondition(key="chunks", match=models.MatchAny(any=list(where.members))))
    if isinstance(where.filter, models.Filter):
        moved = shelf == "merged" and form.metadata != METADATA
        must.append(_moved(where.filter, form.metadata) if moved else where.filter)
    elif isinstance(where.filter, Mapping):
        inside = form.metadata if shelf == "chunks" else METADATA
        must += [
            _condition(str(key), value, f"{inside}." if inside else "") for key, value in where.filter.items()
        ]
    elif where.filter is not None:
        raise InputError(
            f"filter must be a mapping of metadata key -> value, or a qdrant_client models.Filter; a "
            f"{type(where.filter).__qualname__} arrived."
        )
    return models.Filter(must=must) if must else None


def _one_of(key: str, documents: Sequence[str]) -> Any:
    """Documents by their ids, which a collection that this package did not write may hold as numbers."""
    names: Any = models.FieldCondition(key=key, match=models.MatchAny(any=list(documents)))
    numbers = [int(name) for name in documents if name.isdecimal() and len(name) < 19]
    if key == OWN_FORM.document or not numbers:
        return names
    return models.Filter(should=[names, models.FieldCondition(key=key, match=models.MatchAny(any=numbers))])


def _moved(condition: Any, inside: str | None) -> Any:
    """A filter over the payloads of chunk points, as one over those of merged points."""
    if isinstance(condition, list):
        return [_moved(one, inside) for one in condition]
    if not isinstance(condition, BaseModel):
        return condition
    changed: dict[str, Any] = {
        name: _moved(getattr(condition, name), inside)
        for name in type(condition).model_fields
        if isinstance(getattr(condition, name), BaseModel | list)
    }
    if isinstance(condition, models.FieldCondition | models.PayloadField):
        changed["key"] = f"{METADATA}.{condition.key.removeprefix(f'{inside}.') if inside else condition.key}"
    elif isinstance(condition, models.NestedCondition):
        key = condition.nested.key
        moved = f"{METADATA}.{key.removeprefix(f'{inside}.') if inside else key}"
        changed = {"nested": condition.nested.model_copy(update={"key": moved})}
    return condition.model_copy(update=changed)


def _native(point_id: str) -> Any:
    """An id as Qdrant has it: a UUID, or a number."""
    return int(point_id) if point_id.isdecimal() and len(point_id) <= 20 else point_id


def _listed(vector: Vector | None) -> list[float]:
    assert vector is not None
    listed: list[float] = vector.tolist()
    return listed


def _condition(key: str, value: Any, inside: str) -> models.FieldCondition:
    path = inside + key
    if isinstance(value, bool | int | str):
        return models.FieldCondition(key=path, match=models.MatchValue(value=value))
    if isinstance(value, float):
        return models.FieldCondition(key=path, range=models.Range(gte=value, lte=value))
    if isinstance(value, list | tuple | set | frozenset):
        return models.FieldCondition(key=path, match=models.MatchAny(any=list(value)))
    raise InputError(
        f"The filter for {key!r} is a {type(value).__qualname__}; pass a string, number, boolean or list "
        "of them."
    )
