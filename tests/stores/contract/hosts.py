"""The databases that the contract runs against; each opens the same data as often as it is asked.

Every test of the contract takes `host`; the folders under ``integrations/`` say which databases that is.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from merger_plugins.stores import MergedStore
from merger_plugins.stores.backend import Backend


class Host(ABC):
    """One database with room for collections of one test."""

    exclusive = True
    """Whether only this process writes there."""

    takes_no_booleans = False
    """Whether filters for booleans find nothing."""

    many = 6_000
    """More points than one request takes."""

    def __init__(self) -> None:
        self.collection = f"test-{uuid4().hex[:12]}"
        self._backends: list[Backend] = []

    def backend(self, collection: str | None = None) -> Backend:
        """A new backend over the data that is there; where only one may be open, the last one is closed."""
        opened = self._open(collection or self.collection)
        self._backends.append(opened)
        return opened

    def store(self, collection: str | None = None, **options: Any) -> MergedStore:
        """A store over a new backend."""
        return MergedStore(self.backend(collection), **options)

    def close(self) -> None:
        """Drop what the test made."""
        for backend in self._backends:
            backend.close()

    def drop(self, *shelves: str) -> None:
        """Delete collections past the store, as another application may."""
        backend = self.backend()
        for shelf in shelves:
            name = backend.collection if shelf == "chunks" else backend.companion
            self._drop(backend, name)

    @abstractmethod
    def _drop(self, backend: Any, name: str) -> None: ...

    @abstractmethod
    def at_least(self, key: str, number: float) -> Any:
        """A filter in the database's own form."""

    @abstractmethod
    def _open(self, collection: str) -> Backend: ...


class Qdrant(Host):
    """With one client, as its embedded form takes no second one."""

    def __init__(self, client: Any, *, exclusive: bool = True) -> None:
        super().__init__()
        self.client = client
        self.exclusive = exclusive
        self._names = {self.collection}

    def _open(self, collection: str) -> Backend:
        from merger_plugins.qdrant import QdrantBackend

        self._names.add(collection)
        return QdrantBackend(self.client, collection)

    def _drop(self, backend: Any, name: str) -> None:
        with backend._connection.use() as client:
            client.delete_collection(name)

    def at_least(self, key: str, number: float) -> Any:
        return _range(key, number)

    def close(self) -> None:
        super().close()
        for name in self._names | {self.collection}:
            for each in (name, f"{name}__merged"):
                self.client.delete_collection(each)
        self.client.close()


class QdrantFolder(Host):
    """Opened anew each time."""

    many = 600  # each of them is a transaction of its own there

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def _open(self, collection: str) -> Backend:
        from merger_plugins.qdrant import QdrantBackend

        for backend in self._backends:
            backend.close()
        return QdrantBackend(self._folder, collection)

    def _drop(self, backend: Any, name: str) -> None:
        with backend._connection.use() as client:
            client.delete_collection(name)

    def at_least(self, key: str, number: float) -> Any:
        return _range(key, number)


class Chroma(Host):
    """By a location or a client; opened anew each time."""

    def __init__(self, location: Any, *, exclusive: bool = True) -> None:
        super().__init__()
        self.location = location
        self.exclusive = exclusive

    def _open(self, collection: str) -> Backend:
        from merger_plugins.chroma import ChromaBackend

        return ChromaBackend(self.location, collection)

    def _drop(self, backend: Any, name: str) -> None:
        with backend._connection.client() as client:
            client.delete_collection(name)

    def at_least(self, key: str, number: float) -> Any:
        return {key: {"$gte": number}}


def _range(key: str, number: float) -> Any:
    from qdrant_client import models

    return models.Filter(must=[models.FieldCondition(key=f"metadata.{key}", range=models.Range(gte=number))])


def _qdrant_memory(folder: Path) -> Host:
    return Qdrant(pytest.importorskip("qdrant_client").QdrantClient(":memory:"))


def _qdrant_folder(folder: Path) -> Host:
    pytest.importorskip("qdrant_client")
    return QdrantFolder(folder)


def _qdrant_edge(folder: Path) -> Host:
    pytest.importorskip("qdrant_client")
    pytest.importorskip("qdrant_edge")
    from tests.stores.edge import EdgeClient

    host = Qdrant(EdgeClient(folder))
    host.takes_no_booleans = True
    return host


def _qdrant_server(folder: Path) -> Host:
    client = pytest.importorskip("qdrant_client").QdrantClient
    if not (url := os.environ.get("QDRANT_URL")):
        pytest.skip("QDRANT_URL names no server")
    return Qdrant(client(url=url), exclusive=False)


def _chroma_memory(folder: Path) -> Host:
    chromadb = pytest.importorskip("chromadb")
    name = f"test-{uuid4().hex[:12]}"
    chromadb.AdminClient(chromadb.Settings(is_persistent=False)).create_database(name)
    return Chroma(chromadb.EphemeralClient(database=name))


def _chroma_folder(folder: Path) -> Host:
    pytest.importorskip("chromadb")
    return Chroma(folder)


OPEN: dict[str, Callable[[Path], Host]] = {
    "qdrant-memory": _qdrant_memory,
    "qdrant-folder": _qdrant_folder,
    "qdrant-edge": _qdrant_edge,
    "qdrant-server": _qdrant_server,
    "chroma-memory": _chroma_memory,
    "chroma-folder": _chroma_folder,
}
"""All but the server that has to be started."""


def fixtures(*names: str) -> tuple[Any, Any]:
    """The fixtures `host` and `shared_host` of the contract, for these databases."""

    @pytest.fixture(params=names)
    def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
        yield from _opened(request, tmp_path)

    @pytest.fixture(scope="class", params=names)
    def shared_host(
        request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Host]:
        """For the tests of a class that only read what one of them wrote."""
        yield from _opened(request, tmp_path_factory.mktemp("shared"))

    return host, shared_host


def _opened(request: pytest.FixtureRequest, folder: Path) -> Iterator[Host]:
    if request.param == "chroma-server":
        host: Host = Chroma(request.getfixturevalue("chroma_server").url, exclusive=False)
    else:
        host = OPEN[request.param](folder / "db")
    yield host
    host.close()


class ChromaServer:
    """`chroma run` on a free port of this machine, its data in a folder."""

    def __init__(self, folder: Path) -> None:
        command = shutil.which("chroma", path=str(Path(sys.executable).parent)) or shutil.which("chroma")
        if command is None:
            pytest.skip("the command chroma is not installed")
        for _ in range(3):  # others may take the port before the server does
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            self.url = f"http://127.0.0.1:{port}"
            self._process = subprocess.Popen(
                [command, "run", "--path", str(folder), "--host", "127.0.0.1", "--port", str(port)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
            )
            if self._answers():
                return
            self.stop()
        raise RuntimeError(f"chroma run did not answer at {self.url}")

    def _answers(self) -> bool:
        """Whether it does before it ends, or within minutes on a busy machine."""
        until = time.monotonic() + 180
        while self._process.poll() is None and time.monotonic() < until:
            with suppress(OSError), urllib.request.urlopen(f"{self.url}/api/v2/heartbeat", timeout=5):
                return True
            time.sleep(0.1)
        return False

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
