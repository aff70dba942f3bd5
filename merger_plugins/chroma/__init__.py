"""Chroma: the ingestion hook, in this process or on a server."""

from __future__ import annotations

import os
from typing import Unpack, cast

from merger_plugins._extras import require
from merger_plugins.embedders import MiniLMEmbedder
from merger_plugins.stores.asynchronous import WORKERS, AsyncMergedStore, Bridge
from merger_plugins.stores.base import StoreOptions
from merger_plugins.stores.store import MergedStore

require("chromadb", extra="chroma", purpose="merger_plugins.chroma")

from chromadb.api import AsyncClientAPI, ClientAPI  # noqa: E402 - after the check that it is there
from chromadb.api.models.AsyncCollection import AsyncCollection  # noqa: E402

from merger_plugins.chroma.backend import ChromaBackend  # noqa: E402
from merger_plugins.chroma.connection import Location  # noqa: E402
from merger_plugins.chroma.embedding import MergerEmbeddingFunction  # noqa: E402
from merger_plugins.chroma.server import (  # noqa: E402
    connected_coroutines,
    disconnected,
    is_url,
    server_place,
)

__all__ = ["AsyncChromaStore", "ChromaBackend", "ChromaStore", "MergerEmbeddingFunction"]


class ChromaStore(MergedStore):
    """Documents and conversations in Chroma, searchable on every level of their trees.

    Chunk points live in the collection itself, in the form that LangChain's Chroma store reads: the text as
    Chroma's document, the user's metadata as it is, ours under ``merger:``. Sections, roots and settings are
    in a companion, ``<collection>__merged``, and contextual vectors, if asked for, in another,
    ``<collection>__contextual``. See `MergedStore` for what it can do.

    ``filter=`` takes a mapping of metadata key -> value or list of values, as in every store, or Chroma's own
    ``where``; both may stand in one mapping, as Chroma's keys and operators begin with ``$``:
    ``{"lang": "en", "year": {"$gte": 2020}}``. A value inside a list of the metadata is found like a value,
    one inside a mapping by its path, ``"author.name"``.

    A folder is for one process at a time; another is refused. Several stores of one process may share it. A
    server may be read by many processes and should be written by one: another is not refused, and Chroma has
    no conditional write that would keep the changes of two apart.

    Args:
        location: a folder for Chroma in this process; ``":memory:"``, which is this store's alone; the URL of
            a server, its port included; or a chromadb client, which stays open when the store is closed.
            Where this process has a client for a folder already, pass that: two of them do not see each
            other's writes.
        collection: name of the collection; made when something is ingested, if it is not there. One that
            exists must compare by cosine. A new one for the bundled embedder gets `MergerEmbeddingFunction`.
        options: merger, embedder, chunker, contextual, half_life, pause; see `MergedStore`.
    """

    def __init__(
        self,
        location: Location,
        collection: str = "documents",
        **options: Unpack[StoreOptions],
    ) -> None:
        bundled = isinstance(options.get("embedder"), MiniLMEmbedder | None)
        super().__init__(ChromaBackend(location, collection, embedding=bundled), **options)


class AsyncChromaStore(AsyncMergedStore):
    """`ChromaStore` for an event loop; see `AsyncMergedStore`.

    With a server, all requests run in the caller's event loop, and operations proceed side by side. Chroma in
    this process has no coroutines: it works in a thread.

    Args:
        location: a folder; ``":memory:"``; the URL of a server; or a client, which stays open when the store
            is closed: what `chromadb.AsyncHttpClient` gives, or one for a folder or memory.
        collection: as `ChromaStore`.
        options: as `ChromaStore`.
    """

    def __init__(
        self,
        location: str | os.PathLike[str] | AsyncClientAPI | ClientAPI,
        collection: str = "documents",
        **options: Unpack[StoreOptions],
    ) -> None:
        bridge = _bridge(location)
        store = ChromaStore(cast(Location, location) if bridge is None else bridge, collection, **options)
        super().__init__(store, bridge=bridge, workers=1 if bridge is None else WORKERS)


def _bridge(location: object) -> Bridge | None:
    """To the coroutines of a client; None where there are none."""
    also = (AsyncCollection,)
    if isinstance(location, AsyncClientAPI):
        place = server_place(location.get_settings()) or "a Chroma server"
        return Bridge(lambda: location, place=place, given=True, also=also)
    if isinstance(location, str | os.PathLike) and is_url(url := os.fspath(location)):
        return Bridge(
            lambda: connected_coroutines(url), place=url, given=False, release=disconnected, also=also
        )
    return None
