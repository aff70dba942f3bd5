"""Opening the store that the options name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merger_plugins.errors import StoreError

if TYPE_CHECKING:
    from merger_plugins.mergers.base import SequenceMerger
    from merger_plugins.qdrant import QdrantStore

KEY_VARIABLE = "QDRANT_API_KEY"


@contextmanager
def opened(location: str, collection: str, *, create: bool = False) -> Iterator[QdrantStore]:
    """The store in a folder or at a URL, closed afterwards.

    Args:
        location: a folder, or a URL that begins with http.
        collection: its name.
        create: whether it may be made; a new one has contextual chunk vectors.

    Raises:
        StoreError: there is none, and `create` is off; or the database fails.
        MissingExtraError: the Qdrant client is not installed.
    """
    from merger_plugins.qdrant import QdrantStore

    server = _is_url(location)
    if not server and not create and not Path(location).is_dir():
        raise StoreError(f"There is no store in {location}. {_REMEDY}")
    client = _client(location) if server and os.environ.get(KEY_VARIABLE) else None
    store = QdrantStore(client or location, collection)
    try:
        if store.inspect().dimension is None:
            if not create:
                raise StoreError(f"The store in {location} has no collection {collection!r}. {_REMEDY}")
            store.close()
            store = QdrantStore(client or location, collection, contextual=True)
        yield store
    finally:
        store.close()
        if client is not None:
            client.close()


@contextmanager
def connected(
    location: str, collection: str, *, merger: SequenceMerger | None = None
) -> Iterator[QdrantStore]:
    """A store over a collection that another application wrote, closed afterwards; nothing is opened yet.

    Args:
        location: a folder, or a URL that begins with http.
        collection: its name.
        merger: for the store.

    Raises:
        StoreError: there is no such folder.
        MissingExtraError: the Qdrant client is not installed.
    """
    from merger_plugins.qdrant import QdrantStore

    server = _is_url(location)
    if not server and not Path(location).is_dir():
        raise StoreError(
            f"There is no folder {location}. Name the folder that your application passes to Qdrant, or the "
            "URL of the server: --store."
        )
    client = _client(location) if server and os.environ.get(KEY_VARIABLE) else None
    try:
        with QdrantStore(client or location, collection, merger=merger) as store:
            yield store
    finally:
        if client is not None:
            client.close()


def _is_url(location: str) -> bool:
    return location.startswith(("http://", "https://"))


_REMEDY = "Run: merger-plugins ingest PATHS, or name another with --store and --collection."


def only(document_id: str) -> Any:
    """A filter for one document or conversation."""
    from qdrant_client import models

    match = models.MatchValue(value=document_id)
    return models.Filter(must=[models.FieldCondition(key="document_id", match=match)])


def _client(location: str) -> Any:
    from qdrant_client import QdrantClient

    return QdrantClient(url=location, api_key=os.environ[KEY_VARIABLE])
