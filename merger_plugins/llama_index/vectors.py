"""Where the vectors of nodes come from: the nodes, their vector store, or embedding their text again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import BaseNode, MetadataMode, QueryBundle
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from merger_plugins._batching import as_matrix, as_vector, lengths
from merger_plugins._threads import in_thread
from merger_plugins._types import Vector
from merger_plugins.errors import DimensionError, InputError, StoreError
from merger_plugins.llama_index.calls import Call, Steps, of_nodes, of_queries, of_texts, threaded

logger = logging.getLogger(__name__)

_AT_ONCE = 1_000
"""Nodes whose vectors one request asks for."""


def query_vector(query: QueryBundle | None, model: BaseEmbedding | None) -> Steps[Vector]:
    """The (d,) vector of a query: the bundle's, else embedded once.

    Raises:
        InputError: no query, or no way to embed it; the vector is none.
    """
    if query is None:
        raise InputError("The query is needed to score nodes: pass query_bundle= or query_str=.")
    embedding: Any = query.embedding
    if embedding is None:
        if model is None:
            raise InputError(
                "The query bundle has no embedding (LlamaIndex's asynchronous retrievers do not keep it), "
                "and there is no model to make one: pass embed_model=, which made the nodes' vectors."
            )
        embedding = yield of_queries(model, query.embedding_strs)
    return as_vector(embedding, what="The query's vector")


def node_vectors(
    nodes: Sequence[BaseNode],
    query: Vector,
    store: BasePydanticVectorStore | None,
    model: BaseEmbedding | None,
) -> Steps[dict[str, Vector]]:
    """Node id -> (d,) vector, for the nodes that have one anywhere.

    Args:
        nodes: as a retriever gives them, most often without their vectors.
        query: what they will be compared with.
        store: LlamaIndex's vector store that they are in.
        model: embeds the texts of those that are not in there.

    Raises:
        DimensionError: a vector of another dimension than the query's.
        InputError: a vector that is none.
    """
    found: dict[str, Any] = {node.node_id: node.embedding for node in nodes if node.embedding is not None}
    rest = [node for node in nodes if node.node_id not in found]
    if rest and store is not None:
        for start in range(0, len(rest), _AT_ONCE):
            found |= yield stored_vectors(store, [node.node_id for node in rest[start : start + _AT_ONCE]])
        rest = [node for node in rest if node.node_id not in found]
    if rest and model is not None:
        logger.info("Embedding %d nodes again, whose vectors neither they nor the store have", len(rest))
        rows = yield of_texts(model, [node.get_content(metadata_mode=MetadataMode.EMBED) for node in rest])
        if len(rows) != len(rest):
            raise DimensionError(
                f"{type(model).__qualname__} gave {len(rows)} vectors for {len(rest)} texts. Check it with "
                "get_text_embedding_batch on these texts alone."
            )
        found |= {node.node_id: row for node, row in zip(rest, rows, strict=True)}
    return _checked(found, query)


def _checked(found: Mapping[str, Any], query: Vector) -> dict[str, Vector]:
    """All at once; where one is none, each by itself, so that the message names it."""
    if not found:
        return {}
    try:
        rows = as_matrix(list(found.values()), len(query))
    except InputError:
        return {node_id: _checked_one(vector, node_id, query) for node_id, vector in found.items()}
    return dict(zip(found, rows, strict=True))


def _checked_one(vector: Any, node_id: str, query: Vector) -> Vector:
    checked = as_vector(vector, what=f"The vector of node {node_id!r}")
    if len(checked) != len(query):
        raise DimensionError(
            f"The vector of node {node_id!r} has dimension {len(checked)}, and the query's has {len(query)}. "
            "They are of two embedding models: pass the one that made the nodes' vectors as embed_model=, "
            "and retrieve from its index alone."
        )
    return checked


def stored_vectors(store: BasePydanticVectorStore, ids: Sequence[str]) -> Call:
    """The vectors of nodes in LlamaIndex's vector store: node id -> vector, for those that are there."""
    kind = store.class_name()
    wanted = list(ids)
    if kind == "SimpleVectorStore":
        known: Mapping[str, Any] = store._data.embedding_dict  # type: ignore[attr-defined]
        return threaded(lambda: {node_id: known[node_id] for node_id in wanted if node_id in known})
    if kind == "ChromaVectorStore":
        return threaded(lambda: _of_chroma(store.client, wanted))
    if kind == "QdrantVectorStore":
        return _of_qdrant(store, wanted)

    def read(nodes: Sequence[BaseNode]) -> dict[str, Any]:
        return {node.node_id: node.embedding for node in nodes if node.embedding is not None}

    return of_nodes(store, read, node_ids=wanted)


def _of_chroma(collection: Any, ids: list[str]) -> dict[str, Any]:
    answer = collection.get(ids=ids, include=["embeddings"])
    return dict(zip(answer["ids"], answer["embeddings"], strict=True))


def _of_qdrant(store: Any, ids: list[str]) -> Call:
    request = {
        "collection_name": store.collection_name,
        "ids": ids,
        "with_payload": False,
        "with_vectors": True,
    }

    def read(points: Any) -> dict[str, Any]:
        vectors = {str(point.id): _dense(point.vector, store.dense_vector_name) for point in points}
        return {point_id: vector for point_id, vector in vectors.items() if vector is not None}

    def plain() -> dict[str, Any]:
        if store._client is None:
            raise StoreError(
                "This QdrantVectorStore has an asynchronous client alone. Await apostprocess_nodes (aquery, "
                "aretrieve), or make it with client= too."
            )
        return read(store._client.retrieve(**request))

    async def awaited() -> dict[str, Any]:
        if store._aclient is None:
            return await in_thread(plain)
        return read(await store._aclient.retrieve(**request))

    return Call(plain, awaited)


def _dense(vector: Any, name: str) -> Any:
    """The chunk vector of a point, under the store's name for it or, in old collections, under none."""
    return vector.get(name, vector.get("")) if isinstance(vector, dict) else vector


def cosine(vector: Vector, query: Vector) -> float:
    """The cosine of two vectors of any length above zero."""
    return cosines({"": vector}, query)[""]


def cosines(vectors: Mapping[str, Vector], query: Vector) -> dict[str, float]:
    """The cosines of vectors with a query, all of any length above zero."""
    if not vectors:
        return {}
    rows = np.stack(list(vectors.values()))
    found = np.einsum("nd,d->n", rows, query) / (lengths(rows)[:, 0] * np.linalg.norm(query))
    return dict(zip(vectors, found.tolist(), strict=True))
