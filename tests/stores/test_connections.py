"""A server that answers slowly, not at all, or drops the connection in the middle; and folders of others."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import numpy as np
import pytest
from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import ResponseHandlingException

import merger_plugins.qdrant
from merger_plugins import CalibratedMerger
from merger_plugins.chroma import AsyncChromaStore, ChromaStore, server
from merger_plugins.errors import StoreError, StoreUnavailableError
from merger_plugins.qdrant import AsyncQdrantStore, QdrantStore, connection
from merger_plugins.stores import changes, ingestion
from tests.stores.support import DIMENSION, assert_document, documents
from tests.strategies import chunk_vectors

VECTORS = chunk_vectors(1, 12, DIMENSION)
TURNS = chunk_vectors(2, 2, DIMENSION)
GIVEN = documents(8, 3, 14)
QUERY = np.ones(DIMENSION, np.float32)
ROOT = Path(__file__).parents[2]
METHODS = (b"GET ", b"POST ", b"PUT ", b"DELETE ", b"PATCH ")


class Proxy:
    """Passes requests on to a server, up to one that it loses, whose answer it loses, or that it keeps."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.pass_on()
        threading.Thread(target=self._accept, daemon=True).start()

    def pass_on(self) -> None:
        self.requests, self.how, self.which = 0, "pass", -1

    def fail(self, which: int, how: str) -> None:
        """Fail the request of this number from now on: "request", "answer" or "stall"."""
        self.requests, self.how, self.which = 0, how, which

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=[near], daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError), socket.create_connection(self._target) as far:
            lost = threading.Event()
            threading.Thread(target=self._answers, args=[far, near, lost], daemon=True).start()
            while data := near.recv(1 << 16):
                if data.startswith(METHODS):
                    self.requests += 1
                    if self.requests == self.which + 1:
                        if self.how == "request":
                            return
                        if self.how == "stall":
                            time.sleep(8)
                            return
                        lost.set()
                far.sendall(data)

    @staticmethod
    def _answers(far: socket.socket, near: socket.socket, lost: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(1 << 16):
                if lost.is_set():  # the server did what it was asked
                    near.shutdown(socket.SHUT_RDWR)
                    return
                near.sendall(data)


@pytest.fixture
def proxy(chroma_server):
    made = Proxy(chroma_server.url)
    yield made
    made.close()


class FlakyQdrant(QdrantClient):
    """The embedded client, whose requests fail as those over a network do, before or after they are done."""

    how, which, requests = "pass", -1, 0

    def fail(self, which: int, how: str) -> None:
        self.requests, self.how, self.which = 0, how, which

    def pass_on(self) -> None:
        self.fail(-1, "pass")


def _flaky(name):
    method = getattr(QdrantClient, name)

    def call(self, *args, **options):
        self.requests += 1
        hit = self.requests == self.which + 1
        if hit and self.how == "request":
            raise ResponseHandlingException(httpx.ConnectError("connection refused"))
        result = method(self, *args, **options)
        if hit:
            raise ResponseHandlingException(httpx.ReadTimeout("timed out"))
        return result

    return call


for _name in ("retrieve", "upsert", "delete", "scroll", "count", "query_points", "collection_exists"):
    setattr(FlakyQdrant, _name, _flaky(_name))


@pytest.fixture(params=["qdrant", "chroma"])
def flaky(request, monkeypatch):
    """Makes stores over one new collection; what lets their requests fail; every how many are tried."""
    for module in (changes, ingestion):  # seconds that a call waits for a writer that may be alive
        monkeypatch.setattr(module, "ABANDONED", 0.05)
    name = f"test-{uuid4().hex[:12]}"
    merger = CalibratedMerger(dimension=DIMENSION)
    if request.param == "qdrant":
        client = FlakyQdrant(":memory:")
        yield lambda: QdrantStore(client, name, merger=merger), client, 1
        client.close()
    else:
        made = request.getfixturevalue("proxy")
        yield lambda: ChromaStore(made.url, name, merger=merger), made, 6


ACTS = {
    "ingest": lambda store, n: store.ingest(f"new {n}", vectors=VECTORS),
    "append": lambda store, n: [store.append(f"chat {n}", v, turn_id=str(i)) for i, v in enumerate(TURNS)],
    "search": lambda store, _: store.search(QUERY, 3, "fused"),
    "calibrate": lambda store, _: store.calibrate(),
}


@pytest.mark.parametrize("how", ["request", "answer"])
@pytest.mark.parametrize("act", ACTS)
def test_a_connection_that_is_dropped_at_any_request(flaky, act, how):
    opened, network, step = flaky
    with opened() as store:
        for name, vectors in GIVEN.items():
            store.ingest(name, vectors=vectors)
        failed = 0
        for which in range(0, 100, 3 * step if act == "calibrate" else step):
            network.fail(which, how)
            try:
                ACTS[act](store, which)
                break
            except StoreUnavailableError:
                failed += 1
            network.pass_on()
            done = ACTS[act](store, which)
            if act == "search":
                assert len(done) == 3
        network.pass_on()
        assert failed
        assert not list(store.verify())
        for name, vectors in GIVEN.items():
            assert_document(store._backend, store.merger, name, vectors)
        for n in range(0, which + 1, step):
            if act == "ingest":
                assert_document(store._backend, store.merger, f"new {n}", VECTORS)
            if act == "append":
                assert_document(store._backend, store.merger, f"chat {n}", TURNS)


@pytest.mark.parametrize("act", ACTS)
def test_a_server_that_keeps_a_request_for_too_long(proxy, monkeypatch, act):
    monkeypatch.setattr(server, "TIMEOUT", 2.0)
    name = f"test-{uuid4().hex[:12]}"
    with ChromaStore(proxy.url, name, merger=CalibratedMerger(dimension=DIMENSION)) as store:
        store.ingest("a", vectors=VECTORS)
        proxy.fail(1, "stall")
        with pytest.raises(StoreUnavailableError, match="does not answer"):
            ACTS[act](store, 0)
        proxy.pass_on()
        ACTS[act](store, 0)
        assert not list(store.verify())


@pytest.mark.filterwarnings("ignore:Failed to obtain server version")
@pytest.mark.parametrize("kind", [ChromaStore, QdrantStore, AsyncQdrantStore])
def test_a_server_that_never_answers(monkeypatch, kind):
    for module in (server, connection, merger_plugins.qdrant):
        monkeypatch.setattr(module, "TIMEOUT", 1)

    async def search(store):
        async with store:
            await store.search(QUERY)

    with socket.create_server(("127.0.0.1", 0)) as silent:  # the system accepts connections, nobody reads
        store = kind(f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(StoreUnavailableError, match="does not answer"):
            asyncio.run(search(store)) if kind is AsyncQdrantStore else store.search(QUERY)


class Wrong(BaseHTTPRequestHandler):
    """Answers every request alike, as a gateway or another application would."""

    status, body = 200, b""

    def answer(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(self.status)
        self.send_header("content-length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_GET = do_POST = do_PUT = answer  # noqa: N815 - so they are looked for

    def log_message(self, *args):
        pass


@pytest.mark.filterwarnings("ignore:Failed to obtain server version")
@pytest.mark.parametrize("kind", [ChromaStore, QdrantStore])
@pytest.mark.parametrize(
    ("status", "body", "error", "says"),
    [
        (401, b'{"error": "who are you?"}', StoreUnavailableError, "refused access"),
        (503, b"busy", StoreUnavailableError, "does not answer"),
        (404, b"<html>no such page</html>", StoreError, "no such page"),
        (200, b"<html>welcome</html>", StoreError, "failed"),
    ],
)
def test_a_server_that_is_another_or_lets_nobody_in(kind, status, body, error, says):
    answering = type("Answering", (Wrong,), {"status": status, "body": body})
    with HTTPServer(("127.0.0.1", 0), answering) as wrong:
        threading.Thread(target=wrong.serve_forever, daemon=True).start()
        with pytest.raises(error, match=says):
            kind(f"http://127.0.0.1:{wrong.server_port}").ingest("a", vectors=VECTORS)
        wrong.shutdown()


@pytest.mark.parametrize("how", ["request", "answer", "stall"])
async def test_coroutines_over_a_connection_that_fails(proxy, monkeypatch, how):
    monkeypatch.setattr(server, "TIMEOUT", 2.0)
    name = f"test-{uuid4().hex[:12]}"
    async with AsyncChromaStore(proxy.url, name, merger=CalibratedMerger(dimension=DIMENSION)) as store:
        for which in (1, 7):
            proxy.fail(which, how)
            with pytest.raises(StoreUnavailableError):
                await store.ingest(f"new {which}", vectors=VECTORS)
            proxy.pass_on()
            await store.ingest(f"new {which}", vectors=VECTORS)
            assert [problem async for problem in store.verify()] == []


READ_ONLY = """
import subprocess, sys, time
sys.path.insert(0, sys.argv[3])
import numpy as np
from merger_plugins import CalibratedMerger
from merger_plugins.errors import StoreError
from merger_plugins.chroma import ChromaStore
from merger_plugins.qdrant import QdrantStore

kind, disk = {"chroma": ChromaStore, "qdrant": QdrantStore}[sys.argv[1]], sys.argv[2]
vectors = np.random.default_rng(0).standard_normal((12, 16))
merger = CalibratedMerger(dimension=16)

def mount(*options):
    for _ in range(100):  # Chroma closes its files a moment after it says so
        if not subprocess.run(["mount", *options, disk], capture_output=True).returncode:
            return
        time.sleep(0.1)
    raise SystemExit("cannot mount")

acts = {
    "ingest": lambda store: store.ingest("b", vectors=vectors[:3]),
    "append": lambda store: store.append("c", vectors[0], turn_id="1"),
    "search": lambda store: store.search(vectors[0], 1, "document")[0].document_id,
    "calibrate": lambda store: store.calibrate(),
}
mount("-t", "tmpfs", "-o", "size=120m", "tmpfs")
with kind(disk + "/db", merger=merger) as store:
    store.ingest("a", vectors=vectors)
mount("-o", "remount,ro")
for name, act in acts.items():
    store = kind(disk + "/db", merger=merger)
    try:
        print(name, "did", act(store))
    except StoreError as error:
        print(name, "error:", error)
    try:
        store.close()
    except StoreError as error:
        pass
mount("-o", "remount,rw")
with kind(disk + "/db", merger=merger) as store:
    for act in acts.values():
        act(store)
    assert not list(store.verify())
    print(sorted(document.id for document in store.documents()))
"""


@pytest.mark.parametrize("host", ["qdrant", "chroma"])
def test_a_folder_that_cannot_be_written(tmp_path, host):
    mounted = ["unshare", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*mounted, "true"], check=False).returncode:
        pytest.skip("needs Linux and the right to mount a disk of its own; root may write anywhere")
    done = subprocess.run(
        [*mounted, sys.executable, "-c", READ_ONLY, host, str(tmp_path), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    *said, kept = done.stdout.splitlines()
    assert kept == "['a', 'b', 'c']"
    for line in said:
        name, how = line.split(" ", 2)[:2]
        assert how == "error:" or name == "search", line
        if how == "error:":
            assert "written" in line or "read-only" in line.lower(), line
