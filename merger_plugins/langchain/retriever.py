"""`MergerRetriever`: a LangChain retriever over chunk and merged vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isnan
from numbers import Real
from typing import Any, Literal, Self, get_args

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict

from merger_plugins.conversation import ConversationQuery
from merger_plugins.errors import InputError
from merger_plugins.langchain.calls import called, embedded, plain
from merger_plugins.stores.asynchronous import AsyncMergedStore
from merger_plugins.stores.recall import HISTORY
from merger_plugins.stores.search import FusionWeights, Hit
from merger_plugins.stores.store import MergedStore

Mode = Literal["fused", "contextual", "chunk", "section", "document"]

_AWAITED = "ainvoke() or abatch()"
_TOLERATED = ("verbose",)  # `BaseRetriever.invoke` reads it and passes it on


class MergerRetriever(BaseRetriever):
    """Retrieves chunks, sections or documents by the chunk vectors and the merged vectors over them.

    In an application that has a vector store of langchain-qdrant or langchain-chroma::

        hook = QdrantStore(vectorstore.client, vectorstore.collection_name, embedder=embeddings)
        hook.backfill()
        retriever = MergerRetriever(hook=hook, k=5)    # vectorstore.as_retriever(search_kwargs={"k": 5})

    Modes:

    - ``"fused"``: chunks, by their own cosine, their section's and their document's, weighted.
    - ``"contextual"``: chunks, by contextual chunk vectors; the hook's collection has to have them.
    - ``"chunk"``: chunks by raw vectors, as before.
    - ``"section"``: sections of ten chunks, their text put together.
    - ``"document"``: chunks of the best documents: `chunks_per_document` of each, its best ones, in reading
      order.

    What is returned has the chunk's id and metadata, and in the metadata the score under `score_key`, and
    beside it ``merger``: document_id, level, position, stop, and of a fused score the cosines ``chunk``,
    ``section`` and ``root``. Asynchronous calls embed the question by the embeddings' own ``aembed_query``.

    Every attribute but the hooks can be given for one call: ``retriever.invoke(question, k=3)``.

    Attributes:
        hook: the ingestion hook over the collection, such as `QdrantStore` or `ChromaStore`; an asynchronous
            one answers ``ainvoke`` and ``abatch`` alone.
        mode: see above.
        k: how many documents to return at the most.
        filter: metadata that a chunk must have, as a mapping of key -> value or list of values, or the
            database's own filter.
        score_threshold: leave out what scores below; on the scale of the mode.
        weights: of a fused score.
        chunks_per_document: in the mode ``"document"``.
        conversation: id of a stored conversation in which the question is asked; it is merged with the last
            turns, as far as it needs them.
        conversations: the hook that holds conversations; None for `hook`.
        history: how many turns those are at the most.
        score_key: metadata key of the score; None for no score.
    """

    hook: MergedStore | AsyncMergedStore
    mode: Mode = "fused"
    k: int = 4
    filter: Any = None
    score_threshold: float | None = None
    weights: FusionWeights | None = None
    chunks_per_document: int = 3
    conversation: str | None = None
    conversations: MergedStore | AsyncMergedStore | None = None
    history: int = HISTORY
    score_key: str | None = "score"

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,  # noqa: ARG002 - the host's signature
        **kwargs: Any,
    ) -> list[Document]:
        asked = _Asked.of(self, kwargs)
        _check_question(query)
        hook = plain(self.hook, _AWAITED)
        question: str | ConversationQuery = query
        if asked.conversation is not None:
            told = plain(self.conversations or hook, _AWAITED)
            question = told.merged_question(query, asked.conversation, history=asked.history)
        method, arguments = asked.call()
        return self._documents(asked, getattr(hook, method)(question, **arguments))

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,  # noqa: ARG002
        **kwargs: Any,
    ) -> list[Document]:
        asked = _Asked.of(self, kwargs)
        _check_question(query)
        told = self.hook if asked.conversation is None else self.conversations or self.hook
        vector = await embedded(told, query)
        question: Any = query if vector is None else vector
        if asked.conversation is not None:
            about = {"vector": vector, "history": asked.history}
            question = await called(told, "merged_question", query, asked.conversation, **about)
        method, arguments = asked.call()
        return self._documents(asked, await called(self.hook, method, question, **arguments))

    def _documents(self, asked: _Asked, hits: list[Hit]) -> list[Document]:
        least = asked.score_threshold
        return [
            Document(id=hit.id, page_content=hit.text or "", metadata=_metadata(hit, self.score_key))
            for hit in hits
            if least is None or hit.score >= least
        ]


@dataclass(frozen=True)
class _Asked:
    """What one call asks for."""

    mode: Mode
    k: int
    filter: Any
    score_threshold: float | None
    weights: FusionWeights | None
    chunks_per_document: int
    conversation: str | None
    history: int

    @classmethod
    def of(cls, retriever: MergerRetriever, given: Mapping[str, Any]) -> Self:
        """The retriever's own values, but for those given for this call.

        Raises:
            InputError: it is none of them, or out of range.
        """
        names = [field.name for field in fields(cls)]
        unknown = sorted(set(given) - set(names) - set(_TOLERATED))
        if unknown:
            raise InputError(f"MergerRetriever takes no {', '.join(unknown)}; it takes {', '.join(names)}.")
        asked = cls(**{name: given.get(name, getattr(retriever, name)) for name in names})
        if asked.mode not in get_args(Mode):
            raise InputError(f"mode is {asked.mode!r}; choose one of {', '.join(get_args(Mode))}.")
        for name in ("k", "chunks_per_document"):
            if type(value := getattr(asked, name)) is not int or value < 1:
                raise InputError(f"{name} is {value!r}; it takes a number from 1 on.")
        least: Any = asked.score_threshold
        if least is not None and (not isinstance(least, Real) or isnan(least)):
            raise InputError(f"score_threshold is {least!r}; it takes a number, or None.")
        weights: object = asked.weights
        if not isinstance(weights, FusionWeights | None):
            raise InputError(f"weights is {weights!r}; it takes FusionWeights, or None.")
        return asked

    def call(self) -> tuple[str, dict[str, Any]]:
        """The hook's method that answers, and its arguments beside the question."""
        if self.mode == "document":
            return "passages", {"k": self.k, "per_document": self.chunks_per_document, "filter": self.filter}
        level = {"k": self.k, "level": self.mode, "filter": self.filter, "weights": self.weights}
        return "search", level


def _check_question(question: object) -> None:
    if not isinstance(question, str):
        raise InputError(
            f"The question is a {type(question).__qualname__}, where a str was expected. In a chain, take it "
            "out first: itemgetter('question') | retriever."
        )


def _metadata(hit: Hit, score_key: str | None) -> dict[str, Any]:
    merged: dict[str, Any] = {
        "document_id": hit.document_id,
        "level": hit.level,
        "position": hit.position,
        "stop": hit.stop,
    }
    if hit.parts is not None:
        merged |= {"chunk": hit.parts.chunk, "section": hit.parts.section, "root": hit.parts.root}
    told = {"speaker": hit.speaker, "time": hit.time}
    merged |= {name: value for name, value in told.items() if value is not None}
    return {**hit.metadata, **({score_key: hit.score} if score_key else {}), "merger": merged}


def modes() -> tuple[str, ...]:
    """The modes of a `MergerRetriever`."""
    return get_args(Mode)
