"""Other libraries' embedders at full precision: answers checked, coroutines where they have them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merger_plugins._threads import in_thread
from merger_plugins.embedders.minilm import MiniLMEmbedder
from merger_plugins.embedders.wrappers import WrappedEmbedder, as_embedder
from merger_plugins.errors import DimensionError, NonFiniteError

_LONGEST_CONTEXT = 10_000_000  # a tokenizer without a limit says 1e30


@dataclass(frozen=True)
class CheckedEmbedder:
    """An embedder whose answers are checked and widened to float64, which keeps every number.

    Attributes:
        source: the object that was passed.
        documents: its method for texts.
        query: its method for a query.
        adocuments: its coroutine function for texts; None where it has none, and a thread does the work.
        aquery: the same for a query.
        max_tokens: its context; None where it does not tell.
        count_tokens: its tokenizer's count; None where that cannot be reached.
    """

    source: Any
    documents: Callable[[list[str]], Any]
    query: Callable[[str], Any]
    adocuments: Callable[[list[str]], Any] | None
    aquery: Callable[[str], Any] | None
    max_tokens: int | None
    count_tokens: Callable[[str], int] | None

    @classmethod
    def of(cls, embeddings: Any, *, coroutines: tuple[str, str]) -> CheckedEmbedder:
        """Check what an object gives.

        Args:
            embeddings: any that `as_embedder` accepts.
            coroutines: what its host calls the coroutine functions for texts and for a query.

        Raises:
            InputError: it is of no known kind.
        """
        embedder = as_embedder(embeddings)
        if isinstance(embedder, WrappedEmbedder):
            source, documents, query = embedder.source, embedder.documents, embedder.query
        else:
            source, documents, query = embedder, embedder.embed_documents, embedder.embed_query
        adocuments, aquery = (_method(source, name) for name in coroutines)
        max_tokens, count_tokens = context_of(source)
        return cls(source, documents, query, adocuments, aquery, max_tokens, count_tokens)

    @property
    def name(self) -> str:
        """What messages call it."""
        return type(self.source).__qualname__

    @property
    def bundled(self) -> bool:
        """Whether it is the bundled embedder."""
        return isinstance(self.source, MiniLMEmbedder)

    def embed(self, texts: list[str]) -> NDArray[np.float64]:
        """(n, d), one row a text."""
        return self._rows(self.documents(texts), len(texts))

    def embed_query(self, text: str) -> list[float]:
        """A query's vector."""
        return self._only(self.query(text))

    async def aembed(self, texts: list[str]) -> NDArray[np.float64]:
        """As `embed`."""
        if self.adocuments is not None:
            return await in_thread(self._rows, await self.adocuments(texts), len(texts))
        return await in_thread(self.embed, texts)

    async def aembed_query(self, text: str) -> list[float]:
        """As `embed_query`."""
        if self.aquery is not None:
            return self._only(await self.aquery(text))
        return await in_thread(self.embed_query, text)

    def _only(self, result: Any) -> list[float]:
        vector: list[float] = self._rows([result], 1)[0].tolist()
        return vector

    def _rows(self, result: Any, count: int) -> NDArray[np.float64]:
        try:
            array = np.asarray(result, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise DimensionError(
                f"{self.name} returned no rows of numbers, all of one length, for {count} texts: {error}."
            ) from error
        if array.ndim != 2 or len(array) != count or array.shape[1] == 0:
            raise DimensionError(
                f"{self.name} returned an array of shape {array.shape} for {count} texts, where ({count}, d) "
                "was expected. Check it with embed_documents on these texts alone."
            )
        if not np.isfinite(array).all():
            raise NonFiniteError(f"{self.name} returned NaN or infinity. Check the model and its precision.")
        return array


def _method(source: Any, name: str) -> Callable[..., Any] | None:
    method: Callable[..., Any] | None = getattr(source, name, None)
    return method if callable(method) else None


def context_of(source: Any) -> tuple[int | None, Callable[[str], int] | None]:
    """The context and the token count of embeddings that tell them."""
    if isinstance(source, MiniLMEmbedder):
        return source.max_tokens, source.count_tokens
    # A sentence-transformers model: itself, or held by langchain-huggingface as _client, by
    # langchain-community as client, by LlamaIndex as _model.
    for model in (source, *(getattr(source, name, None) for name in ("_client", "client", "_model"))):
        limit = getattr(model, "max_seq_length", None)
        if isinstance(limit, int) and 0 < limit < _LONGEST_CONTEXT:
            tokenizer = getattr(model, "tokenizer", None)
            known = callable(tokenizer) and hasattr(tokenizer, "model_max_length")
            return limit, partial(_tokens_of, tokenizer) if known else None
    limit = getattr(source, "embedding_ctx_length", None)  # OpenAIEmbeddings
    return (limit if isinstance(limit, int) else None), None


def _tokens_of(tokenizer: Any, text: str) -> int:
    """The token count of a Hugging Face tokenizer, without special tokens and however long the text is."""
    return len(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])
