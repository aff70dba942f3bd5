"""Qdrant: the ingestion hook, embedded in the process or on a server."""

from __future__ import annotations

import os
from typing import Any, Unpack, cast

from merger_plugins._extras import require
from merger_plugins.stores.asynchronous import WORKERS, AsyncMergedStore, Bridge
from merger_plugins.stores.base import StoreOptions
from merger_plugins.stores.store import MergedStore

require("qdrant_client", extra="qdrant", purpose="merger_plugins.qdrant", package="qdrant-client")

from qdrant_client import AsyncQdrantClient, QdrantClient  # noqa: E402 - after the check that it is there

from merger_plugins.qdrant.backend import QdrantBackend  # noqa: E402
from merger_plugins.qdrant.connection import TIMEOUT, Location, is_url, place_of  # noqa: E402

__all__ = ["AsyncQdrantStore", "QdrantBackend", "QdrantStore"]


class QdrantStore(MergedStore):
    """Documents and conversations in Qdrant, searchable on every level of their trees.

    Chunk points live in the collection itself, in the form that LangChain's Qdrant store reads; sections,
    roots and settings in a companion, ``<collection>__merged``. See `MergedStore` for what it can do.

    Args:
        location: a folder for Qdrant embedded in this process; ``":memory:"``; the URL of a server; or a
            `QdrantClient`, which stays open when the store is closed.
        collection: name of the collection; made when something is ingested, if it is not there.
        options: merger, embedder, chunker, contextual, half_life, pause; see `MergedStore`.
    """

    def __init__(
        self,
        location: Location,
        collection: str = "documents",
        **options: Unpack[StoreOptions],
    ) -> None:
        super().__init__(QdrantBackend(location, collection), **options)


class AsyncQdrantStore(AsyncMergedStore):
    """`QdrantStore` for an event loop; see `AsyncMergedStore`.

    With a server or an `AsyncQdrantClient`, all requests run in the caller's event loop, and operations
    proceed side by side. A folder and ``":memory:"`` work in one thread.

    Args:
        location: a folder; ``":memory:"``; the URL of a server; or an `AsyncQdrantClient`, which stays open
            when the store is closed.
        collection: as `QdrantStore`.
        options: as `QdrantStore`.
    """

    def __init__(
        self,
        location: str | os.PathLike[str] | AsyncQdrantClient,
        collection: str = "documents",
        **options: Unpack[StoreOptions],
    ) -> None:
        bridge = None
        client: Any = location
        if isinstance(location, AsyncQdrantClient):
            bridge = Bridge(lambda: location, place=place_of(location), given=True)
        elif is_url(location):
            url = os.fspath(location)
            bridge = Bridge(lambda: AsyncQdrantClient(url=url, timeout=TIMEOUT), place=url, given=False)
        store = QdrantStore(client if bridge is None else cast(QdrantClient, bridge), collection, **options)
        super().__init__(store, bridge=bridge, workers=1 if bridge is None else WORKERS)
