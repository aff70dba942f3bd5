"""Chunks that are replaced, removed and added, compared with documents built from scratch."""

import numpy as np
import pytest

from merger_plugins import MeanMerger
from merger_plugins.errors import DimensionError, EmptyInputError, InputError
from merger_plugins.stores import MergedStore
from tests.stores.support import (
    DIMENSION,
    MERGERS,
    CountingBackend,
    HashingEmbedder,
    assert_document,
    informed,
    merged,
    stored,
)
from tests.strategies import NarrowMean, chunk_vectors


@pytest.mark.parametrize("contextual", [False, True])
@pytest.mark.parametrize("name", MERGERS)
def test_edits_equal_building_from_scratch(client, name, contextual):
    merger = MERGERS[name]
    store = MergedStore(CountingBackend(client), merger=merger, contextual=contextual)
    vectors, masses = chunk_vectors(1, 115, DIMENSION), np.arange(1.0, 116)
    other = chunk_vectors(2, 115, DIMENSION)
    store.ingest("a", vectors=vectors[:100], masses=masses[:100])
    empty = set()

    def check(places):
        assert_document(client, merger, "a", vectors[:places], masses[:places], empty=sorted(empty))
        assert not list(store.verify())

    for place in (0, 9, 10, 47, 99):
        vectors[place], masses[place] = other[place], 3
        store.replace("a", place, other[place], mass=3)
    check(100)
    for place in [*range(20, 33), 5, 99]:
        store.remove("a", place)
        empty.add(place)
    check(100)
    for place in range(100, 113):
        store.append("a", vectors[place], mass=masses[place])
    check(113)
    for place in (25, 112):
        vectors[place] = other[place]
        store.replace("a", place, other[place], mass=masses[place])
        empty.discard(place)
    check(113)
    store.extend("a", vectors=vectors[113:], masses=masses[113:])
    check(115)
    store.rebuild()
    check(115)
    left = [place for place in range(115) if place not in empty]
    store.ingest("a", vectors=vectors[left], masses=masses[left])
    assert_document(client, merger, "a", vectors[left], masses[left])
    assert not list(store.verify())


@pytest.mark.parametrize("act", ["replace", "remove"])
def test_an_edit_writes_the_path_to_the_root_and_reads_little(client, act):
    backend = CountingBackend(client)
    store = MergedStore(backend, merger=informed())
    store.ingest("a", vectors=chunk_vectors(1, 2345, DIMENSION))
    for place, path in ((0, 3), (1234, 3), (2100, 2), (2310, 1), (2342, 1)):
        backend.reset()
        if act == "replace":
            store.replace("a", place, chunk_vectors(2, 1, DIMENSION)[0])
        else:
            store.remove("a", place)
        assert backend.written == {"chunks": 1, "merged": path} if act == "replace" else {"merged": path}
        assert backend.swapped == 2
        assert sum(backend.reads.values()) <= 10 + 2 * 29 + 4 * 10 + 8
        assert backend.requests <= 9
    assert not list(store.verify())


def test_a_path_is_as_high_as_the_tree_is_complete(client):
    store = MergedStore(CountingBackend(client), merger=NarrowMean())
    store.ingest("a", vectors=chunk_vectors(1, 28, DIMENSION))
    before = {key: point.payload["version"] for key, point in merged(client).items()}
    store.replace("a", 13, chunk_vectors(2, 1, DIMENSION)[0])
    after = {key: point.payload["version"] for key, point in merged(client).items()}
    changed = {key[1:] for key in after if after[key] != before[key]}
    assert changed == {("section", 1, 12), ("section", 2, 9), ("section", 3, 0), ("root", 4, 0)}


@pytest.mark.parametrize("contextual", [False, True])
def test_all_but_one_chunk_may_be_removed_in_any_order(client, contextual):
    merger = NarrowMean()
    store = MergedStore(CountingBackend(client), merger=merger, contextual=contextual)
    vectors = chunk_vectors(1, 21, DIMENSION)
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(21) if seed else np.arange(20, -1, -1)
        store.ingest("a", vectors=vectors)
        for removed in range(1, 21):
            store.remove("a", int(order[removed - 1]))
            assert_document(client, merger, "a", vectors, empty=sorted(order[:removed].tolist()))
        assert not list(store.verify())
        store.append("a", vectors[0])
        store.delete("a")


def test_what_is_not_given_stays(client):
    embedder = HashingEmbedder()
    store = MergedStore(CountingBackend(client), merger=MeanMerger(), embedder=embedder)
    store.append("chat", "good morning", speaker="Ada", time="8:00", metadata={"user": 7})
    store.append("chat", "hello", speaker="Bob", time="8:01", metadata={"user": 7})
    store.replace("chat", 0, "good evening to you")
    assert embedder.seen[-1] == "Ada: good evening to you"
    (hit,) = store.search("good evening to you Ada", 1)
    assert (hit.text, hit.speaker, hit.time, hit.metadata) == (
        "good evening to you",
        "Ada",
        "8:00",
        {"user": 7},
    )
    point = next(p for p in stored(client, "documents", "chunks").values() if p.payload["position"] == 0)
    assert point.payload["mass"] == 5
    store.replace("chat", 0, np.ones(DIMENSION), text="ones", metadata={"user": 8})
    (hit,) = store.search(np.ones(DIMENSION), 1)
    assert (hit.text, hit.speaker, hit.metadata) == ("ones", "Ada", {"user": 8})
    point = next(p for p in stored(client, "documents", "chunks").values() if p.payload["position"] == 0)
    assert point.payload["mass"] == 5
    assert merged(client)["chat", "root", 1, 0].payload["metadata"] == {}


def test_an_edited_document_is_told_from_its_former_text(client):
    embedder = HashingEmbedder()
    store = MergedStore(CountingBackend(client), merger=MeanMerger(), embedder=embedder)
    texts = [f"sentence {word}" for word in ("one", "two", "three", "four")]
    store.ingest("a", chunks=texts, metadata={"x": 1})
    store.replace("a", 1, "something else")
    embedder.seen.clear()
    result = store.ingest("a", chunks=[texts[0], "something else", *texts[2:]], metadata={"x": 1})
    assert not embedder.seen
    assert result.written == 1  # the root, which now knows its content again
    store.remove("a", 0)
    assert store.ingest("a", chunks=texts, metadata={"x": 1}).written == 3
    assert store.ingest("a", chunks=texts, metadata={"x": 1}).unchanged


def test_contextual_vectors_of_a_document_follow_an_edit(client):
    merger = informed()
    store = MergedStore(CountingBackend(client), merger=merger, contextual=True)
    vectors = chunk_vectors(6, 60, DIMENSION)
    store.ingest("text", vectors=vectors)
    vectors[30] = -vectors[30]
    store.replace("text", 30, vectors[30])
    points = sorted(stored(client, "documents", "chunks").values(), key=lambda p: p.payload["position"])
    kept = np.stack([point.contextual for point in points])
    fresh = merger.contextualize(vectors)
    np.testing.assert_allclose(kept[28:33], fresh[28:33], atol=1e-5)
    assert np.einsum("nd,nd->n", kept, fresh).min() > 0.99


def test_extend_begins_a_document_and_goes_on_with_it(client):
    embedder = HashingEmbedder()
    store = MergedStore(CountingBackend(client), merger=MeanMerger(), embedder=embedder)
    texts = [f"sentence number {index}" for index in range(14)]
    store.extend("a", texts[:3], turn_id="first")
    store.extend("a", texts[3:], turn_id="second")
    assert store.extend("a", texts[3:], turn_id="second").unchanged
    (document,) = store.documents()
    assert (document.chunks, document.conversation) == (14, False)
    assert_document(client, MeanMerger(), "a", embedder.embed_documents(texts), [3] * 14)


def test_edits_that_make_no_sense_change_nothing(client):
    store = MergedStore(CountingBackend(client), merger=MeanMerger(), embedder=HashingEmbedder())
    vectors = chunk_vectors(1, 3, DIMENSION)
    store.ingest("a", vectors=vectors)
    for act, error in (
        (lambda: store.replace("a", 3, "text"), InputError),
        (lambda: store.replace("a", -1, "text"), InputError),
        (lambda: store.replace("a", 1.0, "text"), InputError),
        (lambda: store.replace("b", 0, "text"), InputError),
        (lambda: store.remove("b", 0), InputError),
        (lambda: store.remove("a", 3), InputError),
        (lambda: store.replace("a", 0, " "), EmptyInputError),
        (lambda: store.replace("a", 0, np.ones(DIMENSION + 1)), DimensionError),
        (lambda: store.replace("a", 0, "text", text="other"), InputError),
        (lambda: store.extend("a", []), EmptyInputError),
        (lambda: store.extend("a"), InputError),
    ):
        with pytest.raises(error):
            act()
    assert_document(client, MeanMerger(), "a", vectors)
    assert store.remove("a", 0).chunks == 2
    assert store.remove("a", 0).unchanged
    store.remove("a", 2)
    with pytest.raises(InputError, match="delete"):
        store.remove("a", 1)
    assert [document.chunks for document in store.documents()] == [1]


def test_search_and_calibration_pass_over_empty_places(client):
    merger = informed()
    store = MergedStore(CountingBackend(client), merger=merger)
    vectors = chunk_vectors(3, 31, DIMENSION)
    store.ingest("a", vectors=vectors)
    for place in (0, *range(10, 20)):
        store.remove("a", place)
    assert len(store.search(vectors[3], 40)) == 20
    assert {hit.position for hit in store.search(vectors[3], 40, "section")} == {0, 20, 30}
    assert len(store.search(vectors[3], 40, "fused")) == 20
    assert store.inspect().chunks == 20
    assert store.calibrate().statistics.vectors == 20
    assert not list(store.verify())
