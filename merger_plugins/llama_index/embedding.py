"""`MergerEmbedding`: long texts and several queries are merged instead of cut off and averaged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Self

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from pydantic import Field, PrivateAttr

from merger_plugins._threads import in_thread
from merger_plugins.embedders.long_texts import LongTexts
from merger_plugins.errors import EmptyInputError
from merger_plugins.llama_index.calls import has_coroutine_for_texts
from merger_plugins.llama_index.fields import AnyModel, Live, MergerField, Portable, resolved
from merger_plugins.mergers.mean import MeanMerger
from merger_plugins.stores.documents import words

_COROUTINES = ("aget_text_embedding_batch", "aget_query_embedding")


class MergerEmbedding(Portable, BaseEmbedding):
    """Wraps an embedding model so that a text longer than its context is merged instead of cut off.

    The vector of a long text points half where the vector of its opening does, as it did before, and half
    where the merge of its chunk vectors does. Short texts and queries keep exactly the numbers that the
    wrapped model gave, unless `merger` is a calibrated one, which changes the vectors of all texts: then the
    whole index must be made with it.

    `get_agg_embedding_from_queries` merges the vectors of several queries, masses in words; one query keeps
    its vector.

    Asynchronous methods await the wrapped model's own coroutines. Where a LlamaIndex model has none for
    texts, its synchronous method is called in a thread.

    Attributes:
        embed_model: LlamaIndex's or LangChain's embeddings, a sentence-transformers model; None for the
            bundled all-MiniLM-L6-v2.
        merger: one for the model's vector space; a name or folder for `load_merger` too. None for
            `MeanMerger`.
        query_merger: the same for several queries. What is calibrated belongs on one side of a comparison
            alone, so that `merger` is not the default here.
        max_tokens: the model's context; needed where it does not tell, as sentence-transformers models do.
        count_tokens: gives the number of tokens of a text; see `merger_plugins.langchain.MergerEmbeddings`.
        chunker: splits long texts; sentences packed up to 50 tokens for None.
    """

    model_name: str = Field(default="")
    embed_model: AnyModel = Field(default=None)
    merger: MergerField = Field(default=None)
    query_merger: MergerField = Field(default=None)
    max_tokens: int | None = Field(default=None)
    count_tokens: Live = Field(default=None)
    chunker: Live = Field(default=None)

    _texts: LongTexts | None = PrivateAttr(default=None)

    def __init__(
        self,
        embed_model: Any = None,
        *,
        max_tokens: int | None = None,
        count_tokens: Callable[[str], int] | None = None,
        **settings: Any,
    ) -> None:
        """Say what to wrap; see the attributes.

        Raises:
            InputError: `embed_model` is of no known kind or does not tell its context.
        """
        fields: dict[str, Any] = {"max_tokens": max_tokens, "count_tokens": count_tokens, **settings}
        super().__init__(**fields, **{"embed_model": embed_model})
        wrapped = self.long_texts().embedder
        self.model_name = self.model_name or f"merged {getattr(wrapped.source, 'model_name', wrapped.name)}"

    @classmethod
    def class_name(cls) -> str:
        """The name in dictionaries."""
        return "MergerEmbedding"

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        (state.get("__pydantic_private__") or {}).pop("_texts", None)
        return state

    def long_texts(self) -> LongTexts:
        """What does the work; made when it is first needed."""
        if self._texts is None:
            self._texts = LongTexts(
                self.embed_model,
                merger=resolved(self.merger),
                max_tokens=self.max_tokens,
                count_tokens=self.count_tokens,
                chunker=self.chunker,
                coroutines=(
                    "" if _blocks(self.embed_model) else _COROUTINES[0],
                    _COROUTINES[1],
                ),
            )
        return self._texts

    def calibrated(self, texts: Iterable[str]) -> Self:
        """An embedding for a new index, its merger calibrated on the chunk vectors of the index's texts.

        It ranks best, but shares no index with the vectors of others. Keep its `merger` with
        ``merger.save(folder)``, and pass ``merger=folder`` later.

        Args:
            texts: what the index will hold, or a sample; read once, in a stream, and embedded.

        Raises:
            InputError: there are no texts.
        """
        made: Self = self.model_copy(update={"merger": self.long_texts().calibrated(texts).merger})
        made._texts = None
        return made

    def get_agg_embedding_from_queries(
        self, queries: list[str], agg_fn: Callable[..., list[float]] | None = None
    ) -> list[float]:
        """The merged vector of several queries, (d,) at unit length; of one, its own vector.

        Args:
            queries: at least one.
            agg_fn: merges in place of `query_merger`, as in `BaseEmbedding`.

        Raises:
            EmptyInputError: no queries.
        """
        vectors = [self.get_query_embedding(query) for query in _some(queries)]
        return self._one_of(vectors, queries, agg_fn)

    async def aget_agg_embedding_from_queries(
        self, queries: list[str], agg_fn: Callable[..., list[float]] | None = None
    ) -> list[float]:
        """As `get_agg_embedding_from_queries`, all queries at once."""
        vectors = await asyncio.gather(*(self.aget_query_embedding(query) for query in _some(queries)))
        return await in_thread(self._one_of, vectors, queries, agg_fn)

    def _one_of(
        self,
        vectors: list[list[float]],
        queries: list[str],
        agg_fn: Callable[..., list[float]] | None,
    ) -> list[float]:
        if agg_fn is not None:
            return agg_fn(vectors)
        if len(vectors) == 1:
            return vectors[0]
        merger = resolved(self.query_merger) or MeanMerger()
        masses = [max(words(query), 1) for query in queries]
        merged: list[float] = merger.merge(np.asarray(vectors, np.float32), masses=masses).tolist()
        return merged

    def _get_query_embedding(self, query: str) -> list[float]:
        return self.long_texts().embed_query(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await self.long_texts().aembed_query(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self.long_texts().embed([text])[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self.long_texts().aembed([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self.long_texts().embed(texts)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await self.long_texts().aembed(texts)


def _blocks(model: Any) -> bool:
    """Whether a LlamaIndex model would embed texts in the event loop itself."""
    return isinstance(model, BaseEmbedding) and not has_coroutine_for_texts(model)


def _some(queries: list[str]) -> list[str]:
    if not queries:
        raise EmptyInputError("There are no queries to merge; pass at least one.")
    return queries
