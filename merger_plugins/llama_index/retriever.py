"""`MergerRetriever`: a retriever over an ingestion hook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.constants import DEFAULT_SIMILARITY_TOP_K
from llama_index.core.schema import (
    BaseNode,
    IndexNode,
    MetadataMode,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.types import MetadataFilters
from llama_index.core.vector_stores.utils import metadata_dict_to_node

from merger_plugins.errors import EmptyInputError, InputError, StoreError
from merger_plugins.llama_index.calls import (
    Steps,
    arun,
    checked_store,
    of_queries,
    of_store,
    query_of_store,
    run,
)
from merger_plugins.llama_index.filters import translated
from merger_plugins.mergers.mean import MeanMerger
from merger_plugins.stores import FusionWeights, Hit, MergedStore
from merger_plugins.stores.asynchronous import AsyncMergedStore

Mode = Literal["contextual", "fused", "document", "section"]

_NODE = "_node_content"
"""Payload key under which LlamaIndex keeps a whole node, as JSON text."""

_HOST_KEYS = {"doc_id", "document_id", "ref_doc_id"}
"""Payload keys of a collection that LlamaIndex wrote, which are relations of a node and no metadata."""


class MergerRetriever(BaseRetriever):
    """Retrieves from a `QdrantStore` or `ChromaStore`, or the asynchronous form of one.

    Modes:

    - ``"fused"``: chunks by their own score, their section's and their document's.
    - ``"contextual"``: chunks by their contextual vectors, where the store has them.
    - ``"section"``: sections of ten neighbouring chunks, their texts joined.
    - ``"document"``: chunks of the best documents: of each its best ones, in reading order.

    Ids and scores are those of ``store.search`` and ``store.passages``. A query is embedded once, by
    `embed_model` or the store's own embedder, unless its bundle has an embedding; the bundle keeps it, so
    that postprocessors after this need not embed it again. An asynchronous store serves ``aretrieve`` alone;
    with a plain one, ``aretrieve`` works in threads.

    Attributes:
        similarity_top_k: how many nodes at the most.
    """

    def __init__(
        self,
        store: MergedStore | AsyncMergedStore,
        *,
        mode: Mode = "fused",
        similarity_top_k: int = DEFAULT_SIMILARITY_TOP_K,
        embed_model: BaseEmbedding | None = None,
        filters: MetadataFilters | Mapping[str, Any] | Any = None,
        doc_ids: Sequence[str] | None = None,
        weights: FusionWeights | None = None,
        chunks_per_document: int = 3,
        callback_manager: CallbackManager | None = None,
        object_map: dict[str, Any] | None = None,
        objects: list[IndexNode] | None = None,
        verbose: bool = False,
    ) -> None:
        """Say what to search.

        Args:
            store: where to search. For a collection that LlamaIndex wrote: back-filled.
            mode: see above.
            similarity_top_k: how many at the most.
            embed_model: the model that made the chunk vectors; the store's own embedder for None.
            filters: `MetadataFilters`, a mapping of metadata key -> value or list of values, or the
                database's own filter.
            doc_ids: nodes must belong to one of these documents; not in the mode ``"document"``.
            weights: of the mode ``"fused"``.
            chunks_per_document: how many of one document at the most, in the mode ``"document"``.
            callback_manager: as `BaseRetriever`, like those that follow.
            object_map: as above.
            objects: as above.
            verbose: as above.

        Raises:
            InputError: no store, or no such mode or number.
        """
        super().__init__(callback_manager, object_map, objects, verbose)
        if mode not in get_args(Mode):
            raise InputError(f"mode is {mode!r}; choose one of {', '.join(get_args(Mode))}.")
        for name, value in (
            ("similarity_top_k", similarity_top_k),
            ("chunks_per_document", chunks_per_document),
        ):
            if type(value) is not int or value < 1:
                raise InputError(f"{name} is {value!r}; it takes a number from 1 on.")
        if mode == "document" and doc_ids is not None:
            raise InputError("doc_ids choose documents, which the mode 'document' does itself: use another.")
        self.similarity_top_k = similarity_top_k
        self._store = checked_store(store)
        self._mode: Mode = mode
        self._embed_model = embed_model
        self._filters = filters
        self._doc_ids = None if doc_ids is None else list(doc_ids)
        self._weights = weights
        self._chunks = chunks_per_document

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return run(self._steps(query_bundle))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await arun(self._steps(query_bundle), light=True)

    def _steps(self, bundle: QueryBundle) -> Steps[list[NodeWithScore]]:
        query = yield from self._query(bundle)
        options: dict[str, Any] = {"filter": (yield from translated(self._filters, self._store))}
        if self._mode == "document":
            method, options["per_document"] = "passages", self._chunks
        else:
            method, options["level"], options["documents"] = "search", self._mode, self._doc_ids
            options["weights"] = self._weights
        hits = yield of_store(self._store, method, query, self.similarity_top_k, **options)
        return [NodeWithScore(node=_node(hit), score=hit.score) for hit in hits]

    def _query(self, bundle: QueryBundle) -> Steps[Any]:
        """The query's vector as it was made; the store checks it."""
        if bundle.embedding is not None:
            return bundle.embedding
        texts = bundle.embedding_strs
        if not any(text.strip() for text in texts):
            raise EmptyInputError("The query is empty; there is nothing to search for.")
        embedding: Any
        if self._embed_model is not None:
            embedding = yield of_queries(self._embed_model, texts)
        elif len(texts) == 1:
            embedding = yield query_of_store(self._store, texts[0])
        else:
            vectors = []
            for text in texts:
                vectors.append((yield query_of_store(self._store, text)))
            embedding = MeanMerger().merge(vectors)
        bundle.embedding = embedding if isinstance(embedding, list) else np.asarray(embedding).tolist()
        return embedding


def _node(hit: Hit) -> BaseNode:
    """A node whose id is the point's, so that `node_id` finds it in the collection."""
    if hit.stored is not None and _NODE in hit.stored:
        return _as_llamaindex_wrote_it(hit, hit.stored)
    metadata = dict(sorted(hit.metadata.items()))  # Chroma gives it in another order every time
    if metadata.keys() >= _HOST_KEYS:
        for key in _HOST_KEYS:
            del metadata[key]
    if hit.speaker is not None:
        metadata["speaker"] = hit.speaker
    if hit.time is not None:
        metadata["time"] = hit.time
    return TextNode(
        id_=hit.id,
        text=hit.text or "",
        metadata=metadata,
        relationships={}
        if hit.document_id is None
        else {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=hit.document_id)},
        start_char_idx=hit.start,
        end_char_idx=hit.end,
    )


def _as_llamaindex_wrote_it(hit: Hit, stored: dict[str, Any]) -> BaseNode:
    """With its relationships and what is excluded from prompts, as the host's own retriever gives it."""
    try:
        node = metadata_dict_to_node(stored)
    except (ValueError, TypeError) as error:
        raise StoreError(
            f"The point {hit.id!r} has a {_NODE!r} that LlamaIndex cannot read ({error}). Insert its "
            "document into the index again."
        ) from error
    if hit.text is not None and node.get_content(metadata_mode=MetadataMode.NONE) != hit.text:
        node.set_content(hit.text)  # which Chroma keeps apart
    if node.node_id != hit.id:
        node.node_id = hit.id
    return node
