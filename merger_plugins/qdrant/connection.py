"""A client of Qdrant, opened when it is needed; its errors become errors of ours."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

from qdrant_client import AsyncQdrantClient, QdrantClient
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from merger_plugins.errors import MergerError, StoreError, StoreFullError, StoreUnavailableError
from merger_plugins.stores.asynchronous import Bridge

Location = str | os.PathLike[str] | QdrantClient
"""A folder, ``":memory:"``, the URL of a server, or a client."""

TIMEOUT = 60
"""Seconds without an answer after which a request to a server fails."""

_URLS = ("http://", "https://")
_LOCKS: WeakKeyDictionary[QdrantClient, Any] = WeakKeyDictionary()
"""Of embedded clients, whose calls must not overlap."""

_LOCKS_LOCK = Lock()
_FULL = ("disk is full", "no space left", "disk quota", "out of disk", "available disk space")


class Connection:
    """One client, which is left open if it was passed in."""

    def __init__(self, location: Location) -> None:
        self.place = place_of(location)
        self._location = location
        self._client = None if isinstance(location, str | os.PathLike) else location
        self._options: dict[str, Any] | None = None
        self._closed = False

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which makes a client of its own, with the options of this one."""
        if self.exclusive:
            raise TypeError(f"The Qdrant in {self.place} is of this process alone; it cannot be pickled.")
        given = isinstance(self._location, QdrantClient)
        options = self._location.init_options if isinstance(self._location, QdrantClient) else self._options
        return {
            "place": self.place,
            "_location": self.place if given else self._location,
            "_options": options,
            "_client": None,
            "_closed": self._closed,
        }

    @property
    def exclusive(self) -> bool:
        """Whether Qdrant is embedded: its folder is locked, and memory is this process's own."""
        if isinstance(self._location, str | os.PathLike):
            return not is_url(self._location)
        return embedded(self._location)

    @contextmanager
    def use(self) -> Iterator[QdrantClient]:
        """The client, opened if need be; what goes wrong with it becomes an error of ours."""
        if self._closed:
            raise StoreError(f"The store in {self.place} is closed; make a new one.")
        try:
            if self._client is None:
                self._client = (
                    _connect(self._location) if self._options is None else QdrantClient(**self._options)
                )
            if embedded(self._client):  # which is no more than Python objects
                with _lock_of(self._client):
                    yield self._client
            else:
                yield self._client
        except MergerError:
            raise
        except Exception as error:  # HTTP, gRPC, SQLite and files each have errors of their own
            raise self._translated(error) from error

    def close(self) -> None:
        """Unless the client was passed in."""
        if self._client is not None and self._client is not self._location:
            self._client.close()
        self._closed = True

    def _translated(self, error: Exception) -> StoreError:
        text = str(error)
        if isinstance(error, UnexpectedResponse):
            text = error.content.decode(errors="replace") if error.content else text
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or any(sign in text.lower() for sign in _FULL):
            return StoreFullError(
                f"No space is left for {self.place} ({text}). Free some, then repeat the call: it completes "
                "what is there."
            )
        if isinstance(error, ResponseHandlingException) or _unavailable(error):
            return StoreUnavailableError(
                f"Qdrant does not answer at {self.place} ({text or repr(error)}). Check that the server runs "
                "and the URL is right."
            )
        if "already accessed" in text:
            return StoreUnavailableError(
                f"The folder {self.place} is in use by another process, or by another client in this one. "
                "Close that, or run a Qdrant server and pass its URL."
            )
        if isinstance(error, UnexpectedResponse) and error.status_code in (401, 403):
            return StoreUnavailableError(
                f"Qdrant at {self.place} refused access ({text}). Pass a QdrantClient with an api_key."
            )
        return StoreError(f"Qdrant in {self.place} failed: {text or error!r}")


def place_of(location: Location | AsyncQdrantClient) -> str:
    """How messages name it."""
    if isinstance(location, str | os.PathLike):
        return os.fspath(location)
    if isinstance(location, Bridge):
        return location.place
    options = location.init_options
    return str(options.get("path") or options.get("url") or options.get("location") or options.get("host"))


def is_url(location: str | os.PathLike[str]) -> bool:
    """Whether it is a server's."""
    return os.fspath(location).startswith(_URLS)


def embedded(client: QdrantClient) -> bool:
    """Whether it works in this process."""
    options = client.init_options
    return bool(options.get("path")) or options.get("location") == ":memory:"


def _connect(location: Location) -> QdrantClient:
    assert isinstance(location, str | os.PathLike)
    name = os.fspath(location)
    if name == ":memory:":
        return QdrantClient(name)
    if is_url(name):
        return QdrantClient(url=name, timeout=TIMEOUT)
    return QdrantClient(path=str(Path(name)))


def _lock_of(client: QdrantClient) -> Any:
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(client, RLock())


def _unavailable(error: Exception) -> bool:
    """Whether a gateway found no server behind it, or gRPC none at all."""
    if isinstance(error, UnexpectedResponse):
        return error.status_code in (502, 503, 504)
    code = getattr(error, "code", None)
    return callable(code) and getattr(code(), "name", None) == "UNAVAILABLE"
