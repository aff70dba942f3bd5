"""`MergerVectorStore`: a vector store whose merged vectors follow what is added and deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self
from weakref import WeakKeyDictionary

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore

from merger_plugins.errors import InputError, StoreError
from merger_plugins.langchain.calls import called, plain
from merger_plugins.langchain.retriever import MergerRetriever, modes
from merger_plugins.stores.asynchronous import AsyncMergedStore
from merger_plugins.stores.store import MergedStore


class MergerVectorStore(VectorStore):
    """Wraps a vector store of langchain-qdrant or langchain-chroma, and keeps its merged vectors up to date.

    ::

        vectorstore = MergerVectorStore(
            vectorstore, QdrantStore(vectorstore.client, vectorstore.collection_name, embedder=embeddings)
        )
        retriever = vectorstore.as_retriever(search_type="fused", search_kwargs={"k": 5})

    The wrapped store writes and answers as before, with its own ids and payloads. After each `add_documents`
    and `delete` the merged vectors of the documents concerned are made again, from all their stored chunks;
    under ``langchain_core.indexing.index`` too, where an edited chunk arrives as an addition and a deletion.
    Once the collection has half as many chunks more than it was calibrated on, all of them are made again.

    What the wrapped store has beside LangChain's interface is reached through this one, as its ``client``.

    Args:
        vectorstore: the application's.
        hook: an ingestion hook over the same collection, `QdrantStore` or `ChromaStore`; an asynchronous one
            for the coroutines alone.
        backfill: what `MergedStore.backfill` has to be told about the collection, such as
            ``{"group_by": "metadata.book", "order_by": "metadata.page"}``.
    """

    def __init__(
        self,
        vectorstore: VectorStore,
        hook: MergedStore | AsyncMergedStore,
        *,
        backfill: dict[str, Any] | None = None,
    ) -> None:
        if not isinstance(vectorstore, VectorStore):
            raise InputError(
                f"vectorstore is a {type(vectorstore).__qualname__}; pass a LangChain VectorStore."
            )
        if not isinstance(hook, MergedStore | AsyncMergedStore):
            raise InputError(
                f"hook is a {type(hook).__qualname__}; pass QdrantStore or ChromaStore over the same "
                "collection as the vector store."
            )
        self.vectorstore = vectorstore
        self.hook = hook
        self._options = backfill or {}
        self._turns = WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock]()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("vectorstore", "hook"):  # not there yet, as while being copied
            raise AttributeError(name)
        return getattr(self.vectorstore, name)

    @property
    def embeddings(self) -> Embeddings | None:
        """The wrapped store's."""
        return self.vectorstore.embeddings

    # -- writing ---------------------------------------------------------------------------------------

    def add_documents(self, documents: list[Document], **kwargs: Any) -> list[str]:
        """Add to the wrapped store, then merge the documents that these are chunks of.

        Raises:
            StoreError: the merged vectors could not be made, or a chunk names no document; what was added
                stays, and `MergedStore.backfill` or the same call again completes it.
        """
        before = self._documents_of(_ids_of(documents, kwargs))
        ids = self.vectorstore.add_documents(documents, **kwargs)
        self._refresh(before, ids)
        return ids

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """As `add_documents`."""
        before = self._documents_of(ids or [])
        added = self.vectorstore.add_texts(texts, metadatas, ids=ids, **kwargs)
        self._refresh(before, added)
        return added

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool | None:
        """Delete from the wrapped store, then merge what is left of the documents concerned."""
        before = self._documents_of(ids or [])
        deleted = self.vectorstore.delete(ids, **kwargs)
        self._refresh(before if ids else None, [])
        return deleted

    async def aadd_documents(self, documents: list[Document], **kwargs: Any) -> list[str]:
        """As `add_documents`, by the wrapped store's own coroutine."""
        async with self._turn():
            before = await called(self.hook, "documents_of", _ids_of(documents, kwargs))
            ids = await self.vectorstore.aadd_documents(documents, **kwargs)
            await self._arefresh(before, ids)
            return ids

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """As `add_texts`, by the wrapped store's own coroutine."""
        async with self._turn():
            before = await called(self.hook, "documents_of", ids or [])
            added = await self.vectorstore.aadd_texts(texts, metadatas, ids=ids, **kwargs)
            await self._arefresh(before, added)
            return added

    async def adelete(self, ids: list[str] | None = None, **kwargs: Any) -> bool | None:
        """As `delete`, by the wrapped store's own coroutine."""
        async with self._turn():
            before = await called(self.hook, "documents_of", ids or [])
            deleted = await self.vectorstore.adelete(ids, **kwargs)
            await self._arefresh(before if ids else None, [])
            return deleted

    # -- reading ---------------------------------------------------------------------------------------

    def as_retriever(self, **kwargs: Any) -> Any:
        """A `MergerRetriever` where ``search_type`` is one of its modes, else a retriever as before.

        Args:
            kwargs: as the wrapped store takes; ``search_kwargs`` may then hold every attribute of a
                `MergerRetriever`.
        """
        if kwargs.get("search_type") not in modes():
            return super().as_retriever(**kwargs)
        given = dict(kwargs)
        mode, search = given.pop("search_type"), given.pop("search_kwargs", None) or {}
        retriever: BaseRetriever = MergerRetriever(hook=self.hook, mode=mode, **search, **given)
        return retriever

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """The wrapped store's."""
        return self.vectorstore.similarity_search(query, k, **kwargs)

    def similarity_search_with_score(self, *args: Any, **kwargs: Any) -> list[tuple[Document, float]]:
        """The wrapped store's."""
        return self.vectorstore.similarity_search_with_score(*args, **kwargs)

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, **kwargs: Any
    ) -> list[Document]:
        """The wrapped store's."""
        return self.vectorstore.similarity_search_by_vector(embedding, k, **kwargs)

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """The wrapped store's."""
        return self.vectorstore.max_marginal_relevance_search(query, k, fetch_k, lambda_mult, **kwargs)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        **kwargs: Any,
    ) -> list[Document]:
        """The wrapped store's."""
        return self.vectorstore.max_marginal_relevance_search_by_vector(
            embedding, k, fetch_k, lambda_mult, **kwargs
        )

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The wrapped store's."""
        return self.vectorstore.get_by_ids(ids)

    async def asimilarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """The wrapped store's."""
        return await self.vectorstore.asimilarity_search(query, k, **kwargs)

    async def asimilarity_search_with_score(self, *args: Any, **kwargs: Any) -> list[tuple[Document, float]]:
        """The wrapped store's."""
        return await self.vectorstore.asimilarity_search_with_score(*args, **kwargs)

    async def asimilarity_search_by_vector(
        self, embedding: list[float], k: int = 4, **kwargs: Any
    ) -> list[Document]:
        """The wrapped store's."""
        return await self.vectorstore.asimilarity_search_by_vector(embedding, k, **kwargs)

    async def amax_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """The wrapped store's."""
        return await self.vectorstore.amax_marginal_relevance_search(query, k, fetch_k, lambda_mult, **kwargs)

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The wrapped store's."""
        return await self.vectorstore.aget_by_ids(ids)

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,  # noqa: ARG003 - the host's signature
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        vectorstore: VectorStore | None = None,
        hook: MergedStore | AsyncMergedStore | None = None,
        **kwargs: Any,
    ) -> Self:
        """Wrap a vector store that there is, and add texts.

        Args:
            texts: what to add.
            embedding: not used; the vector store has its own.
            metadatas: of the texts.
            ids: of the texts.
            vectorstore: as the class takes it, like what follows.
            hook: as above.
            kwargs: as above.

        Raises:
            InputError: no vector store, or no hook.
        """
        if vectorstore is None or hook is None:
            raise InputError(
                "MergerVectorStore wraps a vector store that there is: pass vectorstore= and hook=, or make "
                "the store first, such as QdrantVectorStore.from_texts(...), and wrap it."
            )
        made = cls(vectorstore, hook, **kwargs)
        made.add_texts(texts, metadatas, ids=ids)
        return made

    # -- inside ----------------------------------------------------------------------------------------

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return self.vectorstore._select_relevance_score_fn()

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        return self.vectorstore._similarity_search_with_relevance_scores(query, k, **kwargs)

    async def _asimilarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        return await self.vectorstore._asimilarity_search_with_relevance_scores(query, k, **kwargs)

    def _turn(self) -> asyncio.Lock:
        """Coroutines take turns, as an embedded client cannot be written to and read at once."""
        return self._turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())

    def _documents_of(self, ids: Sequence[Any], *, each: bool = False) -> list[str]:
        hook = plain(self.hook, "aadd_documents() and adelete()")
        return hook.documents_of([str(one) for one in ids], each=each)

    @property
    def _strict(self) -> bool:
        """Whether a chunk that belongs to no document is an error, as it is for a back-fill."""
        return not self._options.get("skip_missing", False)

    def _refresh(self, before: list[str] | None, ids: Sequence[Any]) -> None:
        hook = plain(self.hook, "aadd_documents() and adelete()")
        try:
            if before is None:
                hook.backfill(**self._options)
                return
            names = {*before, *self._documents_of(ids, each=self._strict)}
            hook.refresh(sorted(names), **self._options)
        except StoreError as error:
            error.add_note(_NOTE)
            raise

    async def _arefresh(self, before: list[str] | None, ids: Sequence[Any]) -> None:
        try:
            if before is None:
                await called(self.hook, "backfill", **self._options)
                return
            added = [str(one) for one in ids]
            names = {*before, *await called(self.hook, "documents_of", added, each=self._strict)}
            await called(self.hook, "refresh", sorted(names), **self._options)
        except StoreError as error:
            error.add_note(_NOTE)
            raise


_NOTE = "The vector store has what was asked for; the hook's backfill() completes the merged vectors."


def _ids_of(documents: Sequence[Document], kwargs: dict[str, Any]) -> list[str]:
    """The ids that documents will have, as far as they are given."""
    given = kwargs.get("ids") or [document.id for document in documents]
    return [str(one) for one in given if one is not None]
