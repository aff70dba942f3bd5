"""Back-fills that are killed, lose their database or meet what they cannot work with; repeats complete them.

FAULT_RUNS=500 for more kills: a tenth of them are made here, for each database.
"""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import chromadb
import numpy as np
import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException

from merger_plugins.chroma import ChromaBackend, ChromaStore
from merger_plugins.errors import InputError, StoreError, StoreUnavailableError
from merger_plugins.qdrant import QdrantBackend, QdrantStore
from merger_plugins.stores import MergedStore
from merger_plugins.stores.backend import Where
from tests.stores.contract.hosts import ChromaServer
from tests.stores.foreign import ChromaApp, QdrantApp, assert_merged, corpus, create, point_id, put
from tests.stores.killing import dies
from tests.stores.support import DIMENSION, informed
from tests.strategies import chunk_vectors

KILLS = max(int(os.environ.get("FAULT_RUNS", "24")) // 10, 3)
TEXTS = corpus(4, (12, 3, 40, 10, 9, 25, 1))


def opened(kind, folder):
    """The client of an application, and how this package opens its folder."""
    if kind == "qdrant":
        return QdrantApp(QdrantClient(path=str(folder))), lambda: QdrantBackend(str(folder), "app")
    return ChromaApp(chromadb.PersistentClient(str(folder))), lambda: ChromaBackend(str(folder), "app")


def child(kind, folder, changes):
    """A back-fill that is killed before one of its changes."""
    backend = QdrantBackend(folder, "app") if kind == "qdrant" else ChromaBackend(folder, "app")
    dies(backend, changes)
    MergedStore(backend, merger=informed()).backfill(contextual="companion")


@pytest.mark.parametrize("kind", ["qdrant", "chroma"])
def test_no_moment_to_be_killed_is_a_bad_one(tmp_path, kind):
    folder = tmp_path / "db"
    app, backend = opened(kind, folder)
    app.write("app", app.cosine, TEXTS)
    app.client.close()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # else every child imports everything
    chance = random.Random(7)
    texts, killed = dict(TEXTS), 0
    for kill in range(KILLS):
        process = context.Process(target=child, args=(kind, str(folder), chance.randrange(60)))
        process.start()
        process.join(120)
        assert process.exitcode in (0, -signal.SIGKILL)
        killed += process.exitcode != 0
        with MergedStore(backend(), merger=informed()) as store:
            done = store.backfill(contextual="companion")
            assert done.documents == len(texts)
            assert_merged(store._backend, texts, informed())
            assert store.backfill(contextual="companion").merged == 0
        changed = {f"d{kill % 5}": chunk_vectors(100 + kill, 5 + 9 * (kill % 4), DIMENSION)}
        rewrite(kind, folder, changed)
        texts |= changed
    assert killed


def rewrite(kind, folder, texts):
    """Put other chunks in the place of those of a document."""
    app, _ = opened(kind, folder)
    for name in texts:
        if kind == "qdrant":
            own = models.FieldCondition(key="metadata.source", match=models.MatchValue(value=name))
            app.client.delete("app", models.FilterSelector(filter=models.Filter(must=[own])))
        else:
            app.client.get_collection("app").delete(where={"source": name})
    app.write("app", app.cosine, texts)
    app.client.close()


class Flaky:
    """A client whose connection drops at one of its calls, before or after the database did what it was told.

    Args:
        client: with a database behind it.
        at: which call, counted from 0.
        after: whether only the answer is lost.
        slow: seconds that each call takes longer.
    """

    def __init__(self, client, at=None, *, after=False, slow=0.0):
        self._client, self._at, self._after, self._slow = client, at, after, slow
        self.calls = 0

    def __getattr__(self, name):
        found = getattr(self._client, name)
        if not callable(found) or name == "close":
            return found

        def call(*args, **options):
            time.sleep(self._slow)
            drops = self.calls == self._at
            self.calls += 1
            if drops and not self._after:
                raise ResponseHandlingException(ConnectionError("connection reset"))
            answer = found(*args, **options)
            if drops:
                raise ResponseHandlingException(ConnectionError("connection reset"))
            return answer

        return call


@pytest.fixture(params=["local", "edge"])
def client(request, tmp_path):
    if request.param == "local":
        made = QdrantClient(":memory:")
    else:
        pytest.importorskip("qdrant_edge")
        from tests.stores.edge import EdgeClient

        made = EdgeClient(tmp_path / "edge")
    create(made)
    put(made, TEXTS)
    yield made
    made.close()


@pytest.mark.parametrize("after", [False, True])
def test_wherever_the_connection_drops_a_repeat_completes_it(client, after, monkeypatch):
    monkeypatch.setattr("merger_plugins.stores.gathering._FLOATS_AT_ONCE", 64 * DIMENSION)
    monkeypatch.setattr("merger_plugins.qdrant.backend._IDS_AT_ONCE", 30)
    dropped = 0
    for at in range(200):
        flaky = Flaky(client, at, after=after)
        try:
            QdrantStore(flaky, "app", merger=informed()).backfill()
        except StoreUnavailableError:
            dropped += 1
        else:
            assert flaky.calls <= at
            break
        done = QdrantStore(client, "app", merger=informed()).backfill()
        assert done.documents == len(TEXTS)
        assert_merged(QdrantBackend(client, "app"), TEXTS, informed())
        if at % 2:
            client.delete_collection("app__merged")
    assert dropped > 12


def test_a_slow_database_is_waited_for(client):
    QdrantStore(Flaky(client, slow=0.05), "app", merger=informed()).backfill()
    assert_merged(QdrantBackend(client, "app"), TEXTS, informed())


@pytest.mark.parametrize("stage", ["reading", "merging"])
def test_a_server_that_goes_away(tmp_path, stage, monkeypatch):
    monkeypatch.setattr("merger_plugins.stores.gathering._FLOATS_AT_ONCE", 64 * DIMENSION)
    monkeypatch.setattr("merger_plugins.chroma.backend._POINTS_AT_ONCE", 30)
    server = ChromaServer(tmp_path)
    try:
        host, port = server.url.removeprefix("http://").split(":")
        ChromaApp(chromadb.HttpClient(host=host, port=int(port))).write("app", "cosine", TEXTS)

        def stops(step):
            if step.stage == stage:
                server.stop()

        with pytest.raises(StoreUnavailableError):
            ChromaStore(server.url, "app", merger=informed()).backfill(progress=stops)
        server = ChromaServer(tmp_path)
        store = ChromaStore(server.url, "app", merger=informed())
        assert store.backfill().documents == len(TEXTS)
        assert_merged(store._backend, TEXTS, informed())
    finally:
        server.stop()


READ_ONLY = """
import subprocess, sys
from qdrant_client import QdrantClient
from merger_plugins.errors import MergerError
from merger_plugins.qdrant import QdrantBackend, QdrantStore
from tests.stores.foreign import assert_merged, create, put
from tests.stores.support import informed
from tests.stores.test_backfill_faults import TEXTS

disk, other = sys.argv[1:]
def mount(*options):
    subprocess.run(["mount", *options, disk], check=True)

mount("-t", "tmpfs", "-o", "size=120m", "tmpfs")
client = QdrantClient(path=other + "/db")
create(client)
put(client, TEXTS)
client.close()
subprocess.run(["cp", "-r", other + "/db", disk + "/db"], check=True)
mount("-o", "remount,ro")
for folder, scratch in ((disk, other), (other, disk)):
    try:
        with QdrantStore(folder + "/db", "app", merger=informed()) as store:
            store.backfill(scratch=scratch)
    except MergerError as error:
        print(type(error).__name__, error)
mount("-o", "remount,rw")
for folder in (disk, other):
    with QdrantStore(folder + "/db", "app", merger=informed()) as store:
        print(store.backfill(scratch=disk).documents)
        assert_merged(store._backend, TEXTS, informed())
"""


def test_read_only_folders(tmp_path):
    mounted = ["unshare", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*mounted, "true"], check=False).returncode:
        pytest.skip("needs Linux and the right to mount a disk of its own")
    disk, other = tmp_path / "disk", tmp_path / "other"
    disk.mkdir()
    other.mkdir()
    done = subprocess.run(
        [*mounted, sys.executable, "-c", READ_ONLY, str(disk), str(other)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    database, scratch, *documents = done.stdout.splitlines()
    assert database.startswith("StoreError") or database.startswith("StoreUnavailableError")
    assert "Read-only" in database
    assert scratch.startswith("InputError The folder for temporary files")
    assert documents == [str(len(TEXTS))] * 2


class TestRefused:
    @pytest.fixture
    def local(self):
        made = QdrantClient(":memory:")
        yield made
        made.close()

    def test_two_documents_with_one_name(self, local):
        create(local, "by_hand")

        def renamed(payload, name, _):
            return payload | {"book": {"d3": 4, "d4": "4"}.get(name, name)}

        put(local, corpus(), "by_hand", change=renamed)
        with pytest.raises(InputError, match="have one name, once as a number and once as text: 4"):
            QdrantStore(local, "app").backfill(group_by="book", order_by="at")
        assert not local.collection_exists("app__merged")
        put(
            local,
            {"d4": corpus()["d4"]},
            "by_hand",
            change=lambda payload, *_: payload | {"book": "four"},
        )
        done = QdrantStore(local, "app").backfill(group_by="book", order_by="at")
        assert done.documents == len(corpus())

    def test_a_companion_of_an_earlier_collection(self, local):
        create(local)
        put(local, corpus())
        QdrantStore(local, "app").backfill()
        local.delete_collection("app")
        params = models.VectorParams(size=8, distance=models.Distance.COSINE)
        local.create_collection("app", vectors_config={"": params})
        put(local, {name: vectors[:, :8] for name, vectors in corpus().items()})
        with pytest.raises(StoreError, match=r"dimension 8.*'app__merged' has 16.*Delete the companion"):
            QdrantStore(local, "app").backfill()
        local.delete_collection("app__merged")
        assert QdrantStore(local, "app").backfill().documents == len(corpus())

    def test_numbers_that_are_too_large_for_a_table(self, local):
        vectors = {"d0": chunk_vectors(1, 30, DIMENSION)}
        create(local, "by_hand")
        put(local, vectors, "by_hand", change=lambda p, _, i: p | {"at": 2**64 + 2**40 * i})
        QdrantStore(local, "app", merger=informed()).backfill(group_by="book", order_by="at")
        first = next(QdrantBackend(local, "app").scan("merged", Where({"kind": "section", "position": 0})))
        assert first.payload["chunks"] == [point_id("d0", i) for i in range(10)]

    def test_a_point_whose_vector_is_zero(self, local):
        texts = corpus()
        local.create_collection(
            "app",
            vectors_config={"": models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)},
        )
        put(local, texts | {"d8": np.zeros((2, DIMENSION), np.float32)})
        with pytest.raises(StoreError, match="2 without a vector of finite numbers that are not all zero"):
            QdrantStore(local, "app").backfill()
        done = QdrantStore(local, "app", merger=informed()).backfill(skip_missing=True)
        assert done.documents == len(texts)
        assert_merged(QdrantBackend(local, "app"), texts, informed())
