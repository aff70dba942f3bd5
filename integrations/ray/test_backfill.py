"""Databases and Parquet files back-filled by workers: what one process writes, each thing once."""

import json
import sys

import numpy as np
import pytest

ray = pytest.importorskip("ray")
chromadb = pytest.importorskip("chromadb")
pytest.importorskip("qdrant_client")
pytest.importorskip("typer")

import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
from qdrant_client import QdrantClient  # noqa: E402

from integrations.ray.data import (  # noqa: E402
    DIMENSION,
    DiesOnce,
    FailsWhileAsked,
    Recorded,
    assert_merged,
    documents,
    rows_of,
    tables_of,
)
from merger_plugins import CalibratedMerger, MeanMerger, load_merger  # noqa: E402
from merger_plugins.chroma import ChromaStore  # noqa: E402
from merger_plugins.cli import main  # noqa: E402
from merger_plugins.errors import (  # noqa: E402
    DocumentError,
    EmptyInputError,
    FingerprintError,
    InputError,
    StoreError,
)
from merger_plugins.qdrant import QdrantStore  # noqa: E402
from merger_plugins.ray import Columns, RayEngine, backfill_parquet, cluster, together  # noqa: E402
from merger_plugins.stores.records import META_ID  # noqa: E402
from tests.stores.foreign import corpus, create, point_id, put, text_of  # noqa: E402
from tests.stores.support import stored  # noqa: E402

TEXTS = corpus(6, (1, 3, 12, 40, 9, 64, 31, 133, 450))
ENGINE = RayEngine(block=100, partitions=3)


def application():
    client = QdrantClient(":memory:")
    create(client)
    put(client, TEXTS)
    return client


def companion(client):
    points = stored(client, "app", "merged")
    del points[META_ID]
    return points


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for point_id_, point in expected.items():
        assert found[point_id_].payload == point.payload
        if point.vector is not None:
            np.testing.assert_allclose(found[point_id_].vector, point.vector, atol=1e-5)


def test_qdrant_is_filled_as_by_one_process_and_neither_finds_more_to_do():
    alone, many = application(), application()
    expected = QdrantStore(alone, "app", merger=MeanMerger()).backfill()
    store = QdrantStore(many, "app", merger=MeanMerger())
    assert store.backfill(engine=ENGINE) == expected
    assert_same(companion(many), companion(alone))
    assert store.backfill().merged == 0
    put(many, {"d1": TEXTS["d1"][:2] * np.float32(-1)})
    many.delete("app", [point_id("d2", place) for place in range(len(TEXTS["d2"]))])
    again = store.backfill(engine=ENGINE)
    assert (again.merged, again.removed) == (1, 1)
    assert list(store.verify()) == []


def test_an_interrupted_back_fill_writes_each_thing_once():
    client = application()
    store = QdrantStore(client, "app")
    written = []

    def interrupt(progress):
        if progress.stage == "merging" and progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.backfill(engine=ENGINE, progress=interrupt)
    before = {each for each, point in companion(client).items() if point.payload["kind"] == "root"}
    assert 0 < len(before) < len(TEXTS)
    store.backfill(engine=ENGINE, progress=lambda progress: written.append(progress))
    after = companion(client)
    done = store.backfill(engine=ENGINE)
    assert done.merged == 0
    assert_same(companion(client), after)
    assert list(store.verify()) == []


def in_chroma(client):
    collection = client.create_collection("app", configuration={"hnsw": {"space": "cosine"}})
    for name, vectors in TEXTS.items():
        places = range(len(vectors))
        collection.add(
            ids=[point_id(name, place) for place in places],
            embeddings=vectors,
            documents=[text_of(name, place) for place in places],
            metadatas=[{"source": name, "start_index": 100 * place} for place in places],
        )


def test_a_chroma_server_is_read_and_written_by_all_workers(chroma_server):
    in_chroma(chromadb.HttpClient(chroma_server.url))
    with ChromaStore(chroma_server.url, "app") as store:
        done = store.backfill(engine=ENGINE)
        assert (done.merged, done.chunks) == (len(TEXTS), sum(map(len, TEXTS.values())))
        assert store.backfill().merged == 0
        assert list(store.verify()) == []


def test_the_command_fills_a_chroma_folder(run, tmp_path, capsys):
    client = chromadb.PersistentClient(str(tmp_path))
    in_chroma(client)
    client.close()
    arguments = [
        "backfill",
        "--store",
        f"chroma:{tmp_path}",
        "--collection",
        "app",
        "--engine",
        "ray",
        "--json",
    ]
    assert run(arguments) == 0
    assert json.loads(capsys.readouterr().out)["merged"] == len(TEXTS)
    with ChromaStore(str(tmp_path), "app") as store:
        assert list(store.verify()) == []


@pytest.fixture
def run(monkeypatch):
    def called(arguments):
        monkeypatch.setattr(sys, "argv", ["merger-plugins", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code

    return called


def files_of(folder, texts):
    folder.mkdir()
    for index, table in enumerate(tables_of(rows_of(texts), 5)):
        pq.write_table(table, folder / f"{index}.parquet")
    return str(folder)


LONG = documents([1, 9, 10, 30, 31, 250, 7, 12] * 3)


def test_an_interrupted_back_fill_of_files_goes_on_and_writes_each_row_once(tmp_path):
    source, into = files_of(tmp_path / "chunks", LONG), str(tmp_path / "merged")
    merger = FailsWhileAsked(tmp_path)
    options = {"merger": merger, "columns": Columns(mass="tokens"), "block": 100, "partitions": 5}
    (tmp_path / "fail").touch()
    with pytest.raises(DocumentError, match="asked to fail"):
        backfill_parquet(source, into, **options)
    before = set((tmp_path / "merged").glob("part-*.parquet"))
    (tmp_path / "fail").unlink()
    done = backfill_parquet(source, into, **options)
    assert (done.documents, done.chunks) == (len(LONG), sum(len(vectors) for vectors, _ in LONG.values()))
    assert before <= set((tmp_path / "merged").glob("part-*.parquet"))
    assert before
    assert 0 < done.merged < len(LONG)
    assert backfill_parquet(source, into, **options).merged == 0
    assert_merged(pq.read_table(into), LONG, MeanMerger(), sections=True)


def test_the_command_fills_files_and_calibrates_once(run, tmp_path, capsys):
    source, into = files_of(tmp_path / "chunks", LONG), tmp_path / "merged"
    arguments = ["backfill", "--store", f"parquet:{source}", "--into", str(into), "--engine", "ray", "--json"]
    assert run(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["merged"], first["calibration_vectors"]) == (len(LONG), first["chunks"])
    assert run(arguments) == 0
    assert json.loads(capsys.readouterr().out)["merged"] == 0
    assert run([*arguments, "--merger", "mean"]) == 1
    assert "--anew" in json.loads(capsys.readouterr().out)["errors"][0]


IN_ORDER = documents([12, 40, 1, 33, 250, 9, 64, 17, 28, 5], seed=40)


def in_order(folder, *, groups, files=3):
    """Files of chunks in reading order, which end in the middle of documents."""
    folder.mkdir(parents=True)
    table = pa.concat_tables(
        [table for name in IN_ORDER for table in tables_of(rows_of({name: IN_ORDER[name]}), 1)]
    )
    size = -(-len(table) // files)
    for index in range(files):
        part = table.slice(index * size, size)
        pq.write_table(part, folder / f"{index}.parquet", row_group_size=groups)
    return str(folder)


@pytest.mark.parametrize(
    ("groups", "held"), [(1_000, True), (20, True), (20, False)], ids=["files", "row groups", "too large"]
)
def test_only_documents_that_are_split_travel(tmp_path, monkeypatch, groups, held):
    source, into = in_order(tmp_path / "chunks", groups=groups), tmp_path / "merged"
    if not held:
        monkeypatch.setattr(together, "_MOST_FLOATS", 0)
    columns = Columns(mass="tokens")
    with cluster():
        survey = together.Source.of(source).survey(columns, 10, block=100, partitions=3)
        done = backfill_parquet(source, str(into), columns=columns, block=100, partitions=3)
    assert sum(unit.rows for unit in survey.units) == survey.extent.rows == done.chunks
    split = set(IN_ORDER) if not held else split_by(survey.units) | {"d4"}
    assert sorted(survey.loose.tolist()) == sorted(together.hashes_of(pa.array(sorted(split))).tolist())
    assert (len(survey.together) > 0) == held
    merger = CalibratedMerger(dimension=DIMENSION).calibrated([vectors for vectors, _ in IN_ORDER.values()])
    made = load_merger(into / "_merger")
    np.testing.assert_allclose(made.merge(np.eye(12)[:3]), merger.merge(np.eye(12)[:3]), atol=1e-4)
    assert_merged(pq.read_table(into), IN_ORDER, made, sections=True)
    assert backfill_parquet(source, str(into), columns=columns, block=100, partitions=3).merged == 0


def split_by(units):
    """Documents of which a unit has a part only."""
    seen = [set(unit.read(["document_id"]).column(0).to_pylist()) for unit in units]
    return {name for name in IN_ORDER if sum(name in one for one in seen) > 1}


def test_a_worker_that_dies_over_a_unit_costs_only_that_unit(tmp_path):
    source, into = in_order(tmp_path / "chunks", groups=20), tmp_path / "merged"
    merger = DiesOnce(tmp_path)
    columns = Columns(mass="tokens")
    backfill_parquet(source, str(into), merger=merger, columns=columns, block=1_000, partitions=6)
    assert (tmp_path / "died").exists()
    with cluster():
        survey = together.Source.of(source).survey(columns, 10, block=1_000, partitions=6)
    assert len(survey.together) > 2
    table = pq.read_table(into)
    assert_merged(table, IN_ORDER, MeanMerger(), sections=True)
    alone = Recorded(tmp_path / "alone")
    alone.folder.mkdir()
    backfill_parquet(
        source, str(tmp_path / "again"), merger=alone, columns=columns, block=1_000, partitions=6
    )
    assert merger.parts == alone.parts + 1


def test_files_of_folders_are_found_and_others_passed_over(tmp_path):
    rows = in_order(tmp_path / "chunks" / "year=2025", groups=1_000, files=1)
    for other in ("_SUCCESS", "notes.txt", ".hidden.parquet", "_old/0.parquet"):
        path = tmp_path / "chunks" / other
        path.parent.mkdir(exist_ok=True)
        path.write_text("nothing")
    columns = Columns(document="year", mass="tokens")
    found = together.Source.of(str(tmp_path / "chunks"))
    assert found.files == [f"{rows}/0.parquet"]
    (unit,) = found.survey(columns, 10).units
    assert unit.read(["year"]).column(0).to_pylist() == [2025] * unit.rows


def test_sources_that_cannot_be_read_are_errors(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        backfill_parquet(str(tmp_path / "none"), str(tmp_path / "merged"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no files"):
        backfill_parquet(str(tmp_path / "empty"), str(tmp_path / "merged"))
    (tmp_path / "empty" / "0.parquet").write_text("no Parquet")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        backfill_parquet(str(tmp_path / "empty"), str(tmp_path / "merged"))
    table = tables_of(rows_of(documents([3])), 1)[0].slice(0, 0)
    pq.write_table(table, tmp_path / "empty" / "0.parquet")
    with pytest.raises(EmptyInputError, match="no rows"):
        backfill_parquet(str(tmp_path / "empty"), str(tmp_path / "merged"))


def test_folders_of_others_are_refused(tmp_path):
    source = files_of(tmp_path / "chunks", documents([3]))
    with pytest.raises(StoreError, match="did not write"):
        backfill_parquet(source, str(tmp_path))
    into = str(tmp_path / "merged")
    backfill_parquet(source, into, merger=MeanMerger())
    with pytest.raises(FingerprintError, match="other sections"):
        backfill_parquet(source, into, merger=MeanMerger(), sections=False)
    assert backfill_parquet(source, into, merger=MeanMerger(), sections=False, anew=True).merged == 1
    with pytest.raises(InputError, match="none called text"):
        backfill_parquet(source, str(tmp_path / "other"), columns=Columns(document="text"))
