"""Base embedders: what makes the chunk and query vectors that mergers work on."""

from merger_plugins.embedders.minilm import MiniLMEmbedder, load_embedder
from merger_plugins.embedders.protocol import Embedder
from merger_plugins.embedders.wrappers import WrappedEmbedder, as_embedder

__all__ = ["Embedder", "MiniLMEmbedder", "WrappedEmbedder", "as_embedder", "load_embedder"]
