"""``merger-plugins verify`` on an embedded store that is damaged on purpose."""

import json
from functools import partial

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("qdrant_client")

from qdrant_client import QdrantClient

from merger_plugins import MeanMerger, load_merger
from merger_plugins.qdrant import QdrantStore
from tests.stores.foreign import corpus, create, point_id, put
from tests.strategies import chunk_vectors


@pytest.fixture
def run(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return partial(run, "verify", "--store", "db")


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


@pytest.fixture
def app(run):
    """A back-filled collection in the folder."""
    client = QdrantClient(path="db")
    create(client, collection="documents")
    put(client, corpus(), collection="documents")
    QdrantStore(client, "documents").backfill()
    client.close()


def in_folder(change):
    client = QdrantClient(path="db")
    change(client)
    client.close()


def lose_the_root_of_d6(client):
    with QdrantStore(client, "documents") as store:
        store.inspect()
        foreign, settings = store._state.foreign, store._state.settings
        store._backend.delete("merged", [foreign.edition.ids(settings.namespace).root("d6")])


def test_a_back_filled_collection(run, app):
    assert "what its chunks give" in run().stdout
    in_folder(lose_the_root_of_d6)
    result = run(code=1)
    assert "d6" in result.stdout
    assert "verify --repair" in result.stderr
    run("d5")
    document = json.loads(run("--repair", "--json").stdout)
    assert (len(document["problems"]), document["repaired"], document["left"]) == (1, 1, [])
    assert "what its chunks give" in run().stdout


def test_a_back_filled_collection_that_its_application_changed(run, app):
    in_folder(lambda client: client.delete("documents", [point_id("d6", 3)]))
    result = run()
    assert "outdated" in result.stdout
    assert "merger-plugins backfill" in result.stderr
    (problem,) = json.loads(run("--json").stdout)["left"]
    assert (problem["kind"], problem["document_id"]) == ("outdated", "d6")
    assert "all repaired" in run("--repair").stdout
    assert "what its chunks give" in run().stdout
