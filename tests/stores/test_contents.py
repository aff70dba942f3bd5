import numpy as np
import pytest
from qdrant_client import QdrantClient

from merger_plugins import MeanMerger
from merger_plugins.errors import InputError
from merger_plugins.qdrant import QdrantStore
from tests.stores import foreign
from tests.stores.support import documents

TEXTS = [f"Chunk {number}." for number in range(25)]


@pytest.fixture
def store():
    made = QdrantStore(":memory:", merger=MeanMerger())
    made.ingest("a", chunks=TEXTS, vectors=documents(1, 25)["d0"], metadata={"lang": "en"})
    return made


def test_chunks_come_in_reading_order(store):
    chunks = store.contents("a")
    assert [chunk.text for chunk in chunks] == TEXTS
    assert [chunk.position for chunk in chunks] == list(range(25))
    assert chunks[0].metadata == {"lang": "en"}
    assert [chunk.text for chunk in store.contents("a", last=3)] == TEXTS[-3:]
    assert len(store.contents("a", last=100)) == 25


def test_removed_places_are_left_out(store):
    for place in (0, 24, 7):
        store.remove("a", place)
    assert [chunk.position for chunk in store.contents("a")] == [p for p in range(25) if p not in (0, 7, 24)]
    assert [chunk.position for chunk in store.contents("a", last=2)] == [22, 23]


def test_the_root_vector_is_the_merge_of_all_chunks_and_what_is_searched(store):
    vectors, more = documents(1, 25)["d0"], documents(2, 1)["d0"][0]
    rolling = MeanMerger().rolling()
    rolling.extend(vectors, masses=[2] * 25)
    np.testing.assert_allclose(store.root_vector("a"), rolling.vector, atol=1e-6)
    store.append("a", more, text="One more chunk.")
    assert not np.allclose(store.root_vector("a"), rolling.vector, atol=1e-3)
    (hit,) = store.search(more, 1, "document")
    assert store.root_vector("a") @ more / np.linalg.norm(more) == pytest.approx(hit.score, abs=1e-6)
    store.delete("a")
    assert store.root_vector("a") is store.root_vector("b") is None
    assert QdrantStore(":memory:", merger=MeanMerger()).root_vector("a") is None


def test_turns_tell_who_said_them_and_when(store):
    store.append("chat", documents(2, 1)["d0"][0], text="Hello.", speaker="Ann", time=5.0)
    (turn,) = store.contents("chat")
    assert (turn.text, turn.speaker, turn.time) == ("Hello.", "Ann", 5.0)


def test_what_is_not_there_has_no_contents(store):
    assert store.contents("b") == []
    store.delete("a")
    assert store.contents("a") == []
    assert QdrantStore(":memory:", merger=MeanMerger()).contents("a") == []


@pytest.mark.parametrize("last", [0, -1, "3", 2.0])
def test_last_is_a_number(store, last):
    with pytest.raises(InputError, match="last"):
        store.contents("a", last=last)


@pytest.mark.parametrize("form", sorted(foreign.FORMS))
def test_a_collection_of_another_application(form):
    client, texts = QdrantClient(":memory:"), foreign.corpus()
    foreign.create(client, form)
    foreign.put(client, texts, form)
    store = QdrantStore(client, "app", merger=MeanMerger())
    store.backfill(**foreign.OPTIONS[form])
    for name, vectors in texts.items():
        key = name if form != "by_hand" else name[1:]
        expected = [foreign.text_of(name, place) for place in range(len(vectors))]
        assert [chunk.text for chunk in store.contents(key)] == expected
        assert [chunk.text for chunk in store.contents(key, last=2)] == expected[-2:]
        (hit,) = store.search(vectors[0], 1, "document", documents=[key])
        unit = vectors[0] / np.linalg.norm(vectors[0])
        assert store.root_vector(key) @ unit == pytest.approx(hit.score, abs=1e-6)
