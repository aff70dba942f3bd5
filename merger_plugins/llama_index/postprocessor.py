"""`MergerNodePostprocessor`: retrieved nodes ranked with their documents, collapsed or completed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self
from uuid import UUID, uuid5

import numpy as np
from llama_index.core.indices.base import BaseIndex
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle, TextNode
from pydantic import Field

from merger_plugins._types import Vector
from merger_plugins.errors import FingerprintError, InputError, StoreError
from merger_plugins.llama_index.calls import Steps, arun, checked_store, merger_of_store, of_store, run
from merger_plugins.llama_index.documents import (
    FINGERPRINT,
    common_metadata,
    in_reading_order,
    is_merged,
    joined_text,
    mass_of,
    members,
    source_of,
    tells_order,
)
from merger_plugins.llama_index.fields import HostModel, Live, MergerField, Portable, resolved
from merger_plugins.llama_index.vectors import cosine, cosines, node_vectors, query_vector
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.mean import MeanMerger
from merger_plugins.stores.search import FusionWeights

logger = logging.getLogger(__name__)

_IDS = UUID("0e0f6d0a-5c53-5e1f-9a53-35cf6a4f7a11")

Vectors = dict[str, Vector]


class MergerNodePostprocessor(Portable, BaseNodePostprocessor):
    """Re-scores, collapses or completes what a retriever found, with the merged vectors of the documents.

    Modes:

    - ``"context"``: every node scores w_chunk · its cosine with the query + w_root · that of its document's
      root, as in a fused search without sections; best first.
    - ``"merge"``: the nodes of one document become one: their texts in reading order, what neighbours share
      once; the merge of their vectors as its embedding, and the cosine of that as its score; best first.
      Nodes that `MergerTransform` made stay apart.
    - ``"expand"``: as ``"context"``, over the nodes that were found and all of one section of each document:
      of its sections of ten neighbouring chunks, the one whose merged vector is nearest to the query.

    Vectors of nodes are taken from the nodes, else from `vector_store`, else their texts are embedded again.
    The query's is the bundle's, else it is embedded once. Roots and sections come from `hook`; without one
    they are merged for each query from all nodes of the document that `docstore` or `vector_store` knows,
    which takes longer the longer the documents are. Nodes are never changed, but copied.

    What cannot be done exactly is an error, unless `on_missing` is ``"keep"``. Then, with a warning in the
    log, a node without a known document counts as a document of its own, and a node without a vector keeps
    its score and stands at the end.

    Attributes:
        mode: see above.
        embed_model: the model that made the nodes' vectors.
        vector_store: LlamaIndex's store that the nodes are in.
        docstore: LlamaIndex's store of the nodes themselves.
        hook: a `QdrantStore`, `ChromaStore` or asynchronous form of one over the collection that the nodes
            are in, back-filled. An asynchronous one serves the asynchronous methods alone.
        merger: what merges without a hook, and in the mode ``"merge"``; a name or folder for `load_merger`
            too. None for the hook's, else for `MeanMerger`.
        weights: of a fused score; that of sections is not used.
        on_missing: ``"raise"`` or ``"keep"``.
    """

    mode: Literal["context", "merge", "expand"] = "context"
    embed_model: HostModel = Field(default=None)
    vector_store: Live = Field(default=None)
    docstore: Live = Field(default=None)
    hook: Live = Field(default=None)
    merger: MergerField = Field(default=None)
    weights: FusionWeights = Field(default_factory=FusionWeights)
    on_missing: Literal["raise", "keep"] = "raise"

    def model_post_init(self, context: Any) -> None:
        """Refuse a hook that is none."""
        super().model_post_init(context)
        if self.hook is not None:
            checked_store(self.hook)

    @classmethod
    def class_name(cls) -> str:
        """The name in dictionaries."""
        return "MergerNodePostprocessor"

    @classmethod
    def from_index(cls, index: BaseIndex[Any], **settings: Any) -> Self:
        """For what an index retrieves: with its vector store, its docstore and its embedding model.

        Args:
            index: a `VectorStoreIndex`.
            settings: the attributes of this class.
        """
        found = {
            "vector_store": index.storage_context.vector_store,
            "docstore": index.docstore,
            "embed_model": getattr(index, "_embed_model", None),
        }
        return cls(**{**found, **settings})

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return run(self._steps(nodes, query_bundle))

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return await arun(self._steps(nodes, query_bundle))

    def _steps(
        self, nodes: Sequence[NodeWithScore], bundle: QueryBundle | None
    ) -> Steps[list[NodeWithScore]]:
        nodes = list({found.node.node_id: found for found in nodes}.values())
        if not nodes:
            return []
        query = yield from query_vector(bundle, self.embed_model)
        vectors = yield from self._vectors([found.node for found in nodes], query)
        scored = [found for found in nodes if found.node.node_id in vectors]
        without = [found for found in nodes if found.node.node_id not in vectors]
        if without:
            self._missing(
                f"{_listed(without)} have no vector: neither they nor a store that was passed have one",
                "Pass vector_store= or embed_model=",
                "stand at the end with the score that they had",
            )
        if not scored:
            return without
        if merged := [found.node for found in scored if found.node.metadata.get(FINGERPRINT)]:
            merger = yield from self._merger()
            for node in merged:
                _check_fingerprint(node, merger)
        if self.mode == "merge":
            made = self._collapsed(scored, query, vectors, (yield from self._merger()))
        else:
            made = yield from self._rescored(scored, query, vectors)
        return [*sorted(made, key=lambda found: -(found.score or 0.0)), *without]

    def _vectors(self, nodes: Sequence[BaseNode], query: Vector) -> Steps[Vectors]:
        return node_vectors(nodes, query, self.vector_store, self.embed_model)

    def _merger(self) -> Steps[SequenceMerger]:
        merger = resolved(self.merger)
        if merger is None and self.hook is not None:
            merger = yield merger_of_store(self.hook)
        return merger or MeanMerger()

    def _missing(self, what: str, remedy: str, otherwise: str) -> None:
        if self.on_missing == "raise":
            raise InputError(f"{what}. {remedy}; or with on_missing='keep' they {otherwise}.")
        logger.warning("%s: they %s (on_missing='keep')", what, otherwise)

    # -- merge -----------------------------------------------------------------------------------------

    def _collapsed(
        self, nodes: Sequence[NodeWithScore], query: Vector, vectors: Vectors, merger: SequenceMerger
    ) -> list[NodeWithScore]:
        groups: dict[str, list[BaseNode]] = {}
        for found in nodes:
            alone = is_merged(found.node) or found.node.ref_doc_id is None
            groups.setdefault(found.node.node_id if alone else found.node.ref_doc_id or "", []).append(
                found.node
            )
        homeless = [found for found in nodes if found.node.ref_doc_id is None]
        if homeless:
            self._homeless(homeless)
        ordered = [in_reading_order(group) for group in groups.values()]
        merged = merger.merge_many(
            [np.stack([vectors[node.node_id] for node in group]) for group in ordered],
            masses=[[mass_of(node) for node in group] for group in ordered],
        )
        made = []
        for group, vector in zip(ordered, merged, strict=True):
            if is_merged(group[0]):
                vector = vectors[group[0].node_id]
            made.append(NodeWithScore(node=_one_node(group, vector), score=cosine(vector, query)))
        return made

    # -- context and expand ----------------------------------------------------------------------------

    def _rescored(
        self, nodes: Sequence[NodeWithScore], query: Vector, vectors: Vectors
    ) -> Steps[list[NodeWithScore]]:
        candidates = {found.node.node_id: found.node for found in nodes}
        owners = {node_id: node.ref_doc_id for node_id, node in candidates.items()}
        documents = [document for document in dict.fromkeys(owners.values()) if document]
        if None in owners.values():
            self._homeless([found for found in nodes if owners[found.node.node_id] is None])
        if self.hook is not None:
            roots = yield from self._stored_roots(documents, query)
            siblings = (yield from self._stored_siblings(documents, query)) if self.mode == "expand" else []
        else:
            roots, siblings = yield from self._merged_roots(documents, candidates, query, vectors)
        unknown = [document for document in documents if document not in roots]
        if unknown:
            self._missing(
                f"The documents {unknown[:5]} of {len(documents)} have no merged vectors",
                "Call backfill() on the hook's store, again where documents were added since"
                if self.hook is not None
                else "Pass hook=, vector_store= or docstore=, where their nodes are",
                "count as documents of their own",
            )
        if added := {node.node_id: node for node in siblings if node.node_id not in candidates}:
            candidates |= added
            owners |= {node_id: node.ref_doc_id for node_id, node in added.items()}
            rest = [node for node_id, node in added.items() if node_id not in vectors]
            vectors = {**vectors, **(yield from self._all_vectors(rest, query))}
        own = cosines({node_id: vectors[node_id] for node_id in candidates}, query)
        weights = self.weights
        return [
            NodeWithScore(
                node=node,
                score=weights.chunk * own[node_id]
                + weights.root * roots.get(owners[node_id] or "", own[node_id]),
            )
            for node_id, node in candidates.items()
        ]

    def _all_vectors(self, nodes: Sequence[BaseNode], query: Vector) -> Steps[Vectors]:
        """As `_vectors`, for nodes that cannot be left out: a merge of a part would be another one."""
        vectors = yield from self._vectors(nodes, query)
        lacking = [node.node_id for node in nodes if node.node_id not in vectors]
        if lacking:
            raise InputError(
                f"{len(lacking)} nodes of the documents that were found have no vector, such as "
                f"{lacking[0]!r}. Pass vector_store= or embed_model=."
            )
        return vectors

    def _homeless(self, nodes: Sequence[NodeWithScore]) -> None:
        self._missing(
            f"{_listed(nodes)} belong to no document (their relationships have no SOURCE)",
            "Index Documents, whose nodes have one",
            "count as documents of their own",
        )

    def _stored_roots(self, documents: Sequence[str], query: Vector) -> Steps[dict[str, float]]:
        if not documents:
            return {}
        hits = yield of_store(
            self.hook, "search", query, len(documents), "document", documents=list(documents)
        )
        return {hit.document_id: hit.score for hit in hits}

    def _stored_siblings(self, documents: Sequence[str], query: Vector) -> Steps[list[BaseNode]]:
        if not documents:
            return []
        options = {"documents": list(documents), "group_by_document": True}
        hits = yield of_store(self.hook, "search", query, len(documents), "section", **options)
        nodes = yield from members(documents, self.docstore, self.vector_store)
        siblings: list[BaseNode] = []
        for hit in hits:
            own = nodes.get(hit.document_id, [])
            if hit.stop > len(own):
                raise StoreError(
                    f"A section of {hit.document_id!r} ends at chunk {hit.stop}, and {len(own)} of its nodes "
                    "are known. Pass vector_store= or docstore=, which hold all of them, and call backfill() "
                    "on the hook's store if the document has changed."
                )
            siblings += own[hit.position : hit.stop]
        return siblings

    def _merged_roots(
        self,
        documents: Sequence[str],
        candidates: Mapping[str, BaseNode],
        query: Vector,
        vectors: Vectors,
    ) -> Steps[tuple[dict[str, float], list[BaseNode]]]:
        """Roots' cosines, and in the mode ``"expand"`` the nodes of the best section of each document."""
        merger = yield from self._merger()
        nodes = yield from members(documents, self.docstore, self.vector_store)
        rest = [node for own in nodes.values() for node in own if node.node_id not in vectors]
        known = {**vectors, **(yield from self._all_vectors(rest, query))} if rest else vectors
        roots: dict[str, float] = {}
        siblings: list[BaseNode] = []
        unordered = [document for document, own in nodes.items() if not tells_order(own)]
        if self.mode == "expand" and unordered:
            self._missing(
                f"The nodes of the documents {unordered[:5]} do not tell their order, so that there are no "
                "sections of neighbours (neither start_char_idx nor NEXT relations)",
                "Split Documents by LlamaIndex's node parsers, which set both",
                "are taken in the order in which the store gives them",
            )
        for document, own in nodes.items():
            rolling = merger.rolling()
            rolling.extend(
                np.stack([known[node.node_id] for node in own]), masses=[mass_of(node) for node in own]
            )
            roots[document] = cosine(rolling.vector, query)
            if self.mode == "expand":
                start = int(np.argmax(rolling.sections(1) @ query)) * merger.fanout
                siblings += [
                    node.model_copy(update={"embedding": known[node.node_id].tolist()})
                    if node.node_id not in candidates
                    else node
                    for node in own[start : start + merger.fanout]
                ]
        return roots, siblings


def _one_node(nodes: Sequence[BaseNode], vector: Vector) -> TextNode | BaseNode:
    """Nodes in reading order as one, with the merge of their vectors."""
    embedding = vector.tolist()
    if len(nodes) == 1:
        return nodes[0].model_copy(update={"embedding": embedding})
    first, last = nodes[0], nodes[-1]
    return TextNode(
        id_=str(uuid5(_IDS, "/".join(node.node_id for node in nodes))),
        text=joined_text(nodes),
        embedding=embedding,
        metadata=common_metadata(nodes),
        excluded_embed_metadata_keys=first.excluded_embed_metadata_keys,
        excluded_llm_metadata_keys=first.excluded_llm_metadata_keys,
        relationships=source_of(nodes),
        start_char_idx=getattr(first, "start_char_idx", None),
        end_char_idx=getattr(last, "end_char_idx", None),
    )


def _check_fingerprint(node: BaseNode, merger: SequenceMerger) -> None:
    made_by = node.metadata[FINGERPRINT]
    if made_by != merger.fingerprint:
        raise FingerprintError(
            f"Node {node.node_id!r} was merged by the merger {made_by}, and {merger!r} has the fingerprint "
            f"{merger.fingerprint}. Pass the one that MergerTransform had as merger=."
        )


def _listed(nodes: Sequence[NodeWithScore]) -> str:
    names = ", ".join(repr(found.node.node_id) for found in nodes[:3])
    return f"{len(nodes)} nodes ({names}{', ...' if len(nodes) > 3 else ''})"
