"""What the Chroma adapter adds: where the store lives, what it accepts, and how it fails."""

import json
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import chromadb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merger_plugins import MeanMerger, load_merger
from merger_plugins.chroma import ChromaBackend, ChromaStore, MergerEmbeddingFunction
from merger_plugins.chroma.flat import conditions, flattened, restored
from merger_plugins.embedders import load_embedder
from merger_plugins.errors import (
    DimensionError,
    InputError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from merger_plugins.stores.backend import Point, Where
from tests.stores.support import DIMENSION, HashingEmbedder, assert_document, documents, informed, unit
from tests.strategies import chunk_vectors

VECTORS = chunk_vectors(1, 25, DIMENSION)
COSINE = {"hnsw": {"space": "cosine"}}
ROOT = Path(__file__).parents[1]


@pytest.fixture
def client():
    """Chroma in memory, with a database of this test's own."""
    name = f"test-{np.random.default_rng().integers(1 << 60):x}"
    chromadb.AdminClient(chromadb.Settings(is_persistent=False)).create_database(name)
    client = chromadb.EphemeralClient(database=name)
    yield client
    client.close()


def python(code, *arguments, **options):
    """A child process that runs code with this package, its output as text."""
    prefix = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    return subprocess.run(
        [*options.pop("before", ()), sys.executable, "-c", prefix + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        **options,
    )


class TestLocations:
    def test_stores_in_memory_have_nothing_in_common(self):
        with ChromaStore(":memory:", merger=MeanMerger()) as one, ChromaStore(":memory:") as other:
            one.ingest("a", vectors=VECTORS)
            assert other.inspect().dimension is None
            assert [document.id for document in one.documents()] == ["a"]

    def test_memory_is_gone_when_the_store_is_closed(self):
        store = ChromaStore(":memory:", merger=MeanMerger())
        store.ingest("a", vectors=VECTORS)
        names = {one["name"] for one in _databases()}
        store.close()
        assert len(names - {one["name"] for one in _databases()}) == 1

    def test_nothing_is_opened_before_it_is_used(self, tmp_path):
        store = ChromaStore(tmp_path / "db", merger=MeanMerger())
        ChromaStore("http://127.0.0.1:1")
        assert repr(store) == f"ChromaStore('{tmp_path / 'db'}', collection='documents')"
        assert not (tmp_path / "db").exists()
        store.close()

    def test_a_client_that_was_passed_in_stays_open(self, client):
        with ChromaStore(client, merger=MeanMerger()) as store:
            store.ingest("a", vectors=VECTORS)
        assert client.get_collection("documents").count() == 25
        with pytest.raises(StoreError, match="closed"):
            store.search(VECTORS[0])

    @pytest.mark.parametrize("location", [None, 3, object()])
    def test_other_locations_are_refused(self, location):
        with pytest.raises(InputError, match="chromadb client"):
            ChromaStore(location)

    def test_a_server_that_does_not_answer_is_named(self):
        store = ChromaStore("http://127.0.0.1:1", merger=MeanMerger())
        with pytest.raises(StoreUnavailableError, match=r"http://127\.0\.0\.1:1"):
            store.ingest("a", vectors=VECTORS)

    def test_a_client_that_its_owner_closed_is_an_error_of_ours(self, tmp_path):
        client = chromadb.PersistentClient(str(tmp_path / "db"))
        store = ChromaStore(client, merger=MeanMerger())
        store.ingest("a", vectors=VECTORS)
        client.close()
        with pytest.raises(StoreError):
            store.search(VECTORS[0])
        store.close()


def _databases():
    return chromadb.AdminClient(chromadb.Settings(is_persistent=False)).list_databases()


HOLD = """
from merger_plugins import MeanMerger
from merger_plugins.chroma import ChromaStore
store = ChromaStore(sys.argv[1], merger=MeanMerger())
store.ingest("theirs", vectors=[[1.0] * 16] * 3)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held(folder):
    """Another process has the folder open."""
    prefix = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    with subprocess.Popen(
        [sys.executable, "-c", prefix + HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


class TestFolders:
    @pytest.mark.parametrize("through", ["path", "client"])
    def test_a_folder_that_another_process_holds_is_named(self, tmp_path, through):
        folder = tmp_path / "db"
        client = None
        with held(folder) as process:
            if through == "client":
                client = chromadb.PersistentClient(str(folder))
            store = ChromaStore(client or folder, merger=MeanMerger())
            with pytest.raises(
                StoreUnavailableError, match=rf"in use by another process \({process.pid}\)"
            ) as caught:
                store.ingest("a", vectors=VECTORS)
            assert str(folder) in str(caught.value)
            process.kill()  # the operating system lets go of the folder
            process.wait()
            store.ingest("a", vectors=VECTORS)
        assert {document.id for document in store.documents()} == {"a", "theirs"}
        store.close()
        if client is not None:
            client.close()

    def test_a_closed_store_leaves_the_folder_to_others(self, tmp_path):
        ours = [ChromaStore(tmp_path / "db", merger=MeanMerger()) for _ in range(2)]
        for store in ours:
            store.ingest("ours", vectors=VECTORS)
        code = HOLD.replace("sys.stdin.read()", "store.close()")
        ours[0].close()
        assert "in use by another process" in python(code, tmp_path / "db").stderr
        ours[1].close()
        assert python(code, tmp_path / "db").stdout == "held\n"
        with ChromaStore(tmp_path / "db", merger=MeanMerger()) as store:
            assert {document.id for document in store.documents()} == {"ours", "theirs"}
            assert len(store.search(np.ones(DIMENSION), 3, filter={})) == 3

    def test_stores_of_one_process_share_a_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        stores = [ChromaStore(where, merger=informed()) for where in ("db", "./db", tmp_path / "db")]
        turns = chunk_vectors(3, 24, DIMENSION)

        def write(store, own):
            for vector in turns[own::3]:
                store.append("shared", vector)
                store.append(f"own {own}", vector)

        threads = [threading.Thread(target=write, args=(store, i)) for i, store in enumerate(stores)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        backend = ChromaBackend(tmp_path / "db", "documents")
        for own in range(3):
            assert_document(backend, informed(), f"own {own}", turns[own::3])
        shared = list(backend.scan("chunks", Where({"document_id": "shared"}), vectors=True))
        shared.sort(key=lambda point: point.payload["position"])
        stored = np.stack([point.vector for point in shared])
        assert_document(backend, informed(), "shared", stored)
        assert sorted(map(tuple, stored.round(4).tolist())) == sorted(
            map(tuple, unit(turns).round(4).tolist())
        )
        for each in (*stores, backend):
            each.close()

    def test_a_damaged_folder_is_an_error_of_ours_and_can_be_replaced(self, tmp_path):
        folder = tmp_path / "db"
        with ChromaStore(folder, merger=MeanMerger()) as store:
            store.ingest("a", vectors=VECTORS)
        shutil.copytree(folder, tmp_path / "copy")
        (folder / "chroma.sqlite3").write_bytes(b"not a database " * 1000)
        with pytest.raises(StoreError, match="damaged"):
            ChromaStore(folder, merger=MeanMerger()).search(VECTORS[0])
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "copy", folder)
        with ChromaStore(folder, merger=MeanMerger()) as store:
            assert store.ingest("a", vectors=VECTORS).unchanged

    def test_a_file_in_the_place_of_the_folder(self, tmp_path):
        (tmp_path / "db").write_text("x")
        with pytest.raises(StoreError, match="db"):
            ChromaStore(tmp_path / "db", merger=MeanMerger()).search(VECTORS[0])

    def test_full_and_read_only_disks_are_named_and_the_call_can_be_repeated(self, tmp_path):
        mounted = ["unshare", "--map-root-user", "--mount"]
        if shutil.which("unshare") is None or subprocess.run([*mounted, "true"], check=False).returncode:
            pytest.skip("needs Linux and the right to mount a disk of its own")
        code = """
import os, subprocess, time
import numpy as np
from merger_plugins import MeanMerger
from merger_plugins.chroma import ChromaStore
from merger_plugins.errors import StoreError, StoreFullError

disk = sys.argv[1]
def mount(*options):
    subprocess.run(["mount", *options, disk], check=True)

mount("-t", "tmpfs", "-o", "size=120m", "tmpfs")
many = np.random.default_rng(0).standard_normal((1500, 16))
store = ChromaStore(disk + "/db", merger=MeanMerger())
store.ingest("first", vectors=many[:20])
with open(disk + "/filler", "wb") as filler:
    filler.write(bytes(80_000_000))
try:
    store.ingest("second", vectors=many[20:])
except StoreFullError as error:
    print("full:", error)
assert [document.id for document in store.documents()] == ["first"]
os.remove(disk + "/filler")
store.ingest("second", vectors=many[20:])
store.close()
for _ in range(100):  # Chroma closes its files a moment after it says so
    try:
        mount("-o", "remount,ro")
        break
    except subprocess.CalledProcessError:
        time.sleep(0.1)
try:
    ChromaStore(disk + "/db", merger=MeanMerger()).search(many[0])
except StoreError as error:
    print("read-only:", error)
mount("-o", "remount,rw")
with ChromaStore(disk + "/db", merger=MeanMerger()) as store:
    assert not list(store.verify())
    print(sum(store.search(vector, 1)[0].score > 0.9999 for vector in many[::50]))
"""
        done = python(code, tmp_path, before=mounted)
        assert done.returncode == 0, done.stderr
        full, read_only, found = done.stdout.splitlines()
        assert full.startswith("full: Less than 64 MB are left for")
        assert "cannot be written" in read_only
        assert found == "30"


class TestForm:
    """Payloads in Chroma's flat metadata."""

    VALUES = st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    )
    KEYS = st.text() | st.sampled_from(
        ["merger:kind", "merger:json:metadata", "$and", "#id", "chroma:document", "a.b"]
    )
    PAYLOADS = st.fixed_dictionaries(
        {},
        optional={
            "metadata": st.dictionaries(KEYS, VALUES, max_size=5) | VALUES,
            "page_content": st.text() | st.none(),
            "level": st.integers(0, 3),
            "mass": st.floats(0, 1e6),
            "context": VALUES,
            "metadata:odd": VALUES,
        },
    )

    @given(PAYLOADS)
    def test_nothing_of_a_payload_is_lost(self, payload):
        flat, text = flattened(payload)
        assert all(type(value) in (str, bool, int, float) for value in flat.values())
        assert json.dumps(restored(flat, text), sort_keys=True) == json.dumps(payload, sort_keys=True)

    def test_chroma_keeps_what_the_flat_form_holds(self, client):
        """Drawn once and written together, as each request to Chroma takes its time."""
        drawn = []

        @given(self.PAYLOADS)
        def draw(payload):
            drawn.append(payload)

        draw()
        valid = [p for p in drawn if not _has_surrogates(p)]
        backend = ChromaBackend(client, "documents")
        backend.create(3, contextual=False)
        vectors = unit(np.random.default_rng(0).standard_normal((len(valid), 3))).astype(np.float32)
        backend.write(
            "chunks", [Point(str(i), p, v) for i, (p, v) in enumerate(zip(valid, vectors, strict=True))]
        )
        stored = backend.fetch("chunks", [str(i) for i in range(len(valid))])
        for index, payload in enumerate(valid):
            assert stored[str(index)].payload == payload

    def test_every_float_comes_back_as_it_was(self, client):
        rng = np.random.default_rng(0)
        floats = [*rng.uniform(0, 1, 400), *(rng.uniform(0, 1, 400) * 10.0 ** rng.integers(-300, 300, 400))]
        backend = ChromaBackend(client, "documents")
        backend.create(2, contextual=False)
        vector = np.array([1, 0], np.float32)
        given = [{"norm": float(f), "metadata": {"share": float(f)}} for f in floats]
        backend.write("chunks", [Point(str(i), payload, vector) for i, payload in enumerate(given)])
        stored = backend.fetch("chunks", [str(i) for i in range(len(given))])
        assert [stored[str(i)].payload for i in range(len(given))] == given
        for i in range(0, len(given), 20):
            where = Where(filter={"share": given[i]["norm"]})
            assert [point.id for point in backend.scan("chunks", where)] == [str(i)]

    def test_people_and_langchain_read_the_chunk_points(self, client):
        store = ChromaStore(client, merger=MeanMerger(), embedder=HashingEmbedder())
        store.ingest(
            "a", chunks=["pears and plums"], metadata={"source": "orchard.txt", "page": 3, "tags": ["x"]}
        )
        stored = client.get_collection("documents", embedding_function=None).get()
        assert stored["documents"] == ["pears and plums"]
        (metadata,) = stored["metadatas"]
        assert (metadata["source"], metadata["page"], metadata["merger:document_id"]) == (
            "orchard.txt",
            3,
            "a",
        )
        assert {key for key in metadata if not key.startswith("merger:")} == {"source", "page"}

    def test_the_users_keys_and_ours_do_not_meet(self, client):
        store = ChromaStore(client, merger=MeanMerger())
        theirs = {"merger:document_id": "evil", "document_id": "mine", "merger:json:metadata": "{}", "$or": 1}
        store.ingest("a", vectors=VECTORS, metadata=theirs)
        hits = store.search(VECTORS[3], 30, filter={"document_id": "mine"})
        assert len(hits) == 25
        assert hits[0].document_id == "a"
        assert hits[0].metadata == theirs
        for key, value in theirs.items():
            if key != "$or":
                assert len(store.search(VECTORS[3], 30, filter={key: value})) == 25
        assert_document(store._backend, MeanMerger(), "a", VECTORS)

    def test_damaged_json_is_an_error_of_ours(self, client):
        store = ChromaStore(client, merger=MeanMerger())
        store.ingest("a", vectors=VECTORS, metadata={"tags": ["x"]})
        raw = client.get_collection("documents", embedding_function=None)
        raw.update(raw.get(limit=1)["ids"], metadatas=[{"merger:json:metadata": "{"}])
        with pytest.raises(StoreError, match="damaged"):
            store.search(VECTORS[0], 30)


def _has_surrogates(payload):
    """Whether a text is none that UTF-8 can hold, which no store takes."""
    try:
        json.dumps(payload, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


@pytest.fixture(scope="module")
def filled():
    with ChromaStore(":memory:", merger=MeanMerger(), contextual=True) as store:
        for index, (name, vectors) in enumerate(documents(3, 5, 12, 23).items()):
            store.ingest(name, vectors=vectors, metadata={"n": index, "tags": [name], "big": 2**70 + index})
        yield store


class TestFilters:
    @pytest.mark.parametrize(
        ("filter", "names"),
        [
            ({"n": {"$gte": 1}}, {"d1", "d2"}),
            ({"n": {"$gte": 1, "$lt": 2}}, {"d1"}),
            ({"$or": [{"n": 0}, {"n": {"$gt": 1}}]}, {"d0", "d2"}),
            ({"$and": [{"n": {"$ne": 0}}, {"merger:document_id": {"$in": ["d0", "d1"]}}]}, {"d1"}),
            ({"n": {"$gte": 1}, "tags": "d2"}, {"d2"}),
            ({"n": 1.0}, {"d1"}),
            ({"n": [0, "1", 2.0, True]}, {"d0", "d2"}),
            ({"big": 2**70 + 1}, {"d1"}),
            ({"n": {"$nin": [0, 1]}, "$or": [{"n": 1}, {"n": 2}]}, {"d2"}),
        ],
    )
    @pytest.mark.parametrize("level", ["chunk", "contextual", "section", "document", "fused"])
    def test_chromas_own_conditions_pass_through(self, filled, filter, names, level):
        hits = filled.search(VECTORS[0], 100, level, filter=filter)
        assert {hit.document_id for hit in hits} == names

    @pytest.mark.parametrize("filter", [{"n": {"$near": 1}}, {"$or": []}, {"$or": 3}, {"$not": {"n": 1}}])
    def test_what_chroma_refuses_is_an_error_of_ours(self, filled, filter):
        with pytest.raises((InputError, StoreError)):
            filled.search(VECTORS[0], 3, filter=filter)

    def test_conditions_that_cannot_be_met_ask_nothing(self):
        assert conditions(Where()) == [None]
        assert conditions(Where(documents=[])) == conditions(Where(filter={"x": []})) == []
        assert len(conditions(Where(documents=[str(i) for i in range(12_000)]))) == 3


class TestCollections:
    @pytest.mark.parametrize("space", ["l2", "ip"])
    def test_other_spaces_are_refused(self, client, space):
        client.create_collection(
            "documents", configuration={"hnsw": {"space": space}}, embedding_function=None
        )
        for act in (
            lambda store: store.ingest("a", vectors=VECTORS),
            lambda store: store.search(VECTORS[0]),
        ):
            with pytest.raises(StoreError, match=f"'documents' compares by '{space}'"):
                act(ChromaStore(client, merger=MeanMerger()))
        assert [each.name for each in client.list_collections()] == ["documents"]

    def test_another_dimension_is_refused(self, client):
        client.create_collection("documents", configuration=COSINE, embedding_function=None).add(
            ["x"], embeddings=[[1.0, 2.0, 3.0]]
        )
        with pytest.raises(DimensionError, match="has 3"):
            ChromaStore(client, merger=MeanMerger()).ingest("a", vectors=VECTORS)

    def test_a_companion_of_another_dimension_is_named(self, client):
        ChromaStore(client, merger=MeanMerger()).ingest("a", vectors=VECTORS)
        client.delete_collection("documents")
        client.create_collection("documents", configuration=COSINE, embedding_function=None).add(
            ["x"], embeddings=[[1.0, 2.0, 3.0]]
        )
        with pytest.raises(StoreError, match="'documents__merged' has dimension 16"):
            ChromaStore(client, merger=MeanMerger()).search(VECTORS[0])

    def test_an_empty_collection_of_the_users_is_taken_as_it_is(self, client):
        client.create_collection(
            "documents", configuration=COSINE, metadata={"mine": 1}, embedding_function=None
        )
        store = ChromaStore(client, merger=MeanMerger(), contextual=True)
        assert store.search(VECTORS[0], 3, "contextual") == []
        store.ingest("a", vectors=VECTORS)
        assert client.get_collection("documents", embedding_function=None).metadata == {"mine": 1}
        assert ChromaStore(client, merger=MeanMerger()).inspect().contextual

    def test_names_that_chroma_does_not_take(self, client):
        with pytest.raises(StoreError, match="a b"):
            ChromaStore(client, "a b", merger=MeanMerger()).ingest("a", vectors=VECTORS)

    def test_points_that_others_wrote_stay_and_are_found(self, client):
        theirs = client.create_collection("documents", configuration=COSINE, embedding_function=None)
        theirs.add(
            ["7", "8"],
            embeddings=[VECTORS[0] * 5, -VECTORS[0]],
            documents=["theirs", "too"],
            metadatas=[{"source": "s", "page": 1}, None],
        )
        store = ChromaStore(client, merger=MeanMerger())
        hit = store.search(VECTORS[0], 1)[0]
        assert (hit.id, hit.text, hit.document_id, hit.metadata) == (
            "7",
            "theirs",
            None,
            {"source": "s", "page": 1},
        )
        assert hit.score == pytest.approx(1, abs=1e-5)
        with pytest.raises(StoreError, match=r"backfill\(\)"):
            store.search(VECTORS[0], 3, "document")
        assert not store.delete("a")
        store.ingest("a", vectors=VECTORS[1:])
        assert len(store.search(VECTORS[0], 30, filter={"source": "s"})) == 1
        assert len(store.search(VECTORS[0], 30)) == 26
        assert len(store.search(VECTORS[0], 30, "fused")) == 26
        assert [hit.document_id for hit in store.search(VECTORS[0], 30, group_by_document=True)] == ["a"]
        store.calibrate()
        store.delete("a")
        assert theirs.get()["ids"] == ["7", "8"]
        point = store._backend.fetch("chunks", ["7"], vectors=True)["7"]
        np.testing.assert_allclose(point.vector, unit(VECTORS[0]), atol=1e-6)

    @pytest.mark.parametrize("contextual", ["none", "companion"])
    def test_a_collection_that_langchain_wrote_is_back_filled_and_only_read(self, client, contextual):
        given = documents(8, 15, 22, 31)
        theirs = client.create_collection("documents", configuration=COSINE, embedding_function=None)
        for year, (name, vectors) in enumerate(given.items(), 2000):
            theirs.add(
                [f"{name}/{i}" for i in range(len(vectors))],
                embeddings=list(vectors * 3),
                documents=[f"text {name} {i}" for i in range(len(vectors))],
                metadatas=[
                    {"source": name, "start_index": 100 * i, "year": year} for i in range(len(vectors))
                ],
            )

        def everything():
            stored = theirs.get(include=["metadatas", "documents", "embeddings"])
            columns = (stored["documents"], stored["metadatas"], np.asarray(stored["embeddings"]).tolist())
            return dict(zip(stored["ids"], zip(*columns, strict=True), strict=True))

        before = everything()
        with ChromaStore(client, merger=informed()) as store:
            done = store.backfill(contextual=contextual, calibrate=False)
        assert (done.layout, done.group_by, done.chunks, done.documents) == (
            "LangChain",
            "metadata.source",
            68,
            3,
        )
        with ChromaStore(client, merger=informed()) as store:
            for name, vectors in given.items():
                rolling = informed().rolling()
                rolling.extend(vectors)
                best = store.search(rolling.vector, 1, "document")[0]
                assert (best.document_id, best.score) == (name, pytest.approx(1, abs=1e-4))
            for level in ["chunk", "section", "document", "fused"] + ["contextual"] * (contextual != "none"):
                hits = store.search(given["d1"][3], 5, level, filter={"year": 2001})
                assert {hit.document_id for hit in hits} == {"d1"}
                grouped = store.search(given["d1"][3], 5, level, group_by_document=True)
                assert sorted(hit.document_id for hit in grouped) == ["d0", "d1", "d2"]
            assert store.search(given["d1"][3], 1, "fused")[0].text.startswith("text d1")
        assert everything() == before

    @pytest.mark.filterwarnings("ignore:Could not reconstruct embedding function")
    def test_a_collection_with_an_embedding_function_that_cannot_be_made(self, client):
        class Theirs(chromadb.EmbeddingFunction):
            def __init__(self):
                pass

            def __call__(self, input):
                raise AssertionError("not asked for")

            @staticmethod
            def name():
                return "needs-a-key"

            def get_config(self):
                return {"key": "none"}

            @staticmethod
            def build_from_config(config):
                assert not made, f"no key for {config}"
                return Theirs()

        made = []
        made.append(client.create_collection("documents", configuration=COSINE, embedding_function=Theirs()))
        store = ChromaStore(client, merger=MeanMerger())
        store.ingest("a", vectors=VECTORS)
        assert len(store.search(VECTORS[0], 3)) == 3
        described = client.get_collection("documents", embedding_function=None).configuration_json
        assert described["embedding_function"]["name"] == "needs-a-key"

    def test_a_collection_that_was_deleted_meanwhile(self, client):
        store = ChromaStore(client, merger=MeanMerger())
        store.ingest("a", vectors=VECTORS)
        client.delete_collection("documents")
        with pytest.raises(StoreError, match="not there"):
            store.search(VECTORS[0])

    def test_contextual_vectors_of_a_collection_that_is_gone_do_not_come_back(self, client):
        ChromaStore(client, merger=informed(), contextual=True).ingest("a", vectors=VECTORS)
        for name in ("documents", "documents__merged"):
            client.delete_collection(name)
        ChromaStore(client, merger=informed()).ingest("b", vectors=VECTORS)
        assert {each.name for each in client.list_collections()} == {"documents", "documents__merged"}

    def test_contextual_vectors_without_their_points_are_not_found(self, client):
        store = ChromaStore(client, merger=informed(), contextual=True)
        store.ingest("a", vectors=VECTORS)
        chunks = client.get_collection("documents", embedding_function=None)
        chunks.delete(chunks.get(where={"merger:position": {"$lt": 5}})["ids"])
        hits = store.search(VECTORS[0], 30, "contextual")
        assert sorted(hit.position for hit in hits) == list(range(5, 25))


class TestEmbeddingFunction:
    def test_a_new_collection_remembers_the_bundled_embedder(self, tmp_path):
        pytest.importorskip("onnxruntime")
        texts = {
            "kitchen": "Knead the dough until it is smooth.",
            "harbour": "The ferry leaves the pier at dawn.",
        }
        with ChromaStore(tmp_path / "db") as store:
            assert store.merger.fingerprint == load_merger().fingerprint
            store.ingest_many(texts.items())
        code = """
import json, chromadb, merger_plugins.chroma
collection = chromadb.PersistentClient(sys.argv[1]).get_collection("documents")
found = collection.query(query_texts=["How do I make bread?"], n_results=1)
made = collection.configuration_json["embedding_function"]
print(json.dumps([found["documents"], found["distances"], made]))
"""
        done = python(code, tmp_path / "db")
        assert done.returncode == 0, done.stderr
        documents, distances, configured = json.loads(done.stdout)
        assert documents == [[texts["kitchen"]]]
        embedder = load_embedder()
        query, text = embedder.embed_query("How do I make bread?"), embedder.embed_query(texts["kitchen"])
        assert distances[0][0] == pytest.approx(1 - float(query @ text), abs=1e-4)
        assert configured["name"] == "merger_plugins"
        assert configured["config"] == {"model": "all-MiniLM-L6-v2", "dimension": 384}

    def test_it_adds_texts_too(self, client):
        pytest.importorskip("onnxruntime")
        made = client.create_collection("mine", embedding_function=MergerEmbeddingFunction())
        made.add(["a", "b"], documents=["Knead the dough.", "The ferry leaves at dawn."])
        again = client.get_collection("mine", embedding_function=MergerEmbeddingFunction())
        assert again.query(query_texts=["baking"], n_results=1)["ids"] == [["a"]]
        assert made.configuration_json["hnsw"]["space"] == "cosine"
        stored = made.get(["a"], include=["embeddings"])["embeddings"][0]
        np.testing.assert_allclose(stored, load_embedder().embed_query("Knead the dough."), atol=1e-5)

    @pytest.mark.parametrize("options", [{"embedder": HashingEmbedder()}, {"merger": MeanMerger()}])
    def test_collections_of_other_vectors_get_none(self, client, options):
        store = ChromaStore(client, **options)
        store.ingest("a", vectors=VECTORS)
        described = client.get_collection("documents", embedding_function=None).configuration_json
        assert described["embedding_function"].get("name") != "merger_plugins"

    @pytest.mark.parametrize(
        "config", [{}, {"model": "other", "dimension": 384}, {"model": "all-MiniLM-L6-v2", "dimension": 3}]
    )
    def test_other_settings_are_refused(self, config):
        with pytest.raises(InputError, match="all-MiniLM-L6-v2"):
            MergerEmbeddingFunction.build_from_config(config)
        with pytest.raises(InputError):
            MergerEmbeddingFunction.validate_config(config)

    def test_it_is_made_again_from_its_settings(self):
        made = MergerEmbeddingFunction()
        again = MergerEmbeddingFunction.build_from_config(made.get_config())
        assert again.get_config() == made.get_config()
        made.validate_config_update(made.get_config(), again.get_config())
        with pytest.raises(InputError):
            made.validate_config_update(made.get_config(), {"model": "other", "dimension": 384})
        with pytest.raises(InputError):
            MergerEmbeddingFunction("other")


def test_full_disks_that_chroma_names_are_named():
    from merger_plugins.chroma.connection import _translated

    error = chromadb.errors.InternalError("error returned from database: (code: 13) database or disk is full")
    assert isinstance(_translated(error, "db"), StoreFullError)


def test_without_the_package_the_install_command_is_given():
    code = (
        "sys.modules['chromadb'] = None\n"
        "from merger_plugins.errors import MissingExtraError\n"
        "try:\n    import merger_plugins.chroma\n"
        "except MissingExtraError as error:\n    print(error)"
    )
    assert "pip install 'merger-plugins[chroma]'" in python(code).stdout
