"""One description of what is done, for the host's synchronous and its asynchronous methods.

What is to be done is a generator of `Call`s. `run` makes each call and sends back its result; `arun` awaits
the call's coroutine in the event loop and resumes the generator in a thread, where it merges vectors.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from merger_plugins._threads import in_thread
from merger_plugins.errors import InputError
from merger_plugins.stores import MergedStore
from merger_plugins.stores.asynchronous import AsyncMergedStore

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """Something outside of this process, or slow, that is asked for.

    Attributes:
        plain: gives the result.
        awaited: gives a coroutine of the same result, which does not hold up the event loop.
    """

    plain: Callable[[], Any]
    awaited: Callable[[], Awaitable[Any]]


Steps = Generator[Call, Any, T]


def run(steps: Steps[T]) -> T:
    """Make the calls one after the other and return what the steps return."""
    answer: Any = None
    while True:
        try:
            call = steps.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result
        answer = call.plain()


async def arun(steps: Steps[T], *, light: bool = False) -> T:
    """As `run`, in the event loop.

    Args:
        steps: what is to be done.
        light: whether what lies between two calls takes no time worth a thread.
    """
    answer: Any = None
    while True:
        between = _advanced(steps, answer) if light else await in_thread(_advanced, steps, answer)
        call, result = between
        if call is None:
            done: T = result
            return done
        answer = await call.awaited()


def _advanced(steps: Steps[Any], answer: Any) -> tuple[Call | None, Any]:
    try:
        return steps.send(answer), None
    except StopIteration as done:
        return None, done.value


def threaded(function: Callable[[], Any]) -> Call:
    """For what has no coroutine of its own."""
    return Call(function, lambda: in_thread(function))


def of_store(store: MergedStore | AsyncMergedStore, name: str, /, *args: Any, **kwargs: Any) -> Call:
    """A method of an ingestion hook.

    Raises:
        InputError: from `Call.plain`, where the store is one for event loops.
    """
    method = getattr(store, name)
    if isinstance(store, AsyncMergedStore):
        return Call(lambda: _refused(store), lambda: method(*args, **kwargs))
    return threaded(lambda: method(*args, **kwargs))


def merger_of_store(store: MergedStore | AsyncMergedStore) -> Call:
    """The merger at work in an ingestion hook."""
    if isinstance(store, AsyncMergedStore):
        return of_store(store, "merger")
    return threaded(lambda: store.merger)


def field_of_store(store: MergedStore | AsyncMergedStore) -> Call:
    """Where an ingestion hook's chunk points have their metadata; see `MergedStore.metadata_field`."""
    if isinstance(store, AsyncMergedStore):
        inner = store._store
        return Call(lambda: _refused(store), lambda: store._run(store._threads, lambda: inner.metadata_field))
    return threaded(lambda: store.metadata_field)


def query_of_store(store: MergedStore | AsyncMergedStore, text: str) -> Call:
    """The (d,) vector of a query by an ingestion hook's own embedder, in its coroutine where it has one."""

    async def awaited() -> Any:
        if isinstance(store, AsyncMergedStore):
            embedder = await store.embedder()
        else:
            embedder = await in_thread(lambda: store.embedder)
        source = getattr(embedder, "source", embedder)
        for name in ("aget_query_embedding", "aembed_query"):
            if callable(method := getattr(source, name, None)):
                return await method(text)
        return await in_thread(embedder.embed_query, text)

    if isinstance(store, AsyncMergedStore):
        return Call(lambda: _refused(store), awaited)
    return Call(lambda: store.embedder.embed_query(text), awaited)


def _refused(store: AsyncMergedStore) -> Any:
    raise InputError(
        f"{store!r} works in an event loop, and this call is not a coroutine. Await the method whose name "
        "begins with 'a' (aretrieve, aquery, ...), or pass a store without 'Async' in its name."
    )


def checked_store(store: Any) -> MergedStore | AsyncMergedStore:
    """An ingestion hook.

    Raises:
        InputError: it is none.
    """
    if isinstance(store, MergedStore | AsyncMergedStore):
        return store
    raise InputError(
        f"A QdrantStore, ChromaStore or the asynchronous form of one was expected, and a "
        f"{type(store).__qualname__} arrived. For a collection that LlamaIndex wrote: "
        "QdrantStore(client, collection) or ChromaStore(client, collection), then backfill() once."
    )


def of_texts(model: BaseEmbedding, texts: list[str]) -> Call:
    """The vectors of texts."""

    def plain() -> Any:
        return model.get_text_embedding_batch(texts)

    if has_coroutine_for_texts(model):
        return Call(plain, lambda: model.aget_text_embedding_batch(texts))
    return threaded(plain)


def of_queries(model: BaseEmbedding, queries: list[str]) -> Call:
    """The vector of a query, or of several together."""
    return Call(
        lambda: model.get_agg_embedding_from_queries(queries),
        lambda: model.aget_agg_embedding_from_queries(queries),
    )


def of_nodes(
    store: BasePydanticVectorStore,
    read: Callable[[Sequence[BaseNode]], dict[str, T]],
    *,
    has_coroutine: bool | None = None,
    **request: Any,
) -> Call:
    """What `read` makes of nodes in LlamaIndex's vector store; nothing where the store cannot give them.

    The host's base class raises NotImplementedError then, and some stores do where they cannot filter. The
    caller looks elsewhere, and refuses what is found nowhere.

    Args:
        store: where the nodes are.
        read: what to make of them.
        has_coroutine: whether `aget_nodes` does not block the loop; None to go by whether the store has one
            of its own, as the host's default does block.
        request: as `get_nodes`.
    """
    if has_coroutine is None:
        has_coroutine = type(store).aget_nodes is not BasePydanticVectorStore.aget_nodes

    def plain() -> dict[str, T]:
        try:
            return read(store.get_nodes(**request))
        except NotImplementedError:  # the store cannot; see above
            return {}

    async def awaited() -> dict[str, T]:
        try:
            return read(await store.aget_nodes(**request))
        except NotImplementedError:  # the store cannot; see above
            return {}

    return Call(plain, awaited) if has_coroutine else threaded(plain)


def has_coroutine_for_texts(model: Any) -> bool:
    """Whether a model embeds texts in coroutines of its own; the host's default blocks the loop."""
    return isinstance(model, BaseEmbedding) and any(
        getattr(type(model), name) is not getattr(BaseEmbedding, name)
        for name in ("_aget_text_embedding", "_aget_text_embeddings")
    )
