"""The store for applications that run in an event loop."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from itertools import islice
from threading import Lock
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from merger_plugins.embedders import Embedder
from merger_plugins.errors import StoreError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.stores.checking import Problem
from merger_plugins.stores.store import MergedStore
from merger_plugins.stores.upkeep import StoredDocument

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

WORKERS = 16
"""Operations of one store that may be under way at once, where its client allows several."""

_LONG = 2
"""Operations over the whole store that may be under way at once, beside the others."""

_PAGE = 100


def _awaitable(
    method: Callable[Concatenate[MergedStore, P], R],
) -> Callable[Concatenate[AsyncMergedStore, P], Coroutine[Any, Any, R]]:
    @wraps(method)
    async def call(self: AsyncMergedStore, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await self._run(self._threads, method, self._store, *args, **kwargs)

    return call


def _lengthy(
    method: Callable[Concatenate[MergedStore, P], R],
) -> Callable[Concatenate[AsyncMergedStore, P], Coroutine[Any, Any, R]]:
    """For what goes over the whole store: short operations do not wait for it."""

    @wraps(method)
    async def call(self: AsyncMergedStore, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await self._run(self._long, method, self._store, *args, **kwargs)

    return call


class AsyncMergedStore:
    """`MergedStore` for an event loop: the same operations, to be awaited.

    Planning, merging and embedding run in worker threads, so that the loop stays free. Where the database's
    client is one of coroutines, its requests run in the caller's event loop, and as many operations as
    `WORKERS` proceed at once. On an embedded database they are done one after the other, in the order in
    which they were called. What goes over the whole store (`calibrate`, `rebuild`, `repair`, `verify`,
    `backfill`) has threads of its own, and nothing waits for it that need not. An operation that was begun is
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
        self._long = ThreadPoolExecutor(_LONG, thread_name_prefix="merger_plugins_long")
        self._closed = False

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
    extend = _awaitable(MergedStore.extend)
    replace = _awaitable(MergedStore.replace)
    remove = _awaitable(MergedStore.remove)
    delete = _awaitable(MergedStore.delete)
    search = _awaitable(MergedStore.search)
    passages = _awaitable(MergedStore.passages)
    contents = _awaitable(MergedStore.contents)
    root_vector = _awaitable(MergedStore.root_vector)
    documents_of = _awaitable(MergedStore.documents_of)
    refresh = _awaitable(MergedStore.refresh)
    recall = _awaitable(MergedStore.recall)
    merged_question = _awaitable(MergedStore.merged_question)
    inspect = _awaitable(MergedStore.inspect)
    repair = _lengthy(MergedStore.repair)
    calibrate = _lengthy(MergedStore.calibrate)
    rebuild = _lengthy(MergedStore.rebuild)
    backfill = _lengthy(MergedStore.backfill)

    async def merger(self) -> SequenceMerger:
        """The merger at work, calibrated where the store is; opens the store."""
        return await self._run(self._threads, lambda: self._store.merger)

    async def embedder(self) -> Embedder:
        """The embedder at work; the bundled one is loaded here."""
        return await self._run(self._threads, lambda: self._store.embedder)

    async def metadata_field(self) -> str | None:
        """As `MergedStore.metadata_field`."""
        return await self._run(self._threads, lambda: self._store.metadata_field)

    async def calibration_due(self) -> bool:
        """As `MergedStore.calibration_due`."""
        return await self._run(self._threads, lambda: self._store.calibration_due)

    def calibrate_in_background(self, *, if_grown: float | None = None) -> asyncio.Future[SequenceMerger]:
        """As `MergedStore.calibrate_in_background`; what it returns can be awaited, and need not be.

        Raises:
            StoreError: the store is closed.
        """
        self._attach()
        return asyncio.wrap_future(self._store.calibrate_in_background(if_grown=if_grown))

    async def documents(self) -> AsyncIterator[StoredDocument]:
        """The documents and conversations of the store, in no particular order."""
        async for document in self._each(self._threads, self._store.documents()):
            yield document

    async def verify(self, document_id: str | None = None) -> AsyncIterator[Problem]:
        """As `MergedStore.verify`, each problem as it is found."""
        async for problem in self._each(self._long, self._store.verify(document_id), page=1):
            yield problem

    async def close(self) -> None:
        """Wait for what is under way and let go of the database; the store is of no use afterwards."""
        if self._closed:
            return
        self._attach()
        self._closed = True
        for threads in (self._threads, self._long):
            await asyncio.to_thread(threads.shutdown)
        await asyncio.to_thread(self._store.close)
        if self._bridge is not None:
            await self._bridge.close()

    def _attach(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._closed:
            raise StoreError(f"{self!r} is closed; make a new one.")
        if self._bridge is not None:
            self._bridge.attach(loop)
        return loop

    async def _run(
        self, threads: ThreadPoolExecutor, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        return await self._attach().run_in_executor(threads, lambda: function(*args, **kwargs))

    async def _each(
        self, threads: ThreadPoolExecutor, items: Iterator[T], *, page: int = _PAGE
    ) -> AsyncIterator[T]:
        while some := await self._run(threads, lambda: list(islice(items, page))):
            for item in some:
                yield item


class Bridge:
    """A client of coroutines that threads outside of the event loop use like one without.

    Args:
        connect: gives what has the coroutine functions, or a coroutine that does; called once, when it is
            first used.
        place: where the database is, for messages.
        given: whether that came from outside, and is not to be closed here.
        release: closes it; its own ``close`` for None.
        also: types of what its functions return that have coroutine functions too.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        *,
        place: str,
        given: bool,
        release: Callable[[Any], Awaitable[object]] | None = None,
        also: tuple[type, ...] = (),
    ) -> None:
        self.place = place
        self._given = given
        self._connect = connect
        self._release = release
        self._also = also
        self._client: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = Lock()

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
        with self._lock:
            if self._client is None:
                self._client = self._result(self._connect())
        return self._plain(getattr(self._client, name))

    async def close(self) -> None:
        """Close the client, if there was need of one, unless it came from outside."""
        if self._client is not None and not self._given:
            await (self._release(self._client) if self._release else self._client.close())

    def _plain(self, member: Any) -> Any:
        """Something of the client's, its functions such as give results and no coroutines."""
        if isinstance(member, self._also):
            return _Plain(member, self._plain)
        if not callable(member):
            return member

        @wraps(member)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = self._result(member(*args, **kwargs))
            return self._plain(result) if isinstance(result, self._also) else result

        return call

    def _result(self, value: Any) -> Any:
        if not inspect.isawaitable(value):
            return value
        assert self._loop is not None

        async def wait() -> Any:
            return await value

        return asyncio.run_coroutine_threadsafe(wait(), self._loop).result()


class _Plain:
    """What a client of coroutines gave, as `Bridge` gives the client itself."""

    def __init__(self, target: Any, plain: Callable[[Any], Any]) -> None:
        self._target = target
        self._plain = plain

    def __getattr__(self, name: str) -> Any:
        return self._plain(getattr(self._target, name))
