"""What cannot be right, over every database: an error of ours, what is done stays, a repeat completes it."""

from dataclasses import replace

import numpy as np
import pytest

from merger_plugins import CalibratedMerger, MeanMerger
from merger_plugins.errors import (
    DimensionError,
    FingerprintError,
    MergerError,
    StoreError,
    StoreVersionError,
)
from merger_plugins.stores import Document
from merger_plugins.stores.records import META_ID
from tests.stores.support import DIMENSION, assert_document, informed, merged, stored
from tests.strategies import NarrowMean, chunk_vectors

VECTORS = chunk_vectors(1, 23, DIMENSION)
TURNS = chunk_vectors(2, 5, DIMENSION)
QUERY = chunk_vectors(78, 1, DIMENSION)[0]

ACTS = {
    "ingest": lambda store: store.ingest("new", vectors=TURNS),
    "append": lambda store: store.append("chat", TURNS[0]),
    "search": lambda store: store.search(QUERY, 3, "fused"),
    "calibrate": lambda store: store.calibrate(),
}


@pytest.fixture
def store(host):
    store = host.store(merger=informed())
    store.ingest("a", vectors=VECTORS)
    for vector in TURNS:
        store.append("chat", vector)
    return store


@pytest.mark.parametrize("shelf", ["chunks", "both"])
@pytest.mark.parametrize("act", ACTS)
def test_a_collection_that_was_dropped(host, store, act, shelf):
    host.drop(*(each for each in ("chunks", "merged") if shelf in (each, "both")))
    with pytest.raises(StoreError):
        ACTS[act](store)
    again = host.store(merger=informed())
    again.ingest("a", vectors=VECTORS)
    for name in ("chat", "new"):
        again.ingest(name, vectors=TURNS)
    ACTS["search"](again)
    for name, vectors in (("a", VECTORS), ("chat", TURNS), ("new", TURNS)):
        assert_document(again._backend, informed(), name, vectors)
    assert not list(again.verify())


@pytest.mark.parametrize("act", ACTS)
def test_a_merger_of_another_dimension(host, store, act):
    other = host.store(merger=CalibratedMerger(dimension=8))
    with pytest.raises(DimensionError, match="has dimension 16"):
        ACTS[act](other)


def test_vectors_of_another_dimension(host, store):
    wrong = np.ones((2, 8), np.float32)
    for act in (
        lambda: store.ingest("a", vectors=wrong),
        lambda: store.append("chat", wrong[0]),
        lambda: store.extend("a", vectors=wrong),
        lambda: store.replace("a", 0, wrong[0]),
        lambda: store.search(wrong[0]),
    ):
        with pytest.raises(DimensionError, match="8"):
            act()
    assert_document(store._backend, informed(), "a", VECTORS)
    assert_document(store._backend, informed(), "chat", TURNS)


@pytest.mark.parametrize("act", ["ingest", "append", "search"])
def test_another_merger(host, store, act):
    with pytest.raises(FingerprintError, match=r"rebuild\(\) or calibrate\(\)"):
        ACTS[act](host.store(merger=MeanMerger()))
    again = host.store(merger=informed())
    ACTS[act](again)
    assert not list(again.verify())


def test_calibrating_with_another_merger_takes_the_store_over(host, store):
    other = host.store(merger=CalibratedMerger(dimension=DIMENSION))
    calibrated = other.calibrate()
    assert_document(other._backend, calibrated, "a", VECTORS)
    assert not list(other.verify())


@pytest.mark.parametrize("act", ACTS)
def test_settings_of_a_newer_release(host, store, act):
    backend = store._backend
    settings = backend.fetch("merged", [META_ID])[META_ID]
    backend.write("merged", [replace(settings, payload=settings.payload | {"schema": 99})])
    with pytest.raises(StoreVersionError, match="pip install --upgrade"):
        ACTS[act](host.store(merger=informed()))
    backend = host.backend()
    backend.layout()
    backend.write("merged", [settings])
    again = host.store(merger=informed())
    ACTS[act](again)
    assert not list(again.verify())


def test_points_that_lack_a_field(host, store):
    """Of a chunk, a section and the root in turn: errors of ours alone, and the store can be mended."""
    backend = store._backend
    chunks = [p for p in stored(backend, "", "chunks").values() if p.payload["document_id"] == "a"]
    tree = {key[1]: point for key, point in merged(backend).items() if key[0] == "a"}
    acts = {
        "verify": lambda store: list(store.verify()),
        "documents": lambda store: list(store.documents()),
        "inspect": lambda store: store.inspect(),
        "replace": lambda store: store.replace("a", 3, VECTORS[3]),
        "append": lambda store: store.append("a", VECTORS[0]),
        "section": lambda store: store.search(QUERY, 50, "section"),
        "document": lambda store: store.search(QUERY, 50, "document"),
    }
    told = set()
    for shelf, point, lost in (
        ("chunks", chunks[0], ["document_id", "position", "mass", "norm"]),
        ("merged", tree["section"], ["document_id", "level", "position", "stop", "mass", "node", "metadata"]),
        ("merged", tree["root"], ["kind", "document_id", "stop", "count", "content", "source", "metadata"]),
    ):
        for field in lost:
            payload = {key: value for key, value in point.payload.items() if key != field}
            backend.write(shelf, [replace(point, payload=payload)])
            for name, act in acts.items():
                try:
                    act(store)
                except MergerError:
                    told.add((point.payload.get("kind"), field, name))
            store.repair()
            store.ingest("a", vectors=VECTORS)
            assert not list(store.verify()), field
            assert_document(backend, store.merger, "a", VECTORS)
    assert {("root", "content", "append"), ("root", "stop", "document"), (None, "mass", "replace")} <= told


def test_points_of_others_are_left_alone(host, store):
    backend = store._backend
    one = next(iter(stored(backend, "", "chunks").values()))
    theirs = replace(one, id="6b0c8d3e-2f57-5c1b-9d3e-4a1f0e7c5b00", payload={"x": 1})
    backend.write("chunks", [theirs])
    for act in ACTS.values():
        act(store)
    assert not list(store.verify())
    assert theirs.id in {hit.id for hit in store.search(theirs.vector, 50)}
    assert backend.fetch("chunks", [theirs.id])[theirs.id].payload == {"x": 1}


def test_two_documents_of_one_name(host):
    """They are versions of one document, the last of which stays."""
    store = host.store(merger=NarrowMean())
    first, second = chunk_vectors(3, 14, DIMENSION), chunk_vectors(4, 7, DIMENSION)
    results = store.ingest_many([Document("a", vectors=first), Document("a", vectors=second)])
    assert [(result.document_id, result.chunks) for result in results] == [("a", 14), ("a", 7)]
    assert_document(store._backend, NarrowMean(), "a", second)
    store.append("a", first[0])
    assert_document(store._backend, NarrowMean(), "a", np.concatenate([second, first[:1]]))
    assert [document.id for document in store.documents()] == ["a"]
    assert not list(store.verify())
