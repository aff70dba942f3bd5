"""What a store needs of texts: chunks, tokens, vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from merger_plugins._batching import as_matrix, as_vector
from merger_plugins._types import Matrix, Vector, VectorLike
from merger_plugins.chunking import Chunker, SentenceChunker
from merger_plugins.embedders import Embedder, MiniLMEmbedder, as_embedder, load_embedder
from merger_plugins.embedders.checked import context_of
from merger_plugins.errors import DimensionError, EmptyInputError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.calibrated import CalibratedMerger
from merger_plugins.mergers.loading import load_merger
from merger_plugins.stores.documents import words

_SPECIAL_TOKENS = 2


class Texts:
    """An embedder and a chunker; the bundled embedder is loaded once there is text to embed.

    Args:
        embedder: anything that `as_embedder` accepts, or None for the bundled one.
        chunker: None for sentences packed up to 50 tokens.
    """

    def __init__(self, embedder: Any = None, chunker: Chunker | None = None) -> None:
        self._embedder: Embedder | None = None if embedder is None else as_embedder(embedder)
        self._chunker = chunker
        self._counter: Callable[[str], int] | None = None

    @property
    def chosen(self) -> bool:
        """Whether an embedder was passed in, or was needed already."""
        return self._embedder is not None

    @property
    def bundled(self) -> bool:
        """Whether the embedder at work is the bundled one, or will be."""
        return self._embedder is None or isinstance(self._source(), MiniLMEmbedder)

    @property
    def embedder(self) -> Embedder:
        """The embedder at work; the bundled one is loaded here."""
        if self._embedder is None:
            self._embedder = load_embedder()
        return self._embedder

    @property
    def splitter(self) -> Chunker:
        """The chunker at work."""
        if self._chunker is None:
            self._chunker = SentenceChunker(count_tokens=self.count)
        return self._chunker

    @property
    def longest(self) -> int | None:
        """Tokens of text that the embedder reads; None where it does not say."""
        tokens = self._trait("max_tokens") or context_of(self._source())[0]
        return None if tokens is None else tokens - _SPECIAL_TOKENS

    def count(self, text: str) -> int:
        """Tokens of a text by the embedder's own count, or else its words."""
        if self._counter is None:
            self._counter = self._trait("count_tokens") or context_of(self._source())[1] or words
        return self._counter(text)

    def embed(self, texts: Sequence[str]) -> Matrix:
        """(n, d) chunk vectors.

        Raises:
            DimensionError: the embedder gave another number of vectors.
        """
        matrix = as_matrix(self.embedder.embed_documents(texts), what="The embedder's vectors")
        if len(matrix) != len(texts):
            raise DimensionError(f"The embedder gave {len(matrix)} vectors for {len(texts)} texts.")
        return matrix

    def query(self, query: str | VectorLike) -> Vector:
        """(d,) raw query vector of a text, or the one that arrived.

        Raises:
            EmptyInputError: a query without text.
            InputError: a vector that is none.
        """
        if isinstance(query, str):
            if not query.strip():
                raise EmptyInputError("The query is empty; there is nothing to search for.")
            return as_vector(self.embedder.embed_query(query), what="The query's vector")
        return as_vector(query, what="The query's vector")

    def default_merger(self) -> SequenceMerger:
        """The bundled merger for the bundled embedder; one that knows nothing yet for any other."""
        # The background that load_merger() brings is the bundled model's, and would mislead for another.
        if self._embedder is None or self.bundled:
            return load_merger()
        dimension = self._trait("dimension")
        if type(dimension) is not int or dimension < 1:
            dimension = len(self._embedder.embed_query("dimension"))
        return CalibratedMerger(dimension=dimension)

    def _source(self) -> Any:
        return getattr(self.embedder, "source", self.embedder)

    def _trait(self, name: str) -> Any:
        """Something that an embedder may have beside its two methods, wrapped or not."""
        return getattr(self._source(), name, None)
