"""The client: opened when it is needed, its errors put into our words."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, cast
from uuid import uuid4
from weakref import WeakValueDictionary

import chromadb
import httpx
from chromadb.api import AdminAPI, ClientAPI
from chromadb.api.shared_system_client import SharedSystemClient
from chromadb.config import Settings
from chromadb.errors import AuthorizationError, ChromaAuthError, NotFoundError

from merger_plugins.chroma.damage import has_lost, indexes_of, is_unreadable, set_aside, torn
from merger_plugins.chroma.folder import hold, let_go
from merger_plugins.chroma.server import connected, is_url, server_place
from merger_plugins.errors import (
    InputError,
    MergerError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from merger_plugins.stores.asynchronous import Bridge

Location: TypeAlias = str | os.PathLike[str] | ClientAPI | Bridge

MEMORY = ":memory:"

RESERVE = 64_000_000
"""Bytes that must be free in a folder to write there: after a disk had filled up while Chroma saved its
vector index, 80 of 100 vectors were not found any more when the folder was opened again."""

_FULL = ("disk is full", "no space left", "disk quota", "out of disk")
_READ_ONLY = ("readonly database", "read-only file system", "permission denied")
_DAMAGED = ("not a database", "malformed", "corrupt")
_UNREACHABLE = ("could not connect to a chroma server", "connection refused", "server disconnected")

_locks: WeakValueDictionary[tuple[str, ...], threading.RLock] = WeakValueDictionary()
_locks_guard = threading.Lock()
_opening = threading.RLock()
"""Chroma's clients share what is below them by a table that threads may spoil."""


class Connection:
    """One store's way to the database.

    Args:
        location: a folder, ``":memory:"``, the URL of a server, or a client.

    Attributes:
        place: where the database is, for messages.
        exclusive: whether no other process can write there.

    Raises:
        InputError: a client of another kind.
    """

    def __init__(self, location: Location) -> None:
        self._own = isinstance(location, str | os.PathLike)
        self._location = location
        self._client: ClientAPI | None = None
        self._closed = False
        self._folder: Path | None = None
        self._database: str | None = None
        self.exclusive = True
        if isinstance(location, str | os.PathLike):
            self.place = os.fspath(location)
            self.exclusive = not is_url(self.place)
            if self.exclusive and self.place != MEMORY:
                self._folder = Path(self.place).resolve()
        elif isinstance(location, ClientAPI):
            settings = location.get_settings()
            if settings.is_persistent:
                self._folder = Path(settings.persist_directory).resolve()
            self.exclusive = not settings.chroma_server_host
            self.place = str(server_place(settings) or self._folder or MEMORY)
        elif isinstance(location, Bridge):
            self.place, self.exclusive = location.place, False
        else:
            raise InputError(
                f"location must be a folder, ':memory:', a URL or a chromadb client; a "
                f"{type(location).__qualname__} arrived. AsyncChromaStore takes clients of coroutines."
            )
        self._held = False

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which makes a client of its own."""
        if self.exclusive or not self._own:
            raise TypeError(f"The Chroma in {self.place} cannot be opened by another process: pass a URL.")
        return {**vars(self), "_client": None}

    @contextmanager
    def client(self) -> Iterator[ClientAPI]:
        """The client, opened if need be; what goes wrong with it becomes an error of ours.

        Raises:
            StoreError: as above, or the store is closed.
        """
        if self._closed:
            raise StoreError(f"The store in {self.place} is closed; make a new one.")
        try:
            with _opening:
                client = self._client = self._client or self._opened()
            yield client
        except MergerError:
            raise
        except Exception as error:  # HTTP, SQLite, Rust and files each have errors of their own
            raise _translated(error, self.place) from error
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # what Rust raises where it gives up
                raise
            raise StoreError(f"Chroma in {self.place} failed: {error}") from error

    @contextmanager
    def writing(self, collection: str) -> Iterator[ClientAPI]:
        """The client, and no other writer of this process in this collection.

        Raises:
            StoreFullError: less than `RESERVE` bytes are left where the folder is.
        """
        with self.client() as client:
            if self._folder is not None and _free(self._folder) < RESERVE:
                raise StoreFullError(
                    f"Less than {RESERVE // 10**6} MB are left for {self.place}, and Chroma saves its index "
                    "in place: a disk that is full in the middle of that would damage it. Nothing of this "
                    "request was written. Free some space, then repeat the call: it completes what is there."
                )
            key = (
                str(self._folder or self._database or self.place),
                client.tenant,
                client.database,
                collection,
            )
            with _locks_guard:
                lock = _locks.setdefault(key, threading.RLock())
            with lock:
                yield client

    def mend(self, damaged: Callable[[ClientAPI], list[str]]) -> None:
        """Let Chroma begin new indexes in the place of those that cannot be read, in a folder of this store.

        Args:
            damaged: finds the collections, by their ids, whose indexes Chroma cannot open.

        Raises:
            StoreError: somebody else has the database open.
        """
        if self._folder is not None and self._own and not self._closed:
            with _opening, self._held_folder() as folder:
                if not _is_running(folder):
                    set_aside(torn(folder))
        with self.client() as client, _opening:
            if not (found := damaged(client)):
                return
            alone = self._folder is not None and self._own
            if alone:
                self._client = None
                cast(Any, client).close()
                alone = self._folder is not None and not _is_running(self._folder)
            if not alone:
                raise StoreError(
                    f"A vector index of Chroma in {self.place} is damaged, and only a store that is alone in "
                    "the folder can begin it anew. Stop the server, or close the other clients and stores; "
                    "then call repair() on a ChromaStore that was given the folder."
                )
            assert self._folder is not None
            set_aside(indexes_of(self._folder, found))

    def close(self) -> None:
        """Unless the client was passed in; the folder is free afterwards where no other store is in it."""
        self._closed = True
        with _opening:
            self._close()

    def _close(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        if self._own:
            if self._database is not None:
                _admin().delete_database(self._database)
            cast(Any, client).close()
        if self._held and self._folder is not None:
            self._held = False
            let_go(self._folder)

    def _opened(self) -> ClientAPI:
        if self._folder is None:
            return self._connected()
        with self._held_folder() as folder:
            if self._own and not _is_running(folder) and torn(folder):
                raise _damaged(self.place, "its files do not fit together")
            return self._connected()

    @contextmanager
    def _held_folder(self) -> Iterator[Path]:
        """The folder, kept from other processes until this is closed, or at once if an error comes."""
        assert self._folder is not None
        if not self._held:
            self._folder.mkdir(parents=True, exist_ok=True)
            hold(self._folder)
            self._held = True
        try:
            yield self._folder
        except BaseException:
            if self._held:
                self._held = False
                let_go(self._folder)
            raise

    def _connected(self) -> ClientAPI:
        if isinstance(self._location, Bridge):
            return cast(ClientAPI, self._location)
        if isinstance(self._location, ClientAPI):
            return self._location
        if self._folder is not None:
            return _persistent(str(self._folder))
        if self.place != MEMORY:
            return connected(self.place)
        # All clients in memory share one database of a name: each store gets one to itself.
        self._database = f"merger-{uuid4().hex}"
        _admin().create_database(self._database)
        return chromadb.EphemeralClient(database=self._database)


def _is_running(folder: Path) -> bool:
    """Whether this process has Chroma at work in a folder."""
    return str(folder) in SharedSystemClient._identifier_to_system


def _persistent(folder: str) -> ClientAPI:
    systems = SharedSystemClient._identifier_to_system
    running = folder in systems
    try:
        return chromadb.PersistentClient(folder)
    except BaseException:
        if not running:  # what did not start would be handed out again
            systems.pop(folder, None)
        raise


def _admin() -> AdminAPI:
    return chromadb.AdminClient(Settings(is_persistent=False))


def _translated(error: Exception, place: str) -> StoreError:
    text = str(error)
    said = text.lower()
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT) or any(sign in said for sign in _FULL):
        return StoreFullError(
            f"No space is left for {place} ({text}). Free some, then repeat the call: it completes what is "
            "there."
        )
    if isinstance(error, AuthorizationError | ChromaAuthError) or _status(error) in (401, 403):
        return StoreUnavailableError(
            f"Chroma at {place} refused access ({text}). Pass a chromadb.HttpClient with its headers."
        )
    if (
        any(isinstance(each, httpx.TransportError) for each in _behind(error))
        or _status(error) in (502, 503, 504)
        or any(sign in said for sign in _UNREACHABLE)
    ):
        return StoreUnavailableError(
            f"Chroma does not answer at {place} ({text or error!r}). Check that the server runs and the URL "
            "is right."
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS) or any(sign in said for sign in _READ_ONLY):
        return StoreError(
            f"{place} cannot be written ({text}), and Chroma writes even to read. Give write access to the "
            "folder, or choose another."
        )
    if is_unreadable(said) or has_lost(said):
        return _damaged(place, text)
    if any(sign in said for sign in _DAMAGED):
        return StoreError(
            f"The Chroma database in {place} is damaged ({text}). Restore the folder from a copy, or ingest "
            "into a new one."
        )
    if isinstance(error, NotFoundError):
        return StoreError(
            f"A collection of the store in {place} is not there ({text}). Make a new store object."
        )
    return StoreError(f"Chroma in {place} failed: {text or repr(error)}")


def _damaged(place: str, how: str) -> StoreError:
    return StoreError(
        f"A vector index of Chroma in {place} is damaged ({how}), as it is where a process was killed or a "
        "disk was full while Chroma saved it. Restore the folder from a copy; or call repair() on a store "
        "over the folder: ids, texts and metadata stay, what follows from the vectors that are left is made "
        "again, and the chunks that have to be ingested again are named."
    )


def _free(folder: Path) -> int:
    """Bytes that are left where a folder is."""
    return shutil.disk_usage(folder).free


def _status(error: Exception) -> int | None:
    """The HTTP status that an error of Chroma's client hides."""
    for each in _behind(error):
        if isinstance(each, httpx.HTTPStatusError):
            return each.response.status_code
    return None


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it was raised in place of."""
    while error is not None:
        yield error
        error = error.__context__
