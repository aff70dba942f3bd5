"""The bundled embedder as Chroma's `EmbeddingFunction`, which a collection remembers by its name."""

from __future__ import annotations

from typing import Any

from chromadb import Documents, EmbeddingFunction, Embeddings
from chromadb.api.types import Space
from chromadb.utils.embedding_functions import register_embedding_function

from merger_plugins.embedders import MiniLMEmbedder, load_embedder
from merger_plugins.errors import InputError


class MergerEmbeddingFunction(EmbeddingFunction[Documents]):
    """Embeds texts with the embedder that comes with this package, so that ``query_texts=`` works.

    Chroma keeps its name and settings with the collection and makes it again from them; the process must have
    imported `merger_plugins.chroma`, which registers it. Nothing is loaded before the first text.

    Args:
        model: name of the embedder's model; there is one.

    Raises:
        InputError: another name.
    """

    def __init__(self, model: str = MiniLMEmbedder.name) -> None:
        self._config = {"model": model, "dimension": MiniLMEmbedder.dimension}
        self.validate_config(self._config)
        self._embedder: MiniLMEmbedder | None = None

    def __call__(self, input: Documents) -> Embeddings:
        """(384,) float32 at unit length for each text."""
        if self._embedder is None:
            self._embedder = load_embedder()
        return list(self._embedder.embed_documents(input))

    @staticmethod
    def name() -> str:
        """What a collection's configuration calls it."""
        return "merger_plugins"

    def default_space(self) -> Space:
        """As merged vectors are compared."""
        return "cosine"

    def get_config(self) -> dict[str, Any]:
        """What `build_from_config` needs."""
        return dict(self._config)

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> MergerEmbeddingFunction:
        """Make it again; raises `InputError` for what `get_config` cannot have given."""
        MergerEmbeddingFunction.validate_config(config)
        return MergerEmbeddingFunction(config["model"])

    @staticmethod
    def validate_config(config: dict[str, Any]) -> None:
        """Raises `InputError` for another model or dimension."""
        expected = {"model": MiniLMEmbedder.name, "dimension": MiniLMEmbedder.dimension}
        if config != expected:
            raise InputError(
                f"The embedding function of this collection was made with {config!r}, and this release has "
                f"{expected!r}. Pass the embedding function that made it, or upgrade merger-plugins."
            )

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """Raises `InputError`: other vectors would be compared with those that are stored."""
        if old_config != new_config:
            raise InputError("The embedder of a collection cannot change: its vectors would not compare.")


register_embedding_function(MergerEmbeddingFunction)  # type: ignore[no-untyped-call]
