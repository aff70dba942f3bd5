"""The store for applications that run in an event loop."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from merger_plugins.errors import StoreError
from merger_plugins.stores.store import MergedStore
from merger_plugins.stores.upkeep import StoredDocument

P = ParamSpec("P")
R = TypeVar("R")

WORKERS = 16
"""Operations of one store that may be under way at once, where its client allows several."""

_PAGE = 100


def _awaitable(
    method: Callable[Concatenate[MergedStore, P], R],
) -> Callable[Concatenate[AsyncMergedStore, P], Coroutine[Any, Any, R]]:
    @wraps(method)
    async def call(self: AsyncMergedStore, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await self._run(method, self._store, *args, **kwargs)

    return call


class AsyncMergedStore:
    """`MergedStore` for an event loop: the same operations, to be awaited.

    Planning, merging and embedding run in worker threads, so that the loop stays free. Where the database's
    client is one of coroutines, its requests run in the caller's event loop, and as many operations as
    `WORKERS` proceed at once; an embedded database takes one at a time. An operation that was begun is
    finished even where the task that awaits it is cancelled: a write is never cut in half.

    An asynchronous context manager. One event loop for the life of a store.

    Args:
        store: the store to run.
        bridge: its client, where that is one of coroutines.
        workers: operations at once.
    """

    def __init__(self, store: MergedStore, *, bridge: Bridge | None = None, workers: int = 1) -> None:
        self._store = store
        self._bridge = bridge
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="merger_plugins")

    def __repr__(self) -> str:
        return f"Async{self._store!r}"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    ingest = _awaitable(MergedStore.ingest)
    ingest_many = _awaitable(MergedStore.ingest_many)
    append = _awaitable(MergedStore.append)
    delete = _awaitable(MergedStore.delete)
    search = _awaitable(MergedStore.search)
    recall = _awaitable(MergedStore.recall)
    merged_question = _awaitable(MergedStore.merged_question)
    inspect = _awaitable(MergedStore.inspect)
    calibrate = _awaitable(MergedStore.calibrate)
    rebuild = _awaitable(MergedStore.rebuild)
    backfill = _awaitable(MergedStore.backfill)

    async def documents(self) -> AsyncIterator[StoredDocument]:
        """The documents and conversations of the store, in no particular order."""
        stored = self._store.documents()
        while page := await self._run(_page, stored):
            for document in page:
                yield document

    async def close(self) -> None:
        """Wait for what is under way and let go of the database; the store is of no use afterwards."""
        await self._run(self._store.close)
        if self._bridge is not None:
            await self._bridge.close()
        self._threads.shutdown(wait=False)

    async def _run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        loop = asyncio.get_running_loop()
        if self._bridge is not None:
            self._bridge.attach(loop)
        try:
            future = loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))
        except RuntimeError as error:  # the threads were shut down
            raise StoreError(f"{self!r} is closed; make a new one.") from error
        return await future


class Bridge:
    """A client of coroutines that threads outside of the event loop use like one without.

    Args:
        connect: gives what has the coroutine functions; called when it is first used.
        place: where the database is, for messages.
        given: whether that came from outside, and is not to be closed here.
    """

    def __init__(self, connect: Callable[[], Any], *, place: str, given: bool) -> None:
        self.place = place
        self._given = given
        self._connect = connect
        self._client: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Use this event loop.

        Raises:
            StoreError: it is another than before; a client's connections belong to one.
        """
        if self._loop is not None and self._loop is not loop:
            raise StoreError(
                "This store was used in another event loop before, to which its connections belong. Make a "
                "store for each event loop."
            )
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        if self._client is None:
            self._client = self._connect()
        member = getattr(self._client, name)
        if not callable(member):
            return member

        @wraps(member)
        def call(*args: Any, **kwargs: Any) -> Any:
            return self._result(member(*args, **kwargs))

        return call

    async def close(self) -> None:
        """Close the client, if there was need of one, unless it came from outside."""
        if self._client is not None and not self._given:
            await self._client.close()

    def _result(self, value: Any) -> Any:
        if not inspect.isawaitable(value):
            return value
        assert self._loop is not None

        async def wait() -> Any:
            return await value

        return asyncio.run_coroutine_threadsafe(wait(), self._loop).result()


def _page(documents: Any) -> list[StoredDocument]:
    return [document for _, document in zip(range(_PAGE), documents, strict=False)]
