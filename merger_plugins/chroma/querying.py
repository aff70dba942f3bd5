"""The three ways of asking a collection for its nearest points."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from chromadb import Collection

from merger_plugins._batching import unit
from merger_plugins._types import Vector
from merger_plugins.chroma.flat import NO_VECTOR, Condition, narrowed

_POINTS_AT_ONCE = 1_000


@dataclass(frozen=True)
class Found:
    """A point, its cosine with the query, and the document that it belongs to where that was asked for."""

    id: str
    score: float
    document: Any = None


def queried(
    collection: Collection, query: Vector, where: Condition | None, limit: int, distance: str | None = None
) -> list[Found]:
    """By Chroma's index, best first; `distance` as `ChunkForm`."""
    answer = collection.query(
        query_embeddings=_asked(query, distance), n_results=limit, where=where, include=["distances"]
    )
    distances = answer["distances"]
    assert distances is not None
    return [Found(each, _cosine(d, distance)) for each, d in zip(answer["ids"][0], distances[0], strict=True)]


def by_document(
    collection: Collection,
    query: Vector,
    where: Condition | None,
    limit: int,
    key: str,
    distance: str | None = None,
) -> list[Found]:
    """The best point of each document, by Chroma's index; `distance` as `ChunkForm`.

    It has no groups: the documents that were found are left out of the next question, which asks for twice as
    many points, until there are enough documents or no more points. Points of no document do not count.
    """
    best: dict[Any, Found] = {}
    asked = limit
    while len(best) < limit:
        within = where
        for kind in (str, int):  # the values of a list must be of one type
            if known := [document for document in best if type(document) is kind]:
                within = narrowed(within, {key: {"$nin": known}})
        answer = collection.query(
            query_embeddings=_asked(query, distance),
            n_results=asked,
            where=within,
            include=["distances", "metadatas"],
        )
        ids, distances, flats = answer["ids"][0], answer["distances"], answer["metadatas"]
        assert distances is not None
        assert flats is not None
        for point_id, far, flat in zip(ids, distances[0], flats[0], strict=True):
            if flat and key in flat:
                best.setdefault(flat[key], Found(point_id, _cosine(far, distance), flat[key]))
        if len(ids) < asked:
            break
        asked *= 2
    return list(best.values())


def compared(collection: Collection, query: Vector, where: Condition | None, key: str | None) -> list[Found]:
    """Every point, past the index; only those of a document where the key of its id is given."""
    direction = np.asarray(query, np.float32) / np.linalg.norm(query)
    found: list[Found] = []
    offset = 0
    while True:
        answer = collection.get(
            where=where, limit=_POINTS_AT_ONCE, offset=offset, include=["embeddings", "metadatas"]
        )
        if answer["ids"]:
            vectors = np.asarray(answer["embeddings"], np.float32)
            cosines = vectors @ direction / np.linalg.norm(vectors, axis=1)
            for row, point_id in enumerate(answer["ids"]):
                flat = at(answer["metadatas"], row) or {}
                if NO_VECTOR not in flat and (key is None or key in flat):
                    found.append(Found(point_id, float(cosines[row]), flat[key] if key else None))
        if len(answer["ids"]) < _POINTS_AT_ONCE:
            break
        offset += _POINTS_AT_ONCE
    return found


def without_vectors(collection: Collection, answer: Any) -> set[str]:
    """Those of the points of an answer that have no vector of their own; asks once more only where one may.

    Reading metadata takes Chroma longer than reading vectors.
    """
    flats = answer["metadatas"]
    if flats is not None:
        return {
            point_id for point_id, flat in zip(answer["ids"], flats, strict=True) if NO_VECTOR in (flat or {})
        }
    alike = [
        point_id
        for point_id, vector in zip(answer["ids"], answer["embeddings"], strict=True)
        if vector is not None and np.count_nonzero(vector) == 1
    ]
    return without_vectors(collection, collection.get(alike, include=["metadatas"])) if alike else set()


def ranked(found: Iterable[Found], *, per_document: bool) -> list[Found]:
    """Best first, each point once; or the best of each document."""
    best: dict[Any, Found] = {}
    for each in sorted(found, key=lambda each: -each.score):
        best.setdefault(each.document if per_document else each.id, each)
    return list(best.values())


def at(column: Any, row: int) -> Any:
    """A value of an answer; None where the column was not asked for."""
    return None if column is None else column[row]


def _asked(query: Vector, distance: str | None) -> Any:
    return [np.asarray(query, np.float32) if distance is None else unit(query[None])[0]]


def _cosine(far: float, distance: str | None) -> float:
    """The cosine of two vectors by how far apart Chroma finds them."""
    return 1.0 - float(far) / (2 if distance == "l2" else 1)
