"""What the Qdrant adapter adds: where the store lives, what it accepts, and how it fails."""

import gc
import os
import sqlite3
import subprocess
import sys
import warnings
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding
from qdrant_client import QdrantClient, models

from merger_plugins import CalibratedMerger, MeanMerger, load_merger
from merger_plugins.embedders import as_embedder, load_embedder
from merger_plugins.errors import (
    DimensionError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from merger_plugins.qdrant import QdrantBackend, QdrantStore
from merger_plugins.stores import Document
from tests.stores.support import (
    DIMENSION,
    HashingEmbedder,
    assert_document,
    documents,
    informed,
)
from tests.strategies import chunk_vectors

VECTORS = chunk_vectors(1, 25, DIMENSION)


@pytest.fixture(params=["memory", "folder", "engine", "server"])
def client(request, tmp_path):
    if request.param == "memory":
        client = QdrantClient(":memory:")
    elif request.param == "folder":
        client = QdrantClient(path=str(tmp_path / "qdrant"))
    elif request.param == "engine":
        pytest.importorskip("qdrant_edge")
        from tests.stores.edge import EdgeClient

        client = EdgeClient(tmp_path / "qdrant")
    elif url := os.environ.get("QDRANT_URL"):
        client = QdrantClient(url=url)
    else:
        pytest.skip("QDRANT_URL names no server")
    yield client
    client.close()


@pytest.fixture
def collection(client):
    name = f"test-{uuid4().hex[:12]}"
    yield name
    for each in (name, f"{name}__merged"):
        client.delete_collection(each)


@pytest.mark.parametrize("contextual", [False, True])
def test_everything_works_wherever_qdrant_runs(client, collection, contextual):
    store = QdrantStore(client, collection, merger=informed(), contextual=contextual)
    given = documents(1, 3, 12, 31)
    store.ingest_many(Document(name, vectors=v, metadata={"n": len(v)}) for name, v in given.items())
    for vector in given["d1"]:
        store.append("chat", vector)
    for name, vectors in (*given.items(), ("chat", given["d1"])):
        assert_document(client, informed(), name, vectors, collection=collection)
    assert store.ingest("d2", vectors=given["d2"], metadata={"n": 31}).unchanged
    given["d2"] = given["d2"][:14]
    store.ingest("d2", vectors=given["d2"])
    assert store.delete("d0")
    calibrated = store.calibrate()
    for name in ("d1", "d2"):
        assert_document(client, calibrated, name, given[name], collection=collection)
    levels = ["chunk", "section", "document", "fused"] + ["contextual"] * contextual
    for level in levels:
        hit = store.search(given["d2"][3], 3, level)[0]
        assert hit.document_id == "d2"
        assert store.search(given["d1"][3], 3, level, filter={"n": 12}, group_by_document=True)
    inspection = store.inspect()
    assert (inspection.documents, inspection.conversations, inspection.chunks) == (2, 1, 12 + 14 + 12)


def test_a_folder_keeps_everything(tmp_path):
    with QdrantStore(tmp_path / "db", merger=informed(), contextual=True) as store:
        store.ingest("a", vectors=VECTORS * 9, metadata={"x": [1, "two"]})
        for vector in VECTORS:
            store.append("chat", vector, speaker="Ada", text="hello")
        calibrated = store.calibrate()
        found = store.search(VECTORS[0], 5, "fused")
    with QdrantStore(str(tmp_path / "db"), merger=informed()) as store:
        assert store.merger.fingerprint == calibrated.fingerprint
        again = store.search(VECTORS[0], 5, "fused")
        assert [hit.id for hit in again] == [hit.id for hit in found]
        np.testing.assert_allclose([h.score for h in again], [h.score for h in found], atol=1e-6)
        assert store.ingest("a", vectors=VECTORS * 9, metadata={"x": [1, "two"]}).unchanged
        more = chunk_vectors(2, 10, DIMENSION)
        for vector in more:
            store.append("chat", vector)
        client = store._backend._connection._client
        assert_document(client, calibrated, "chat", np.concatenate([VECTORS, more]))
        assert_document(client, calibrated, "a", VECTORS)


def test_nothing_is_opened_before_it_is_used(tmp_path):
    store = QdrantStore(tmp_path / "db", merger=MeanMerger())
    QdrantStore("http://127.0.0.1:1")
    assert repr(store) == f"QdrantStore('{tmp_path / 'db'}', collection='documents')"
    assert not (tmp_path / "db").exists()
    store.close()


def test_a_closed_store_says_so(tmp_path):
    store = QdrantStore(tmp_path / "db", merger=MeanMerger())
    store.ingest("a", vectors=VECTORS)
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.search(VECTORS[0])
    QdrantStore(tmp_path / "db", merger=MeanMerger()).close()


def test_a_client_that_was_passed_in_stays_open():
    client = QdrantClient(":memory:")
    with QdrantStore(client, merger=MeanMerger()) as store:
        store.ingest("a", vectors=VECTORS)
    assert client.count("documents").count == 25


def test_a_server_that_does_not_answer_is_named():
    store = QdrantStore("http://127.0.0.1:1", merger=MeanMerger())
    with pytest.raises(StoreUnavailableError, match=r"http://127\.0\.0\.1:1"):
        store.ingest("a", vectors=VECTORS)
    for options in ({}, {"prefer_grpc": True, "grpc_port": 1}):
        client = QdrantClient(url="http://127.0.0.1:1", **options)
        with pytest.raises(StoreUnavailableError, match=r"http://127\.0\.0\.1:1"):
            QdrantStore(client, merger=MeanMerger()).search(VECTORS[0])
        client.close()


@pytest.mark.parametrize(
    "embedder", [HashingEmbedder(), as_embedder(DeterministicFakeEmbedding(size=DIMENSION))]
)
def test_another_embedder_gets_a_merger_without_the_bundled_background(embedder):
    with QdrantStore(":memory:", embedder=embedder) as store:
        store.ingest("a", "One sentence. Another one.")
        assert isinstance(store.merger, CalibratedMerger)
        assert store.merger.dimension == DIMENSION
        assert store.merger.background is None
        store.calibrate()
        assert store.search("One sentence.", level="document")[0].document_id == "a"


@pytest.mark.parametrize("embedder", [None, load_embedder()])
def test_the_bundled_embedder_gets_the_bundled_merger(embedder):
    with QdrantStore(":memory:", embedder=embedder) as store:
        assert store.merger.fingerprint == load_merger().fingerprint


def test_a_folder_that_another_process_holds_is_named(tmp_path):
    hold = (
        "import sys; from qdrant_client import QdrantClient; c = QdrantClient(path=sys.argv[1]); "
        "print('held', flush=True); sys.stdin.read()"
    )
    folder = tmp_path / "db"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        store = QdrantStore(folder, merger=MeanMerger())
        with pytest.raises(StoreUnavailableError, match="in use") as caught:
            store.ingest("a", vectors=VECTORS)
        assert str(folder) in str(caught.value)
        del caught
        with warnings.catch_warnings():
            # The client leaves the lock file that it could not lock open; other tests allow no warning.
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
        process.stdin.close()
        process.wait(30)
    store.ingest("a", vectors=VECTORS)
    store.close()


def test_a_full_disk_is_named_and_the_call_can_be_repeated(tmp_path):
    client = QdrantClient(path=str(tmp_path / "db"))
    store = QdrantStore(client, merger=MeanMerger())
    store.ingest("first", vectors=VECTORS)
    connection = client._client.collections["documents"].storage.storage
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    more = chunk_vectors(2, 60, DIMENSION)
    with pytest.raises(StoreFullError, match="repeat the call"):
        store.ingest("second", vectors=more)
    assert [document.id for document in store.documents()] == ["first"]
    connection.execute("PRAGMA max_page_count = 100000")
    store.ingest("second", vectors=more)
    assert_document(client, MeanMerger(), "first", VECTORS)
    assert_document(client, MeanMerger(), "second", more)
    client.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_while_making_the_collection_is_named(tmp_path):
    client = QdrantClient(path=str(tmp_path / "db"))
    store = QdrantStore(client, merger=MeanMerger())
    written = [tmp_path / "db" / name for name in ("meta.json", "meta.json.tmp")]  # which, tells the version
    for path in written:
        path.unlink(missing_ok=True)
        path.symlink_to("/dev/full")
    with pytest.raises(StoreFullError):
        store.ingest("a", vectors=VECTORS)
    for path in written:
        path.unlink()
    store.ingest("a", vectors=VECTORS)
    assert_document(client, MeanMerger(), "a", VECTORS)
    client.close()


def test_a_collection_that_is_not_for_this_is_refused():
    client = QdrantClient(":memory:")

    def make(name, **config):
        client.create_collection(name, vectors_config=config.get("many") or models.VectorParams(**config))
        return QdrantStore(client, name, merger=MeanMerger())

    with pytest.raises(DimensionError, match="has 3"):
        make("small", size=3, distance=models.Distance.COSINE).ingest("a", vectors=VECTORS)
    with pytest.raises(StoreError, match="cosine"):
        make("dots", size=DIMENSION, distance=models.Distance.DOT).ingest("a", vectors=VECTORS)
    params = models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)
    with pytest.raises(StoreError, match="'image'"):
        make("named", many={"image": params}).ingest("a", vectors=VECTORS)
    make("plain", size=DIMENSION, distance=models.Distance.COSINE).ingest("a", vectors=VECTORS)
    with pytest.raises(StoreError, match="without contextual vectors"):
        QdrantStore(client, "plain", merger=MeanMerger(), contextual=True).search(VECTORS[0])


def test_points_that_others_wrote_stay_and_are_found():
    client = QdrantClient(":memory:")
    client.create_collection(
        "documents", vectors_config=models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)
    )
    own = VECTORS[0].tolist()
    client.upsert("documents", [models.PointStruct(id=7, vector=own, payload={"page_content": "theirs"})])
    store = QdrantStore(client, merger=MeanMerger())
    hit = store.search(VECTORS[0], 1)[0]
    assert (hit.text, hit.document_id, hit.position) == ("theirs", None, None)
    with pytest.raises(StoreError, match=r"no merged vectors.*backfill"):
        store.search(VECTORS[0], 3, "document")
    assert store.inspect().chunks == 1
    assert not store.delete("a")
    store.ingest("a", vectors=VECTORS[1:])
    fused = store.search(VECTORS[0], 30, "fused")
    assert len(fused) == 25
    assert next(hit for hit in fused if hit.id == "7").parts.root is None
    store.calibrate()
    store.delete("a")
    assert client.count("documents").count == 1


def test_a_renamed_companion_or_restored_copy_keeps_its_ids():
    client = QdrantClient(":memory:")
    store = QdrantStore(client, "before", merger=MeanMerger())
    store.ingest("a", vectors=VECTORS)
    params = models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)
    for suffix in ("", "__merged"):
        client.create_collection(f"after{suffix}", vectors_config=params)
        records, _ = client.scroll(f"before{suffix}", limit=1000, with_vectors=True)
        points = [models.PointStruct(id=r.id, vector=r.vector or {}, payload=r.payload) for r in records]
        client.upsert(f"after{suffix}", points)
    copy = QdrantStore(client, "after", merger=MeanMerger())
    assert copy.ingest("a", vectors=VECTORS).unchanged
    copy.append("a", VECTORS[0])
    assert_document(client, MeanMerger(), "a", np.concatenate([VECTORS, VECTORS[:1]]), collection="after")


def test_langchain_reads_the_chunk_points():
    langchain_qdrant = pytest.importorskip("langchain_qdrant")
    embeddings = pytest.importorskip("langchain_core.embeddings")

    class Wrapped(embeddings.Embeddings):
        def embed_documents(self, texts):
            return HashingEmbedder().embed_documents(texts).tolist()

        def embed_query(self, text):
            return HashingEmbedder().embed_query(text).tolist()

    client = QdrantClient(":memory:")
    store = QdrantStore(client, merger=MeanMerger(), embedder=Wrapped())
    store.ingest("a", chunks=["pears and plums", "figs and dates"], metadata={"source": "orchard.txt"})
    theirs = langchain_qdrant.QdrantVectorStore(client, "documents", embedding=Wrapped())
    (document,) = theirs.similarity_search("figs and dates", k=1)
    assert document.page_content == "figs and dates"
    assert document.metadata["source"] == "orchard.txt"


def test_what_qdrant_refuses_is_an_error_of_ours():
    client = QdrantClient(":memory:")
    backend = QdrantBackend(client, "gone")
    with pytest.raises(StoreError, match="not found"):
        backend.fetch("chunks", ["x"])
    folder_store = QdrantStore(client, merger=MeanMerger())
    folder_store.ingest("a", vectors=VECTORS)
    client.close()
    with pytest.raises(StoreError, match="closed"):
        folder_store.search(VECTORS[0])


def test_a_damaged_folder_is_an_error_of_ours(tmp_path):
    with QdrantStore(tmp_path / "db", merger=MeanMerger()) as store:
        store.ingest("a", vectors=VECTORS)
    path = tmp_path / "db" / "collection" / "documents" / "storage.sqlite"
    path.write_bytes(b"not a database " * 1000)
    with pytest.raises(StoreError, match="not a database") as caught:
        QdrantStore(tmp_path / "db", merger=MeanMerger()).search(VECTORS[0])
    assert isinstance(caught.value.__cause__, sqlite3.Error)


def test_the_bundled_embedder_finds_what_a_text_says():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("tokenizers")
    embedder = load_embedder()
    texts = {
        "harbour": "The ferry leaves the harbour at dawn. Sailors load crates of fish and rope.\n\n"
        "Gulls circle above the pier while the tide comes in.",
        "kitchen": "Knead the dough until it is smooth. Let it rise under a cloth for an hour.\n\n"
        "Bake the bread until the crust is golden.",
    }
    store = QdrantStore(":memory:", merger=MeanMerger(), embedder=embedder)
    results = store.ingest_many(texts.items())
    assert all(result.embedded >= 2 for result in results)
    for level in ("chunk", "section", "document", "fused"):
        assert store.search("How do I make a loaf?", 1, level)[0].document_id == "kitchen"
        assert store.search("When does the boat depart?", 1, level)[0].document_id == "harbour"


def test_without_the_package_the_install_command_is_given():
    code = (
        "import sys; sys.modules['qdrant_client'] = None\n"
        "from merger_plugins.errors import MissingExtraError\n"
        "try:\n    import merger_plugins.qdrant\n"
        "except MissingExtraError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'merger-plugins[qdrant]'" in done.stdout
