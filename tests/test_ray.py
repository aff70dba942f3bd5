"""What of the Ray adapter needs no Ray: that it is missing, and how ids are divided among readers."""

import pickle
import subprocess
import sys
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("qdrant_client")

from qdrant_client import QdrantClient, models

from merger_plugins.chroma import ChromaBackend
from merger_plugins.qdrant import QdrantBackend
from merger_plugins.qdrant.dividing import id_key, id_spans

MISSING = "import sys; sys.modules['ray'] = sys.modules['ray.data'] = None\n"


def run(*code):
    return subprocess.run(
        [sys.executable, "-c", MISSING + "\n".join(code)], capture_output=True, text=True, check=False
    )


def test_without_ray_the_import_says_what_to_install():
    failed = run("import merger_plugins.ray")
    assert "MissingExtraError" in failed.stderr
    assert "pip install 'merger-plugins[ray]'" in failed.stderr


def test_without_ray_the_command_says_what_to_install(tmp_path):
    pytest.importorskip("typer")
    for store, more in ((str(tmp_path), []), ("parquet:chunks", ["--into", "merged"])):
        arguments = ["merger-plugins", "backfill", "--store", store, "--engine", "ray", *more]
        failed = run("from merger_plugins.cli import main", f"sys.argv = {arguments}", "main()")
        assert failed.returncode == 1
        assert "pip install 'merger-plugins[ray]'" in failed.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workers", "2"], "--engine ray"),
        (["--into", "merged"], "--store parquet:DIR"),
        (["--engine", "ray", "--one-process"], "--object-spilling-directory"),
        (["--store", "parquet:chunks"], "--engine ray and --into"),
        (
            ["--store", "parquet:chunks", "--engine", "ray", "--into", "m", "--text-field", "t"],
            "takes --group-by",
        ),
    ],
)
def test_options_that_mean_nothing_together_are_refused(arguments, said):
    pytest.importorskip("typer")
    arguments = ["merger-plugins", "backfill", *arguments]
    failed = run("from merger_plugins.cli import main", f"sys.argv = {arguments}", "main()")
    assert failed.returncode == 1
    assert said in failed.stderr


IDS = st.one_of(st.integers(0, 2**64 - 1), st.uuids(), st.integers(0, 40))


@given(ids=st.sets(IDS, max_size=40), parts=st.integers(1, 5))
def test_spans_of_ids_hold_each_once(ids, parts):
    ordered = sorted((each if isinstance(each, int) else str(each) for each in ids), key=id_key)

    def at(edge):
        return next((each for each in ordered if edge is None or id_key(each) >= id_key(edge)), None)

    spans = id_spans(at, parts)
    assert len(spans) <= 2 * parts
    found = [
        each
        for start, stop in spans
        for each in ordered
        if (start is None or id_key(each) >= id_key(start)) and (stop is None or id_key(each) < id_key(stop))
    ]
    assert found == ordered


def test_qdrant_is_read_in_spans():
    client = QdrantClient(":memory:")
    client.create_collection(
        "app", vectors_config=models.VectorParams(size=2, distance=models.Distance.COSINE)
    )
    ids = [*range(5, 90, 7), *(str(UUID(int=each << 121)) for each in range(1, 100, 9))]
    client.upsert(
        "app",
        [
            models.PointStruct(id=each, vector=[1.0, each % 7 if isinstance(each, int) else 1.0])
            for each in ids
        ],
    )
    backend = QdrantBackend(client, "app")
    backend.layout()
    spans = backend.spans(3)
    found = [point for span in spans for point in backend.scan_span(span)]
    assert len(spans) == 6
    assert sorted(point.id for point in found) == sorted(map(str, ids))
    assert all(point.vector is not None for point in found)
    client.close()


def test_a_server_can_be_sent_to_other_processes_and_an_embedded_database_cannot():
    pytest.importorskip("chromadb")
    client = QdrantClient(url="http://localhost:1", api_key="secret", check_compatibility=False)
    for location in (client, "http://localhost:1"):
        sent = pickle.loads(pickle.dumps(QdrantBackend(location, "app")))
        assert sent.place == "http://localhost:1"
        with sent._connection.use() as other:
            assert other is not client
            assert other.init_options.get("api_key") == ("secret" if location is client else None)
    client.close()
    assert (
        pickle.loads(pickle.dumps(ChromaBackend("http://localhost:1", "app"))).place == "http://localhost:1"
    )
    for backend in (QdrantBackend(":memory:", "app"), ChromaBackend(":memory:", "app")):
        with pytest.raises(TypeError, match="process"):
            pickle.dumps(backend)
