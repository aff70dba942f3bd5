"""Embedding objects of other libraries, recognised by their methods; none of those libraries is imported."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merger_plugins._types import Matrix, Vector
from merger_plugins.embedders.minilm import MiniLMEmbedder
from merger_plugins.embedders.protocol import Embedder
from merger_plugins.errors import DimensionError, InputError, NonFiniteError


@dataclass(frozen=True)
class WrappedEmbedder:
    """Another library's embedder behind our two methods, its answers checked; `as_embedder` makes it.

    Attributes:
        source: the wrapped object.
        documents: its method for texts.
        query: its method for a query.
    """

    source: Any
    documents: Callable[[list[str]], Any]
    query: Callable[[str], Any]

    def embed_documents(self, texts: Sequence[str]) -> Matrix:
        """The source's vectors as (n, d) float32, unchanged otherwise; (0, 0) for no texts.

        Raises:
            InputError: `texts` is one string.
            DimensionError: the source did not return one vector a text, all of one length.
            NonFiniteError: the source returned NaN, infinity, or a number beyond float32.
        """
        if isinstance(texts, str):
            raise InputError(
                "embed_documents takes a sequence of texts, and one string arrived: pass [text]."
            )
        if not len(texts):
            return np.empty((0, 0), np.float32)
        return self._checked(self.documents(list(texts)), (len(texts),))

    def embed_query(self, text: str) -> Vector:
        """The source's vector of a query as (d,) float32; raises as `embed_documents` does."""
        return self._checked(self.query(text), ())

    def _checked(self, result: Any, leading: tuple[int, ...]) -> NDArray[np.float32]:
        name = f"The embedder {type(self.source).__qualname__}"
        try:
            with np.errstate(over="ignore"):
                array = np.asarray(result, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise DimensionError(
                f"{name} returned no array of numbers, all rows of one length: {error}."
            ) from error
        if array.ndim != len(leading) + 1 or array.shape[:-1] != leading or array.shape[-1] == 0:
            expected = f"({leading[0]}, d)" if leading else "(d,)"
            raise DimensionError(
                f"{name} returned an array of shape {array.shape}, where {expected} was expected."
            )
        finite = np.isfinite(array)
        if not finite.all():
            place = f" for text number {np.argwhere(~finite)[0][0]}" if leading else ""
            raise NonFiniteError(f"{name} returned NaN or infinity{place}. Check that text and the model.")
        return array


def as_embedder(source: Any) -> Embedder:
    """Give any known kind of embedding object our two methods.

    Tried in this order:

    1. ``embed_documents`` and ``embed_query``: our own protocol, and LangChain's ``Embeddings``;
    2. ``get_text_embedding_batch`` and ``get_query_embedding``: LlamaIndex's ``BaseEmbedding``;
    3. ``encode``: sentence-transformers and models like it, by ``encode_document`` and ``encode_query``
       where the object has both.

    Raises:
        InputError: it is none of these, or a class instead of an object.
    """
    if isinstance(source, MiniLMEmbedder | WrappedEmbedder):
        return source
    if isinstance(source, type):
        raise InputError(
            f"{source.__qualname__} is a class; pass an object of it: {source.__qualname__}(...)."
        )
    if _has(source, "embed_documents", "embed_query"):
        return WrappedEmbedder(source, source.embed_documents, source.embed_query)
    if _has(source, "get_text_embedding_batch", "get_query_embedding"):
        return WrappedEmbedder(source, source.get_text_embedding_batch, source.get_query_embedding)
    if _has(source, "encode_document", "encode_query"):
        return WrappedEmbedder(source, source.encode_document, partial(_first, source.encode_query))
    # Strings and tokenizers have an encode, too; the latter have a decode beside it.
    if _has(source, "encode") and not _has(source, "decode") and not isinstance(source, str):
        return WrappedEmbedder(source, source.encode, partial(_first, source.encode))
    raise InputError(
        f"{type(source).__qualname__} is no embedder that is known here. Accepted are objects with "
        "embed_documents and embed_query (this package, LangChain), with get_text_embedding_batch and "
        "get_query_embedding (LlamaIndex), or with encode (sentence-transformers)."
    )


def _has(source: Any, *methods: str) -> bool:
    return all(callable(getattr(source, method, None)) for method in methods)


def _first(encode: Callable[[list[str]], Any], text: str) -> Any:
    return encode([text])[0]
