"""What this package asks of an embedding model: two methods."""

from collections.abc import Sequence
from typing import Protocol

from merger_plugins._types import Matrix, Vector


class Embedder(Protocol):
    """Turns text into vectors of one space, in which documents and queries are compared by cosine.

    Vectors need not have unit length. Results depend on the text alone, not on what is embedded with it.
    """

    def embed_documents(self, texts: Sequence[str]) -> Matrix:
        """One vector a text, in the order of the texts: (n, d) float32, finite; no texts give no rows."""

    def embed_query(self, text: str) -> Vector:
        """The vector of a search query: (d,) float32, finite."""
