"""Stores that were damaged on purpose: each damage is found, told and mended."""

from dataclasses import replace

import numpy as np
import pytest

from merger_plugins import MeanMerger
from merger_plugins.errors import ConflictError, FingerprintError, StoreError, StoreUnavailableError
from merger_plugins.qdrant import QdrantBackend
from merger_plugins.stores import MergedStore
from merger_plugins.stores.backend import Point
from tests.stores.support import DIMENSION, FailingBackend, assert_document, informed, merged, stored
from tests.strategies import NarrowMean, chunk_vectors

VECTORS = chunk_vectors(1, 30, DIMENSION)
OTHER = chunk_vectors(2, 4, DIMENSION)


@pytest.fixture
def store(client):
    store = MergedStore(QdrantBackend(client, "documents"), merger=NarrowMean())
    store.ingest("a", vectors=VECTORS, metadata={"x": 1})
    store.ingest("b", vectors=OTHER)
    return store


def chunk(client, document_id, position):
    return next(
        p
        for p in stored(client, "documents", "chunks").values()
        if (p.payload["document_id"], p.payload["position"]) == (document_id, position)
    )


def put(store, point, **payload):
    store._backend.write("merged", [replace(point, payload={**point.payload, **payload})])


def lose(shelf, key):
    def damage(store, client):
        ids = [merged(client)[key].id] if shelf == "merged" else [chunk(client, *key).id]
        store._backend.delete(shelf, ids)

    return damage


def turn(key):
    def damage(store, client):
        point = merged(client)[key]
        put(store, replace(point, vector=-point.vector))

    return damage


def say(key, **payload):
    return lambda store, client: put(store, merged(client)[key], **payload)


def stray_chunk(store, client):
    point = chunk(client, "a", 29)
    place = store._state.ids.chunk("a", 30)
    store._backend.write("chunks", [Point(place, {**point.payload, "position": 30}, point.vector)])


def stray_section(store, client):
    point = merged(client)["a", "section", 1, 27]
    place = store._state.ids.section("a", 1, 10)
    payload = {**point.payload, "position": 30, "stop": 33}
    store._backend.write("merged", [Point(place, payload, point.vector)])


def doubled_chunk(store, client):
    point = chunk(client, "b", 2)
    store._backend.write("chunks", [Point(point.id[::-1].translate({45: None}), point.payload, point.vector)])


def misnamed_chunk(store, client):
    point = chunk(client, "b", 2)
    store._backend.write("chunks", [replace(point, payload={**point.payload, "position": 7})])


DAMAGES = {
    "a section is lost": (lose("merged", ("a", "section", 2, 9)), [("missing", "a", 2, 9)]),
    "the last section is lost": (lose("merged", ("b", "section", 1, 3)), [("missing", "b", 1, 3)]),
    "a section is wrong": (turn(("a", "section", 1, 6)), [("wrong", "a", 1, 6)]),
    "a root is wrong": (turn(("a", "root", 4, 0)), [("wrong", "a", None, 0)]),
    "a node is damaged": (say(("a", "section", 1, 6), node="###"), [("wrong", "a", 1, 6)]),
    "a node is another": (say(("a", "section", 1, 6), node="AAAA" * 16), [("wrong", "a", 1, 6)]),
    "a mass is wrong": (say(("a", "section", 1, 6), mass=7.5), [("wrong", "a", 1, 6)]),
    "a count is wrong": (say(("b", "root", 2, 0), count=5), [("wrong", "b", None, 0)]),
    "another merger's": (say(("a", "section", 3, 0), fingerprint="0" * 16), [("fingerprint", "a", 3, 0)]),
    "a chunk too many": (stray_chunk, [("stray", "a", 0, 30)]),
    "a section too many": (stray_section, [("stray", "a", 1, 30)]),
    "a chunk twice": (doubled_chunk, [("stray", "b", 0, 2)]),
    "a chunk that says it is another": (misnamed_chunk, [("wrong", "b", 0, 2), ("stray", "b", 0, 7)]),
    "a root is lost": (lose("merged", ("a", "root", 4, 0)), None),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_mended(client, store, damage):
    assert not list(store.verify())
    act, expected = DAMAGES[damage]
    act(store, client)
    found = [(p.kind, p.document_id, p.level, p.position) for p in store.verify()]
    if expected is None:
        assert ("missing", "a", None, None) in found
    else:
        assert found == expected
    name = found[0][1]
    other = {"a": "b", "b": "a"}[name]
    assert not list(store.verify(other))
    assert len(list(store.verify(name))) == len(found)
    assert not store.repair(other)
    assert len(list(store.verify())) == len(found)
    assert not store.repair(name)
    assert not list(store.verify())
    assert_document(client, NarrowMean(), "a", VECTORS)
    assert_document(client, NarrowMean(), "b", OTHER)
    store.append("a", OTHER[0])
    assert_document(client, NarrowMean(), "a", np.concatenate([VECTORS, OTHER[:1]]))


def test_a_lost_companion_is_made_again_but_for_what_only_it_knew(client, store):
    store.remove("a", 4)
    ids = [point.id for key, point in merged(client).items() if key[0] in ("a", "b")]
    store._backend.delete("merged", ids)
    assert [(p.kind, p.document_id) for p in store.verify()] == [("missing", "a"), ("missing", "b")]
    assert not store.repair()
    assert_document(client, NarrowMean(), "a", VECTORS, empty=[4])
    assert_document(client, NarrowMean(), "b", OTHER)
    assert {d.id: d.metadata for d in store.documents()} == {"a": {"x": 1}, "b": {}}
    assert store.ingest("b", vectors=OTHER).unchanged


def test_a_missing_chunk_is_left_for_its_owner(client, store):
    store._backend.delete("chunks", [chunk(client, "a", 5).id])
    (problem,) = store.repair()
    assert (problem.kind, problem.level, problem.position) == ("missing", 0, 5)
    store.replace("a", 5, VECTORS[5])
    assert_document(client, NarrowMean(), "a", VECTORS)
    store._backend.delete("chunks", [chunk(client, "a", 7).id])
    store.remove("a", 7)
    assert_document(client, NarrowMean(), "a", VECTORS, empty=[7])
    assert not list(store.verify())


@pytest.mark.parametrize("repaired", [True, False])
def test_a_chunk_is_lost_while_a_change_is_pending(client, store, repaired):
    failing = FailingBackend(client)
    failing.changes_left = 1
    with pytest.raises(StoreUnavailableError):
        MergedStore(failing, merger=NarrowMean()).append("b", VECTORS[0])
    store._backend.delete("chunks", [chunk(client, "b", 3).id])
    turn(("a", "section", 1, 6))(store, client)
    found = [(p.kind, p.document_id, p.level, p.position) for p in store.verify()]
    assert sorted(found, key=str) == [
        ("missing", "b", 0, 3),
        ("unfinished", "b", None, None),
        ("wrong", "a", 1, 6),
    ]
    with pytest.raises(StoreError, match="ingest the document again"):
        store.append("b", VECTORS[1])
    if repaired:
        (left,) = store.repair()
        assert (left.kind, left.document_id) == ("unfinished", "b")
        assert "ingest it again, or delete it" in left.detail
        with pytest.raises(ConflictError):
            store.append("b", VECTORS[1])
    assert not store.ingest("b", vectors=OTHER).unchanged
    assert not (store.repair() if not repaired else list(store.verify()))
    assert_document(client, NarrowMean(), "a", VECTORS)
    assert_document(client, NarrowMean(), "b", OTHER)


def test_contextual_vectors_of_another_merger_are_found(client):
    store = MergedStore(QdrantBackend(client, "documents"), merger=informed(), contextual=True)
    store.ingest("a", vectors=VECTORS)
    point = chunk(client, "a", 3)
    store._backend.write("chunks", [replace(point, payload={**point.payload, "fingerprint": "0" * 16})])
    (problem,) = store.verify()
    assert (problem.kind, problem.level, problem.position) == ("wrong", 0, 3)
    assert not store.repair()


def test_another_mergers_store_is_told_and_not_touched(client, store):
    other = MergedStore(QdrantBackend(client, "documents"), merger=informed())
    (problem,) = other.verify()
    assert problem.kind == "fingerprint"
    with pytest.raises(FingerprintError):
        other.repair()
    assert not list(store.verify())


def test_points_that_others_wrote_are_no_problem(client, store):
    store._backend.write("chunks", [Point("6b0c8d3e-2f57-5c1b-9d3e-4a1f0e7c5b00", {"x": 1}, VECTORS[0])])
    assert not list(store.verify())


def test_an_empty_store_is_sound(client):
    store = MergedStore(QdrantBackend(client, "nothing"), merger=MeanMerger())
    assert not list(store.verify())
    assert not store.repair()
