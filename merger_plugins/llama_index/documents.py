"""The nodes of a document: which there are, in which order they are read, and what text they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.schema import BaseNode, MetadataMode, NodeRelationship, RelatedNodeInfo
from llama_index.core.storage.docstore import BaseDocumentStore
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from merger_plugins.errors import StoreError
from merger_plugins.llama_index.calls import Call, Steps, of_nodes
from merger_plugins.stores.documents import words

LEVEL = "merger_level"
"""Metadata of a node that was merged: ``"section"`` or ``"document"``."""

FINGERPRINT = "merger_fingerprint"
POSITION, STOP = "merger_position", "merger_stop"

OWN_KEYS = [LEVEL, FINGERPRINT, POSITION, STOP]
"""Metadata of ours, which neither embedding nor language models are to read."""

_MOST_NODES = 100_000
_DOCUMENT_FIELDS = {"ChromaVectorStore": "document_id", "QdrantVectorStore": "doc_id"}
_GAP = "\n\n"


def is_merged(node: BaseNode) -> bool:
    """Whether `MergerTransform` made it."""
    return LEVEL in node.metadata


def members(
    documents: Sequence[str],
    docstore: BaseDocumentStore | None,
    store: BasePydanticVectorStore | None,
) -> Steps[dict[str, list[BaseNode]]]:
    """Document id -> its chunk nodes in reading order, for documents that are known to a store.

    Args:
        documents: their ids.
        docstore: LlamaIndex's store of nodes, which is asked first.
        store: LlamaIndex's vector store; one that keeps texts is asked for the rest.
    """
    found: dict[str, list[BaseNode]] = {}
    if docstore is not None:
        found = yield _of_docstore(docstore, documents)
    rest = [document for document in documents if not found.get(document)]
    if rest and store is not None:
        if store.class_name() == "SimpleVectorStore":
            if docstore is not None:
                found |= yield _of_simple(docstore, store, rest)
        else:
            found |= yield _of_vector_store(store, rest)
    return {
        document: in_reading_order([node for node in nodes if not is_merged(node)])
        for document, nodes in found.items()
        if any(not is_merged(node) for node in nodes)
    }


def _of_docstore(docstore: BaseDocumentStore, documents: Sequence[str]) -> Call:
    def plain() -> dict[str, list[BaseNode]]:
        known = {document: docstore.get_ref_doc_info(document) for document in documents}
        return {
            document: docstore.get_nodes(info.node_ids, raise_error=False)
            for document, info in known.items()
            if info is not None
        }

    async def awaited() -> dict[str, list[BaseNode]]:
        found = {}
        for document in documents:
            if (info := await docstore.aget_ref_doc_info(document)) is not None:
                found[document] = await docstore.aget_nodes(info.node_ids, raise_error=False)
        return found

    return Call(plain, awaited)


def _of_simple(docstore: BaseDocumentStore, store: Any, documents: Sequence[str]) -> Call:
    """The simple store knows the ids of a document's nodes, and the docstore their texts."""
    owners: Mapping[str, str] = store._data.text_id_to_ref_doc_id
    ids: dict[str, list[str]] = {document: [] for document in documents}
    for node_id, document in owners.items():
        if document in ids:
            ids[document].append(node_id)

    def plain() -> dict[str, list[BaseNode]]:
        return {document: docstore.get_nodes(own, raise_error=False) for document, own in ids.items()}

    async def awaited() -> dict[str, list[BaseNode]]:
        return {document: await docstore.aget_nodes(own, raise_error=False) for document, own in ids.items()}

    return Call(plain, awaited)


def _of_vector_store(store: BasePydanticVectorStore, documents: Sequence[str]) -> Call:
    kind = store.class_name()
    condition = MetadataFilter(
        key=_DOCUMENT_FIELDS.get(kind, "ref_doc_id"), value=list(documents), operator=FilterOperator.IN
    )
    request: dict[str, Any] = {"node_ids": None, "filters": MetadataFilters(filters=[condition])}

    def read(nodes: Sequence[BaseNode]) -> dict[str, list[BaseNode]]:
        if len(nodes) >= _MOST_NODES:
            raise StoreError(
                f"The {len(documents)} documents have {_MOST_NODES:,} nodes or more. Back-fill the "
                "collection and pass hook=, so that they need not be read for every query."
            )
        found: dict[str, list[BaseNode]] = {}
        for node in nodes:
            found.setdefault(node.ref_doc_id or "", []).append(node)
        return found

    if kind != "QdrantVectorStore":
        return of_nodes(store, read, **request)
    request["limit"] = _MOST_NODES
    client, coroutines = store._client, store._aclient  # type: ignore[attr-defined]
    made = of_nodes(store, read, has_coroutine=coroutines is not None, **request)
    return made if client is not None else Call(_refused, made.awaited)


def _refused() -> Any:
    raise StoreError(
        "This QdrantVectorStore has an asynchronous client alone. Await apostprocess_nodes (aquery, ...), or "
        "make it with client= too."
    )


def in_reading_order(nodes: Sequence[BaseNode]) -> list[BaseNode]:
    """The nodes of one document by their offsets; where these are missing by their links; else as is."""
    starts = [getattr(node, "start_char_idx", None) for node in nodes]
    if all(isinstance(start, int) for start in starts):
        return sorted(nodes, key=lambda node: (node.start_char_idx, node.end_char_idx or 0))  # type: ignore[attr-defined]
    known = {node.node_id: node for node in nodes}
    following = {node.node_id: _linked(node, NodeRelationship.NEXT) for node in nodes}
    linked = {later for later in following.values() if later in known}
    ordered: dict[str, BaseNode] = {}
    for node in nodes:
        at: str | None = node.node_id if node.node_id not in linked else None
        while at is not None and at in known and at not in ordered:
            ordered[at] = known[at]
            at = following[at]
    return [*ordered.values(), *(node for node in nodes if node.node_id not in ordered)]


def tells_order(nodes: Sequence[BaseNode]) -> bool:
    """Whether the nodes of one document say in which order they are read."""
    if all(isinstance(getattr(node, "start_char_idx", None), int) for node in nodes):
        return True
    known = {node.node_id for node in nodes}
    return sum(_linked(node, NodeRelationship.NEXT) in known for node in nodes) == len(nodes) - 1


def _linked(node: BaseNode, relationship: NodeRelationship) -> str | None:
    info = node.relationships.get(relationship)
    return info.node_id if isinstance(info, RelatedNodeInfo) else None


def mass_of(node: BaseNode) -> float:
    """How much text a node stands for, in words."""
    return float(max(words(node.get_content(metadata_mode=MetadataMode.NONE)), 1))


def joined_text(nodes: Sequence[BaseNode]) -> str:
    """The texts of nodes in reading order; what two neighbours have in common is there once."""
    text = ""
    end: int | None = None
    for node in nodes:
        own = node.get_content(metadata_mode=MetadataMode.NONE)
        start = getattr(node, "start_char_idx", None)
        gap = start - end if isinstance(start, int) and isinstance(end, int) else None
        if gap is not None and -len(own) <= gap < 0 and text.endswith(own[:-gap]):
            text += own[-gap:]
        else:
            between = " " if gap == 1 else "" if gap == 0 else _GAP
            text += (between if text else "") + own
        end = getattr(node, "end_char_idx", None)
    return text


def common_metadata(nodes: Sequence[BaseNode]) -> dict[str, Any]:
    """What all of these nodes have in their metadata."""
    first, *others = (node.metadata for node in nodes)
    return {
        key: value
        for key, value in first.items()
        if key not in OWN_KEYS and all(key in other and other[key] == value for other in others)
    }


def source_of(nodes: Sequence[BaseNode]) -> dict[NodeRelationship, Any]:
    """The relation to the document of these nodes."""
    source = nodes[0].source_node
    return {} if source is None else {NodeRelationship.SOURCE: source.model_copy()}
