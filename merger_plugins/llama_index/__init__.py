"""LlamaIndex: retrieval, embeddings, ingestion and chat memory with merged vectors."""

from merger_plugins._extras import require

require(
    "llama_index.core",
    extra="llama-index",
    purpose="merger_plugins.llama_index",
    package="llama-index-core",
)

from merger_plugins.llama_index.embedding import MergerEmbedding  # noqa: E402 - after the check that it is there
from merger_plugins.llama_index.memory import RollingMemoryBlock  # noqa: E402
from merger_plugins.llama_index.postprocessor import MergerNodePostprocessor  # noqa: E402
from merger_plugins.llama_index.retriever import MergerRetriever  # noqa: E402
from merger_plugins.llama_index.transform import MergerTransform  # noqa: E402

__all__ = [
    "MergerEmbedding",
    "MergerNodePostprocessor",
    "MergerRetriever",
    "MergerTransform",
    "RollingMemoryBlock",
]
