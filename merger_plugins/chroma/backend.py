"""One collection and its companions in Chroma."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from chromadb import Collection
from chromadb.api import ClientAPI
from chromadb.errors import NotFoundError

from merger_plugins._types import Vector
from merger_plugins.chroma.connection import Connection, Location
from merger_plugins.chroma.damage import got, is_readable
from merger_plugins.chroma.embedding import MergerEmbeddingFunction
from merger_plugins.chroma.flat import (
    NO_VECTOR,
    PREFIX,
    Condition,
    conditions,
    flattened,
    key_of,
    restored,
)
from merger_plugins.chroma.querying import (
    Found,
    at,
    by_document,
    compared,
    queried,
    ranked,
    without_vectors,
)
from merger_plugins.chroma.replacing import replace, stored_points
from merger_plugins.errors import StoreError
from merger_plugins.stores.backend import (
    Backend,
    ChunkForm,
    Layout,
    Payload,
    Point,
    Scored,
    Shelf,
    Swap,
    VectorForm,
    Where,
)
from merger_plugins.stores.records import TEXT

_POINTS_AT_ONCE = 1_000
_FLOATS_AT_ONCE = 500_000
"""About 10 MB of JSON; servers refuse requests of more than 40 MB."""

_DIMENSION = f"{PREFIX}dimension"
"""Key of the companion's own metadata; Chroma knows a dimension only once there is a vector."""

_INDEX: Any = {"space": "cosine", "ef_search": 400}
"""13,760 chunk vectors of papers: 0.999 of the nearest 100 are found, against 0.968 with Chroma's 100."""


class ChromaBackend(Backend):
    """One collection and its companions; the base class says what the methods do.

    Chroma has one vector a point, so contextual vectors are in a companion of their own,
    ``<collection>__contextual``, beside ``<collection>__merged``. Points that stand there and not in the
    collection itself are what an interrupted deletion left, and are not found.

    Chroma has no conditional write: writers of one collection wait for each other in this process, and a
    folder is kept from other processes. A server can be written by several processes; let one do it.

    Args:
        location: see `ChromaStore`.
        collection: name of the chunk collection.
        embedding: whether a new collection of the bundled embedder's dimension is given its embedding
            function.
    """

    def __init__(self, location: Location, collection: str, *, embedding: bool = False) -> None:
        self.collection = collection
        self._connection = Connection(location)
        self.place = self._connection.place
        self._embedding = embedding
        self._handles: dict[str, Collection] = {}
        self._in_context: bool | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For another process: without what belongs to this one's client."""
        return {**vars(self), "_handles": {}}

    @property
    def exclusive(self) -> bool:
        """Whether Chroma runs in this process: its folder is locked, and memory is this process's own."""
        return self._connection.exclusive

    def vectors(self) -> dict[str, VectorForm] | None:
        """The one that Chroma has, without a name."""
        with self._connection.client() as client:
            chunks = self._found(client, self.collection)
        if chunks is None or (dimension := _dimension(chunks)) is None:
            return None
        space = _space(chunks)
        return {"": VectorForm(dimension, None if space == "cosine" else space)}

    def has_companion(self) -> bool:
        """Asked by name."""
        with self._connection.client() as client:
            return self._found(client, self.companion) is not None

    def layout(self) -> Layout | None:
        """As Chroma describes it; a collection that never had a vector or a companion counts as none."""
        with self._connection.client() as client:
            self._handles.clear()
            chunks, merged, contextual = (
                self._found(client, name)
                for name in (self.collection, self.companion, self._contextual_companion)
            )
            self._in_context = contextual is not None
        if chunks is None:
            return None
        for each in (chunks, merged, contextual):
            wanted = self.form.distance if each is chunks else None
            if each is not None and (space := _space(each)) != (wanted or "cosine"):
                raise StoreError(
                    f"The collection {each.name!r} compares by {space!r}, and merged vectors are compared by "
                    "cosine. Choose a collection made with configuration={'hnsw': {'space': 'cosine'}}, or a "
                    "new one; for one that another application wrote with unit vectors, run backfill()."
                )
        dimension = _dimension(chunks) or (merged and _dimension(merged))
        if not dimension:
            return None
        for each in (merged, contextual):
            if each is not None and (_dimension(each) or dimension) != dimension:
                raise StoreError(
                    f"The collection {each.name!r} has dimension {_dimension(each)}, and {self.collection!r} "
                    f"has {dimension}. It belongs to another collection of that name; delete it."
                )
        return Layout(dimension, contextual is not None, merged is not None)

    def create(self, dimension: int, *, contextual: bool) -> None:
        """Contextual vectors only for a collection that is new or empty."""
        with self._writing() as client:
            chunks = self._found(client, self.collection)
            own = self._contextual_companion
            for name in (self.companion, own):
                if chunks is None and self._found(client, name) is not None:
                    client.delete_collection(name)  # of a collection that is gone
                    self._handles.pop(name, None)
            if contextual and (chunks is None or not chunks.count()):
                self._made(client, own, dimension)
            if chunks is None:
                bundled = self._embedding and dimension == MergerEmbeddingFunction().get_config()["dimension"]
                self._made(client, self.collection, None, MergerEmbeddingFunction() if bundled else None)
            self._made(client, self.companion, dimension)
            self._in_context = self._found(client, own) is not None

    def fetch(
        self, shelf: Shelf, ids: Sequence[str], *, payload: bool | list[str] = True, vectors: bool = False
    ) -> dict[str, Point]:
        """In requests of 1,000 ids."""
        found: dict[str, Point] = {}
        wanted = list(dict.fromkeys(ids))
        with self._connection.client() as client:
            collection = self._shelf(client, shelf)
            for batch in _batches(wanted, _POINTS_AT_ONCE):
                answer = got(collection, batch, _include(payload, "embeddings" * vectors))
                without = without_vectors(collection, answer) if vectors else set()
                contextual = {}
                if vectors and shelf == "chunks" and self._has_context(client):
                    beside = got(self._handle(client, self._contextual_companion), batch, ["embeddings"])
                    contextual = dict(zip(beside["ids"], beside["embeddings"], strict=True))
                for row, point_id in enumerate(answer["ids"]):
                    flat = at(answer["metadatas"], row) or {}
                    vector = None if point_id in without else at(answer["embeddings"], row)
                    found[point_id] = Point(
                        point_id,
                        _chosen(restored(flat, at(answer["documents"], row)), payload),
                        _unit(vector) if self._distance(shelf) is None else _float32(vector),
                        _unit(contextual.get(point_id)),
                    )
        return found

    def write(self, shelf: Shelf, points: Sequence[Point], *, below: int | None = None) -> None:
        """In requests of at most 1,000 points, after one that reads what they replace."""
        with self._writing() as client:
            most = min(_POINTS_AT_ONCE, client.get_max_batch_size())
            widest = max((point.vector.size for point in points if point.vector is not None), default=1)
            for batch in _batches(points, max(1, min(most, _FLOATS_AT_ONCE // widest))):
                self._put(client, shelf, batch, below)

    def swap(
        self, swaps: Sequence[Swap], *, first: Sequence[Point] = (), below: int | None = None
    ) -> list[bool]:
        """Under the lock of this process's writers, and the token read back where there may be others."""
        if not swaps and not first:
            return []
        with self._writing() as client:
            if first:
                self.write("merged", first, below=below)
            stored = stored_points(self._shelf(client, "merged"), [swap.point.id for swap in swaps])
            versions = {point_id: each.version for point_id, each in stored.items()}
            meets = [versions.get(swap.point.id) == swap.expected for swap in swaps]
            self.write("merged", [swap.point for swap, met in zip(swaps, meets, strict=True) if met])
            if self.exclusive:
                return meets
            now = self.fetch("merged", [swap.point.id for swap in swaps], payload=["token"])
        return [
            met
            and swap.point.id in now
            and now[swap.point.id].payload.get("token") == swap.point.payload["token"]
            for swap, met in zip(swaps, meets, strict=True)
        ]

    def delete(self, shelf: Shelf, ids: Sequence[str], *, below: int | None = None) -> None:
        """In requests of 1,000 ids."""
        with self._writing() as client:
            for batch in _batches(
                list(dict.fromkeys(ids)), min(_POINTS_AT_ONCE, client.get_max_batch_size())
            ):
                self._remove(client, shelf, batch, below)

    def delete_document(self, shelf: Shelf, document_id: str, *, below: int | None = None) -> None:
        """By a filter, so that strays go too."""
        where: Any = {key_of("document_id"): {"$eq": document_id}}
        with self._writing() as client:
            collection = self._shelf(client, shelf)
            if below is not None:
                ids = collection.get(where=where, include=[])["ids"]
                for batch in _batches(ids, min(_POINTS_AT_ONCE, client.get_max_batch_size())):
                    self._remove(client, shelf, batch, below)
                return
            if shelf == "chunks" and self._has_context(client):
                self._handle(client, self._contextual_companion).delete(where=where)
            collection.delete(where=where)

    def scan(
        self, shelf: Shelf, where: Where, *, payload: bool | list[str] = True, vectors: bool = False
    ) -> Iterator[Point]:
        """The ids in one request, the points in pages of 1,000."""
        for page in _batches(sorted(self._ids(shelf, where)), _POINTS_AT_ONCE):
            points = self.fetch(shelf, page, payload=payload, vectors=vectors)
            yield from (points[point_id] for point_id in page if point_id in points)

    def count(self, shelf: Shelf, where: Where) -> int:
        """Exactly."""
        if self._conditions(shelf, where) == [None]:
            with self._connection.client() as client:
                return self._shelf(client, shelf).count()
        return len(self._ids(shelf, where))

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
        """By Chroma's index; `exact` reads the vectors and compares them here."""
        with self._connection.client() as client:
            name = self._contextual_companion if contextual else self._name(shelf)
            collection = self._handle(client, name)
            found: list[Found] = []
            key = self._document_key(shelf) if per_document else None
            for condition in self._conditions(shelf, where):
                if exact:
                    found += compared(collection, query, condition, key)
                elif key is not None:
                    found += by_document(collection, query, condition, limit, key, self._distance(shelf))
                else:
                    found += queried(collection, query, condition, limit, self._distance(shelf))
            best = ranked(found, per_document=per_document)[:limit]
            points = self.fetch(shelf, [each.id for each in best], payload=payload)
        return [Scored(points[each.id], each.score) for each in best if each.id in points]

    def mend(self) -> None:
        """In a folder of this store: begins indexes that cannot be read anew; see the module `damage`."""

        def damaged(client: ClientAPI) -> list[str]:
            names = (self.collection, self.companion, self._contextual_companion)
            found = [each for each in (self._found(client, name) for name in names) if each is not None]
            self._handles.clear()
            return [str(each.id) for each in found if not is_readable(each)]

        self._connection.mend(damaged)

    def close(self) -> None:
        """Unless the client was passed in."""
        self._handles.clear()
        self._connection.close()

    # -- inside ----------------------------------------------------------------------------------------

    @property
    def _contextual_companion(self) -> str:
        return f"{self.collection}__contextual"

    def _name(self, shelf: Shelf) -> str:
        return self.collection if shelf == "chunks" else self.companion

    def _distance(self, shelf: Shelf) -> str | None:
        return self.form.distance if shelf == "chunks" else None

    def _document_key(self, shelf: Shelf) -> str:
        return key_of((self.form if shelf == "chunks" else ChunkForm()).document)

    def _conditions(self, shelf: Shelf, where: Where) -> list[Condition | None]:
        return conditions(where, (self.form if shelf == "chunks" else ChunkForm()).document)

    def _writing(self) -> AbstractContextManager[ClientAPI]:
        return self._connection.writing(self.collection)

    def _has_context(self, client: ClientAPI) -> bool:
        if self._in_context is None:
            self._in_context = self._found(client, self._contextual_companion) is not None
        return self._in_context

    def _shelf(self, client: ClientAPI, shelf: Shelf) -> Collection:
        return self._handle(client, self._name(shelf))

    def _handle(self, client: ClientAPI, name: str) -> Collection:
        if name not in self._handles:
            # Without None, Chroma would make the collection's own embedding function, for nobody.
            self._handles[name] = client.get_collection(name, embedding_function=None)
        return self._handles[name]

    def _found(self, client: ClientAPI, name: str) -> Collection | None:
        try:
            self._handles.pop(name, None)
            return self._handle(client, name)
        except NotFoundError:
            return None

    def _made(
        self,
        client: ClientAPI,
        name: str,
        dimension: int | None,
        embedding: Any = None,
    ) -> None:
        if self._found(client, name) is None:
            self._handles[name] = client.get_or_create_collection(
                name,
                configuration={"hnsw": _INDEX},
                metadata=None if dimension is None else {_DIMENSION: dimension},
                embedding_function=embedding,
            )

    def _ids(self, shelf: Shelf, where: Where) -> list[str]:
        with self._connection.client() as client:
            collection = self._shelf(client, shelf)
            found = (collection.get(where=each, include=[])["ids"] for each in self._conditions(shelf, where))
            return list(dict.fromkeys(point_id for ids in found for point_id in ids))

    def _put(self, client: ClientAPI, shelf: Shelf, points: Sequence[Point], below: int | None) -> None:
        """One batch; the contextual vectors after the points, so that none stands alone."""
        collection = self._shelf(client, shelf)
        stored = stored_points(collection, [point.id for point in points])
        if below is not None:
            points = [p for p in points if p.id not in stored or stored[p.id].version <= below]
        rows = []
        for point in points:
            flat, text = flattened(point.payload)
            vector = point.vector
            if vector is None:
                flat[NO_VECTOR] = True
                vector = np.eye(1, self._dimension_of(client), dtype=np.float32)[0]
            rows.append((point.id, vector, flat, text))
        replace(collection, rows, stored)
        if shelf == "chunks" and self._has_context(client):
            beside = self._handle(client, self._contextual_companion)
            ids = [point.id for point in points]
            known = stored_points(beside, ids)
            replace(
                beside,
                [
                    (point.id, point.contextual, flat, None)
                    for point, (_, _, flat, _) in zip(points, rows, strict=True)
                    if point.contextual is not None
                ],
                known,
            )
            if gone := [point.id for point in points if point.contextual is None and point.id in known]:
                beside.delete(gone)

    def _remove(self, client: ClientAPI, shelf: Shelf, ids: Sequence[str], below: int | None) -> None:
        collection = self._shelf(client, shelf)
        kept = list(ids)
        if below is not None:
            stored = stored_points(collection, kept)
            kept = [point_id for point_id in kept if point_id in stored and stored[point_id].version <= below]
        if not kept:
            return
        if shelf == "chunks" and self._has_context(client):
            self._handle(client, self._contextual_companion).delete(kept)
        collection.delete(kept)

    def _dimension_of(self, client: ClientAPI) -> int:
        dimension = _dimension(self._shelf(client, "merged")) or _dimension(self._shelf(client, "chunks"))
        if dimension is None:
            raise StoreError(f"The collection {self.companion!r} does not say its dimension; delete it.")
        return dimension


def _include(payload: bool | list[str], *more: str) -> Any:
    wanted = {each for each in more if each}
    if payload is True or (payload and payload != [TEXT]):
        wanted.add("metadatas")
    if payload is True or (payload and TEXT in payload):
        wanted.add("documents")
    return sorted(wanted)


def _chosen(payload: Payload, wanted: bool | list[str]) -> Payload:
    if wanted is True:
        return payload
    return {key: payload[key] for key in wanted if key in payload} if wanted else {}


def _float32(values: Any) -> Vector | None:
    return None if values is None else np.asarray(values, np.float32)


def _unit(values: Any) -> Vector | None:
    """Of length one, as Chroma keeps what others wrote as it came."""
    vector = _float32(values)
    if vector is None:
        return None
    length = float(np.linalg.norm(vector))
    return vector if abs(length - 1) < 1e-5 or not length else vector / np.float32(length)


def _space(collection: Collection) -> str:
    configuration = collection.configuration_json or {}
    index = configuration.get("hnsw") or configuration.get("spann") or {}
    return str(index.get("space") or (collection.metadata or {}).get("hnsw:space", "l2"))


def _dimension(collection: Collection) -> int | None:
    known = collection.get_model()["dimension"] or (collection.metadata or {}).get(_DIMENSION)
    return None if known is None else int(known)


def _batches(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
