"""`MergerTransform`: section and document nodes for an ingestion pipeline."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal
from uuid import UUID, uuid5

from llama_index.core.schema import BaseNode, NodeRelationship, TextNode, TransformComponent
from pydantic import Field

from merger_plugins._batching import as_matrix
from merger_plugins._threads import in_thread
from merger_plugins._types import Vector
from merger_plugins.errors import DimensionError, InputError
from merger_plugins.llama_index.documents import (
    FINGERPRINT,
    LEVEL,
    OWN_KEYS,
    POSITION,
    STOP,
    common_metadata,
    in_reading_order,
    is_merged,
    joined_text,
    mass_of,
    source_of,
)
from merger_plugins.llama_index.fields import MergerField, Portable, resolved
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.mean import MeanMerger

logger = logging.getLogger(__name__)

_IDS = UUID("6f6c3f5b-0e3f-5a56-8a7f-2b1f7d0f4c58")


class MergerTransform(Portable, TransformComponent):
    """Adds a node for every section of ten neighbouring chunks, and one for every document.

    Goes after the embedding model. Their embeddings are merged from those of the chunk nodes, their texts are
    those of the chunks, their ids follow from the document's, and their SOURCE is the document, so that the
    pipeline replaces them when it changes. Chunk nodes are passed on as they are. Merged nodes among the
    input are made anew.

    The pipeline's cache knows a step's result by texts and settings: name the embedding model in `space`
    where the cache outlives it. With ``num_workers``, pass whole documents to the pipeline, as each worker
    merges the chunks that it has.

    Attributes:
        merger: one for the vectors' space; a name or folder for `load_merger` too. None for `MeanMerger`.
        levels: of ``"section"`` and ``"document"``. A document too short for two sections has none.
        space: a name for the vectors' space; has no effect but on the cache.
        on_missing: what to do with nodes of no document, ``"raise"`` or ``"keep"``: pass them on, with a
            warning in the log.
    """

    merger: MergerField = Field(default=None)
    levels: tuple[Literal["section", "document"], ...] = ("section", "document")
    space: str | None = None
    on_missing: Literal["raise", "keep"] = "raise"

    @classmethod
    def class_name(cls) -> str:
        """The name in dictionaries."""
        return "MergerTransform"

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[BaseNode]:  # noqa: ARG002 - the host's
        """The nodes, and after them the merged ones.

        Args:
            nodes: chunk nodes with embeddings, of one or more documents in any order.
            kwargs: the host's, not used.

        Raises:
            InputError: a node without an embedding or of no document, or embeddings that cannot be merged.
        """
        chunks = [node for node in nodes if not is_merged(node)]
        groups: dict[str, list[BaseNode]] = {}
        for node in chunks:
            if node.ref_doc_id is not None:
                groups.setdefault(node.ref_doc_id, []).append(node)
        if homeless := [node.node_id for node in chunks if node.ref_doc_id is None]:
            self._homeless(homeless)
        merger = resolved(self.merger) or MeanMerger()
        made = [
            node
            for document, own in groups.items()
            for node in self._merged(document, in_reading_order(own), merger)
        ]
        return [*chunks, *made]

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[BaseNode]:
        """As a call, in a thread."""
        return await in_thread(self.__call__, nodes, **kwargs)

    def _homeless(self, ids: Sequence[str]) -> None:
        what = f"{len(ids)} nodes, such as {ids[0]!r}, belong to no document (no SOURCE relation)"
        if self.on_missing == "raise":
            raise InputError(
                f"{what}, so there is nothing to merge them into. Pass Documents to the pipeline, or let "
                "such nodes pass with on_missing='keep'."
            )
        logger.warning("%s: they are passed on unmerged (on_missing='keep')", what)

    def _merged(self, document: str, nodes: Sequence[BaseNode], merger: SequenceMerger) -> list[TextNode]:
        rolling = merger.rolling()
        rolling.extend(_matrix(document, nodes), masses=[mass_of(node) for node in nodes])
        made = []
        if "section" in self.levels and len(nodes) > merger.fanout:
            for index, vector in enumerate(rolling.sections(1)):
                start = index * merger.fanout
                stop = min(start + merger.fanout, len(nodes))
                made.append(
                    _node(f"section/{index}/{document}", "section", nodes, start, stop, vector, merger)
                )
        if "document" in self.levels:
            made.append(
                _node(f"document/{document}", "document", nodes, 0, len(nodes), rolling.vector, merger)
            )
        return made


def _matrix(document: str, nodes: Sequence[BaseNode]) -> Any:
    lacking = [node.node_id for node in nodes if node.embedding is None]
    if lacking:
        raise InputError(
            f"{len(lacking)} nodes of {document!r} have no embedding, such as {lacking[0]!r}. Put "
            "MergerTransform after the embedding model in the transformations."
        )
    lengths = sorted({len(node.embedding or []) for node in nodes})
    if len(lengths) > 1:
        raise DimensionError(
            f"The embeddings of {document!r} have dimensions {lengths}: they are of several models. Embed "
            "all of its nodes with one."
        )
    return as_matrix([node.embedding or [] for node in nodes], what=f"The embeddings of {document!r}")


def _node(
    name: str,
    level: str,
    nodes: Sequence[BaseNode],
    start: int,
    stop: int,
    vector: Vector,
    merger: SequenceMerger,
) -> TextNode:
    chunks = nodes[start:stop]
    first, last = chunks[0], chunks[-1]
    own = {LEVEL: level, FINGERPRINT: merger.fingerprint, POSITION: start, STOP: stop}
    return TextNode(
        id_=str(uuid5(_IDS, name)),
        text=joined_text(chunks),
        embedding=vector.tolist(),
        metadata={**common_metadata(chunks), **own},
        excluded_embed_metadata_keys=[*first.excluded_embed_metadata_keys, *OWN_KEYS],
        excluded_llm_metadata_keys=[*first.excluded_llm_metadata_keys, *OWN_KEYS],
        relationships={
            **source_of(chunks),
            NodeRelationship.CHILD: [chunk.as_related_node_info() for chunk in chunks],
        },
        start_char_idx=getattr(first, "start_char_idx", None),
        end_char_idx=getattr(last, "end_char_idx", None),
    )
