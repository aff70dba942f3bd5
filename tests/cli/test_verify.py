"""``merger-plugins verify`` on an embedded store that is damaged on purpose."""

import json

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("qdrant_client")

from merger_plugins import MeanMerger, load_merger
from merger_plugins.qdrant import QdrantStore
from tests.strategies import chunk_vectors


@pytest.fixture
def run(invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        result = invoke(["verify", "--store", "db", *arguments])
        assert result.exit_code == code, (result.output, result.exception)
        assert "Traceback" not in result.output
        return result

    return run


def damage(**lost):
    with QdrantStore("db", merger=load_merger()) as store:
        store.inspect()
        for name, place in lost.items():
            ids = store._state.ids
            if place == "section":
                store._backend.delete("merged", [ids.section(name, 1, 0)])
            else:
                store._backend.delete("chunks", [ids.chunk(name, place)])


@pytest.fixture
def store(run):
    with QdrantStore("db", merger=load_merger()) as store:
        for name in ("a", "b"):
            store.ingest(name, vectors=chunk_vectors(1, 25, store.merger.dimension))


def test_a_sound_store(run, store):
    assert "what its chunks give" in run().stdout
    document = json.loads(run("--json").stdout)
    assert (document["problems"], document["left"], document["errors"]) == ([], [], [])


def test_a_damaged_store_is_told_and_repaired(run, store):
    damage(a="section")
    result = run(code=1)
    assert "section of level 1 at 0" in result.stdout
    assert "verify --repair" in result.stderr
    (problem,) = json.loads(run("--json", code=1).stdout)["problems"]
    assert (problem["kind"], problem["document_id"], problem["position"]) == ("missing", "a", 0)
    run("b")
    document = json.loads(run("--repair", "--json").stdout)
    assert (document["repaired"], document["left"]) == (1, [])
    run()


def test_what_cannot_be_derived_is_left(run, store):
    damage(a="section", b=3)
    result = run("--repair", code=1)
    assert "ingest the document again" in result.stderr
    document = json.loads(run("--json", code=1).stdout)
    assert [problem["document_id"] for problem in document["left"]] == ["b"]


def test_another_mergers_store(run):
    with QdrantStore("db", merger=MeanMerger()) as store:
        store.ingest("a", vectors=chunk_vectors(1, 12, 384))
    assert "fingerprint" in run(code=1).stdout
    assert "holds merged vectors" in run("--repair", code=1).stderr


def test_no_store(run):
    assert "There is no store" in run(code=1).stderr
