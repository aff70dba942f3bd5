"""Qdrant: the ingestion hook, embedded in the process or on a server."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

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
from merger_plugins.stores.backend import Backend, Layout, Payload, Point, Scored, Shelf, Where
from merger_plugins.stores.records import METADATA
from merger_plugins.stores.store import MergedStore

require("qdrant_client", extra="qdrant", purpose="merger_plugins.qdrant", package="qdrant-client")

from qdrant_client import AsyncQdrantClient, QdrantClient, models  # noqa: E402 - after the check that it is there
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse  # noqa: E402

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
}
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
        self.place = _place(location)

    def layout(self) -> Layout | None:
        """As the server describes it."""
        with self._errors() as client:
            if not client.collection_exists(self.collection):
                return None
            vectors = client.get_collection(self.collection).config.params.vectors
            merged = client.collection_exists(self.companion)
        self._named = isinstance(vectors, dict)
        params = vectors.get(CHUNK) if isinstance(vectors, dict) else vectors
        if params is None:
            raise StoreError(
                f"The collection {self.collection!r} has vectors named {sorted(vectors or {})}, and none "
                f"named {CHUNK!r}. Choose a collection with one vector without a name, or a new one."
            )
        if params.distance != models.Distance.COSINE:
            raise StoreError(
                f"The collection {self.collection!r} compares by {params.distance}, and merged vectors are "
                "compared by cosine. Choose a collection with Distance.COSINE, or a new one."
            )
        contextual = isinstance(vectors, dict) and CONTEXTUAL in vectors
        return Layout(params.size, contextual, merged)

    def create(self, dimension: int, *, contextual: bool) -> None:
        """With the payload indexes that filters need, where the database has indexes."""
        params = models.VectorParams(size=dimension, distance=models.Distance.COSINE)
        with self._errors() as client:
            if not client.collection_exists(self.collection):
                config = {CHUNK: params, CONTEXTUAL: params} if contextual else params
                client.create_collection(self.collection, vectors_config=config)
                self._named = contextual
            if not client.collection_exists(self.companion):
                client.create_collection(self.companion, vectors_config=params)
            if not _embedded(client):  # it has no indexes
                client.create_payload_index(self.collection, "document_id", _INDEXES["document_id"])
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
                    list(ids[start : start + _IDS_AT_ONCE]),
                    with_payload=payload,
                    with_vectors=vectors,
                )
            found |= {str(record.id): _point(record) for record in records}
        return found

    def write(self, shelf: Shelf, points: Sequence[Point]) -> None:
        """In requests of at most 256 points."""
        named = self._named and shelf == "chunks"
        for batch in _batches(points):
            # Validating each number again would take longer than the merge; the vectors were checked.
            structs = [
                models.PointStruct.model_construct(
                    id=point.id, vector=_vector(point, named), payload=point.payload
                )
                for point in batch
            ]
            with self._errors() as client:
                client.upsert(self._name(shelf), structs, wait=True)

    def patch(self, shelf: Shelf, ids: Sequence[str], payload: Payload) -> None:
        """In one request."""
        with self._errors() as client:
            client.set_payload(self._name(shelf), payload, points=list(ids), wait=True)

    def delete(self, shelf: Shelf, ids: Sequence[str]) -> None:
        """In requests of 1,000 ids."""
        for start in range(0, len(ids), _IDS_AT_ONCE):
            selector = models.PointIdsList(points=list(ids[start : start + _IDS_AT_ONCE]))
            with self._errors() as client:
                client.delete(self._name(shelf), selector, wait=True)

    def delete_document(self, shelf: Shelf, document_id: str) -> None:
        """By a filter, so that strays go too."""
        selector = models.FilterSelector(
            filter=_filter(Where({"document_id": document_id})) or models.Filter()
        )
        with self._errors() as client:
            client.delete(self._name(shelf), selector, wait=True)

    def scan(self, shelf: Shelf, where: Where, *, payload: bool | list[str] = True) -> Iterator[Point]:
        """In pages of 1,000 points."""
        offset: Any = None
        while True:
            with self._errors() as client:
                records, offset = client.scroll(
                    self._name(shelf),
                    scroll_filter=_filter(where),
                    limit=_IDS_AT_ONCE,
                    offset=offset,
                    with_payload=payload,
                )
            yield from map(_point, records)
            if offset is None:
                return

    def count(self, shelf: Shelf, where: Where) -> int:
        """Exactly."""
        with self._errors() as client:
            return client.count(self._name(shelf), count_filter=_filter(where), exact=True).count

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
        using = (CONTEXTUAL if contextual else CHUNK) if self._named and shelf == "chunks" else None
        asked: dict[str, Any] = {
            "query": query.tolist(),
            "using": using,
            "query_filter": _filter(where),
            "limit": limit,
            "with_payload": payload,
        }
        with self._errors() as client:
            if exact and not _embedded(client):  # which is always exact
                asked["search_params"] = models.SearchParams(exact=True)
            if per_document:
                groups = client.query_points_groups(
                    self._name(shelf), group_by="document_id", group_size=1, **asked
                ).groups
                found = [group.hits[0] for group in groups]
            else:
                found = client.query_points(self._name(shelf), **asked).points
        return [Scored(_point(point), point.score) for point in found]

    def close(self) -> None:
        """Unless the client was passed in."""
        if self._client is not None and self._client is not self._location:
            self._client.close()
        self._closed = True

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
    return os.fspath(location).startswith(("http://", "https://"))


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


def _point(record: models.Record | models.ScoredPoint) -> Point:
    vectors = record.vector if isinstance(record.vector, dict) else {CHUNK: record.vector}
    return Point(
        str(record.id), record.payload or {}, _array(vectors.get(CHUNK)), _array(vectors.get(CONTEXTUAL))
    )


def _array(values: Any) -> Vector | None:
    return None if values is None else np.asarray(values, np.float32)


def _filter(where: Where) -> models.Filter | None:
    must: list[Any] = [
        models.FieldCondition(key=key, match=models.MatchValue(value=value))
        for key, value in where.match.items()
    ]
    if where.documents is not None:
        must.append(
            models.FieldCondition(key="document_id", match=models.MatchAny(any=list(where.documents)))
        )
    if isinstance(where.filter, models.Filter):
        must.append(where.filter)
    elif isinstance(where.filter, Mapping):
        must += [_condition(str(key), value) for key, value in where.filter.items()]
    elif where.filter is not None:
        raise InputError(
            f"filter must be a mapping of metadata key -> value, or a qdrant_client models.Filter; a "
            f"{type(where.filter).__qualname__} arrived."
        )
    return models.Filter(must=must) if must else None


def _condition(key: str, value: Any) -> models.FieldCondition:
    path = f"{METADATA}.{key}"
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
