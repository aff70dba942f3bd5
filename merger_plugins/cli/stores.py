"""Opening the store that the options name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merger_plugins._extras import require
from merger_plugins.errors import StoreError

if TYPE_CHECKING:
    from merger_plugins.mergers.base import SequenceMerger
    from merger_plugins.stores.store import MergedStore

KEY_VARIABLE = "QDRANT_API_KEY"
CHROMA = "chroma:"
"""What a location in Chroma begins with; any other is in Qdrant."""


@contextmanager
def opened(location: str, collection: str, *, create: bool = False) -> Iterator[MergedStore]:
    """The store in a folder or at a URL, closed afterwards.

    Args:
        location: a folder, or a URL that begins with http; with ``chroma:`` before it for Chroma.
        collection: its name.
        create: whether it may be made; a new one has contextual chunk vectors.

    Raises:
        StoreError: there is none, and `create` is off; or the database fails.
        MissingExtraError: the database's client is not installed.
    """
    if not create and not _is_there(location):
        raise StoreError(f"There is no store in {location}. {_REMEDY}")
    with _client(location) as client:
        store = _store(client, location, collection)
        try:
            if store.inspect().dimension is None:
                if not create:
                    raise StoreError(f"The store in {location} has no collection {collection!r}. {_REMEDY}")
                store.close()
                store = _store(client, location, collection, contextual=True)
            yield store
        finally:
            store.close()


@contextmanager
def connected(
    location: str, collection: str, *, merger: SequenceMerger | None = None
) -> Iterator[MergedStore]:
    """A store over a collection that another application wrote, closed afterwards; nothing is opened yet.

    Args:
        location: as `opened`.
        collection: its name.
        merger: for the store.

    Raises:
        StoreError: there is no such folder.
        MissingExtraError: the database's client is not installed.
    """
    if not _is_there(location):
        raise StoreError(
            f"There is no folder {location.removeprefix(CHROMA)}. Name the folder that your application "
            "passes to the database, or the URL of the server: --store."
        )
    with _client(location) as client, _store(client, location, collection, merger=merger) as store:
        yield store


_REMEDY = "Run: merger-plugins ingest PATHS, or name another with --store and --collection."


def _store(client: Any, location: str, collection: str, **options: Any) -> MergedStore:
    if location.startswith(CHROMA):
        from merger_plugins.chroma import ChromaStore

        return ChromaStore(location.removeprefix(CHROMA), collection, **options)
    from merger_plugins.qdrant import QdrantStore

    return QdrantStore(client or location, collection, **options)


@contextmanager
def _client(location: str) -> Iterator[Any]:
    """A client with the key of the environment, where there is one and a Qdrant server to pass it to."""
    if not location.startswith(_URLS) or not os.environ.get(KEY_VARIABLE):
        yield None
        return
    client = require(
        "qdrant_client", extra="qdrant", purpose="--store with a URL", package="qdrant-client"
    ).QdrantClient(url=location, api_key=os.environ[KEY_VARIABLE])
    try:
        yield client
    finally:
        client.close()


def _is_there(location: str) -> bool:
    place = location.removeprefix(CHROMA)
    return place.startswith(_URLS) or Path(place).is_dir()


_URLS = ("http://", "https://")
