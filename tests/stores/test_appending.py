"""Conversations that grow turn by turn, compared with the merge of all turns."""

from contextlib import suppress
from datetime import UTC, datetime

import numpy as np
import pytest

from merger_plugins import MeanMerger
from merger_plugins.errors import (
    ConflictError,
    DimensionError,
    EmptyInputError,
    InputError,
    StoreError,
    StoreUnavailableError,
)
from merger_plugins.stores import MergedStore
from tests.stores.support import (
    DIMENSION,
    MERGERS,
    CountingBackend,
    FailingBackend,
    HashingEmbedder,
    assert_document,
    informed,
    merged,
    stored,
)
from tests.strategies import NarrowMean, chunk_vectors


@pytest.mark.parametrize("contextual", [False, True])
@pytest.mark.parametrize("name", MERGERS)
def test_appending_one_by_one_equals_ingesting_at_once(client, name, contextual):
    merger = MERGERS[name]
    store = MergedStore(CountingBackend(client), merger=merger, contextual=contextual)
    vectors, masses = chunk_vectors(3, 64, DIMENSION), np.arange(1.0, 65)
    for place, (vector, mass) in enumerate(zip(vectors, masses, strict=True)):
        assert store.append("chat", vector, mass=mass).chunks == place + 1
        if place in (0, 2, 8, 9, 10, 29, 30, 63):
            assert_document(client, merger, "chat", vectors[: place + 1], masses[: place + 1])
    store.ingest("at once", vectors=vectors, masses=masses)
    roots = {key[0]: point for key, point in merged(client).items() if key[1] == "root"}
    np.testing.assert_allclose(roots["chat"].vector, roots["at once"].vector, atol=1e-5)
    assert roots["chat"].payload["content"] == roots["at once"].payload["content"]


def test_contextual_vectors_of_a_growing_document_stay_close_to_fresh_ones(client):
    merger = informed()
    backend = CountingBackend(client)
    store = MergedStore(backend, merger=merger, contextual=True)
    axes = np.eye(DIMENSION)
    vectors = np.concatenate(
        [chunk_vectors(1, 12, DIMENSION) / 4 + axes[0], chunk_vectors(2, 48, DIMENSION) / 4 + axes[9]]
    )
    written = []
    for vector in vectors:
        backend.reset()
        store.extend("text", vectors=vector[None])
        written.append(backend.written["chunks"])
    renewals = [place for place, count in enumerate(written) if count == place + 1 > 3]
    assert 1 < len(renewals) < 40
    points = sorted(stored(client, "documents", "chunks").values(), key=lambda p: p.payload["position"])
    cosines = np.einsum(
        "nd,nd->n", np.stack([point.contextual for point in points]), merger.contextualize(vectors)
    )
    assert cosines.min() > 0.997
    np.testing.assert_allclose(cosines[-3:], 1, atol=1e-5)  # the last three were made by the last call


@pytest.mark.parametrize("contextual", [False, True])
def test_a_long_conversation_costs_as_many_points_and_requests_as_a_short_one(client, contextual):
    backend = CountingBackend(client)
    store = MergedStore(backend, merger=informed(), contextual=contextual)
    reads, writes, requests = [], [], []
    for vector in chunk_vectors(1, 420, DIMENSION):
        backend.reset()
        store.append("chat", vector)
        reads.append(sum(backend.reads.values()))
        writes.append(sum(backend.written.values()) + 1)
        assert backend.swapped == 2 + (not requests)  # and the settings
        requests.append(backend.requests)
    # root, chunks and sections; the change into the root; the chunk; the sections and the new root; and each
    # of the two changes of the root is read back
    assert np.median(requests) == 8
    assert max(requests[1:]) <= 9
    assert max(reads[350:]) <= 5 + 31 + 2 * 29
    if not contextual:
        assert max(writes) <= 5
        assert np.mean(writes[20:]) < 3.2
    else:
        assert max(writes) <= 6 + 32  # all of a sitting, and two of the one before
        assert np.mean(writes[20:]) < 9


def test_a_turn_carries_speaker_time_and_metadata(client):
    embedder = HashingEmbedder()
    store = MergedStore(CountingBackend(client), merger=MeanMerger(), embedder=embedder)
    when = datetime(2026, 5, 4, 12, tzinfo=UTC)
    store.append("chat", "hello you", speaker="Ada", time=when, metadata={"user": 7, "mood": "glad"})
    store.append("chat", "hello back", speaker="Bob", time=5.5, metadata={"user": 7, "mood": "sad"})
    assert embedder.seen == ["Ada: hello you", "Bob: hello back"]
    hit = store.search("hello you Ada", 1)[0]
    assert (hit.text, hit.speaker, hit.time) == ("hello you", "Ada", when.isoformat())
    assert hit.metadata == {"user": 7, "mood": "glad"}
    assert merged(client)["chat", "root", 1, 0].payload["metadata"] == {"user": 7}
    (document,) = store.documents()
    assert (document.conversation, document.chunks, document.metadata) == (True, 2, {"user": 7})


def test_a_long_turn_becomes_several_chunks(client):
    embedder = HashingEmbedder()
    embedder.max_tokens = 22
    store = MergedStore(CountingBackend(client), merger=informed(), embedder=embedder)
    store.append("chat", "a short one")
    sentence = "This sentence has exactly ten words in it right now. "
    result = store.append("chat", sentence * 9, speaker="Ada")
    assert result.chunks > 2
    vectors = np.stack([embedder.embed_query(text) for text in embedder.seen])
    masses = [
        p.payload["mass"]
        for p in sorted(stored(client, "documents", "chunks").values(), key=lambda p: p.payload["position"])
    ]
    assert_document(client, informed(), "chat", vectors, masses)
    assert sum(masses) == 3 + 90


def test_chunks_may_be_appended_to_an_ingested_document(client):
    store = MergedStore(CountingBackend(client), merger=informed(), contextual=True)
    vectors = chunk_vectors(2, 47, DIMENSION)
    store.ingest("a", vectors=vectors[:43])
    for vector in vectors[43:]:
        store.append("a", vector)
    assert_document(client, informed(), "a", vectors)
    (document,) = store.documents()
    assert not document.conversation


def test_two_stores_on_one_client_see_each_others_turns(client):
    vectors = chunk_vectors(2, 45, DIMENSION)
    stores = [MergedStore(CountingBackend(client), merger=informed()) for _ in range(2)]
    for place, vector in enumerate(vectors):
        stores[place % 2].append("chat", vector)
    assert_document(client, informed(), "chat", vectors)


@pytest.mark.parametrize("name", ["narrow mean", "narrow calibrated"])
@pytest.mark.parametrize("contextual", [False, True])
def test_a_turn_that_was_interrupted_can_be_said_again(client, name, contextual):
    merger = MERGERS[name]
    backend = FailingBackend(client)
    store = MergedStore(backend, merger=merger, contextual=contextual)
    vectors = chunk_vectors(2, 60, DIMENSION)
    failures = 0
    for place, vector in enumerate(vectors):
        backend.changes_left = place % 7
        try:
            store.append("chat", vector)
        except StoreUnavailableError:
            failures += 1
            backend.changes_left = None
            assert store.append("chat", vector).chunks == place + 1
        assert not list(store.verify())
    assert failures > 25
    assert_document(client, merger, "chat", vectors)


def test_a_turn_that_was_interrupted_after_it_began_is_there_whatever_comes_next(client):
    backend = FailingBackend(client)
    store = MergedStore(backend, merger=NarrowMean())
    vectors = chunk_vectors(2, 24, DIMENSION)
    store.ingest("chat", vectors=vectors[:20])
    root = merged(client)["chat", "root", 3, 0].vector
    for changes, vector in enumerate(vectors[20:]):
        backend.changes_left = changes
        with pytest.raises(StoreUnavailableError):
            store.append("chat", vector)
        if changes == 1:
            np.testing.assert_array_equal(merged(client)["chat", "root", 3, 0].vector, root)
            assert [problem.kind for problem in store.verify()] == ["unfinished"]
    backend.changes_left = None
    # The first call changed nothing; the second began; those after it did not get as far as completing it.
    other = chunk_vectors(3, 1, DIMENSION)
    assert store.append("chat", other[0]).chunks == 22
    assert_document(client, NarrowMean(), "chat", np.concatenate([vectors[:20], vectors[21:22], other]))


def test_a_turn_with_an_id_is_stored_once(client):
    embedder = HashingEmbedder()
    store = MergedStore(CountingBackend(client), merger=MeanMerger(), embedder=embedder)
    for _ in range(3):
        for turn_id, text in (("a", "yes"), ("b", "no"), ("c", "yes")):
            assert store.append("chat", text, turn_id=turn_id).chunks
    assert embedder.seen == ["yes", "no", "yes"]
    assert store.append("chat", "yes", turn_id="a").unchanged
    store.append("chat", "yes")
    store.append("other", "yes", turn_id="a")
    assert [document.chunks for document in sorted(store.documents(), key=lambda d: d.id)] == [4, 1]
    with pytest.raises(InputError, match="turn_id"):
        store.append("chat", "yes", turn_id="")


@pytest.mark.parametrize("changes", range(5))
def test_a_turn_with_an_id_is_stored_once_whatever_interrupts_it(client, changes):
    backend = FailingBackend(client)
    store = MergedStore(backend, merger=NarrowMean())
    vectors = chunk_vectors(2, 9, DIMENSION)
    for place, vector in enumerate(vectors):
        backend.changes_left = changes
        with suppress(StoreUnavailableError):
            store.append("chat", vector, turn_id=str(place))
        backend.changes_left = None
        for other in (store, MergedStore(backend, merger=NarrowMean())):
            assert other.append("chat", vector, turn_id=str(place)).chunks == place + 1
    assert_document(client, NarrowMean(), "chat", vectors)


def test_appending_to_a_document_that_is_half_replaced_is_refused(client):
    backend = FailingBackend(client)
    store = MergedStore(backend, merger=MeanMerger())
    store.ingest("a", vectors=chunk_vectors(1, 35, DIMENSION))
    backend.changes_left = 5
    with pytest.raises(StoreUnavailableError):
        store.ingest("a", vectors=chunk_vectors(2, 35, DIMENSION))
    backend.changes_left = None
    for act in (
        lambda: store.append("a", chunk_vectors(3, 1, DIMENSION)[0]),
        lambda: store.replace("a", 3, chunk_vectors(3, 1, DIMENSION)[0]),
        lambda: store.remove("a", 3),
    ):
        with pytest.raises(ConflictError, match="Ingest it again"):
            act()
    (problem,) = store.repair()
    assert (problem.kind, problem.document_id) == ("unfinished", "a")
    assert store.delete("a")
    assert not list(store.verify())


def test_a_missing_point_is_an_error_that_says_what_to_do(client):
    store = MergedStore(CountingBackend(client), merger=NarrowMean())
    vectors = chunk_vectors(1, 21, DIMENSION)
    store.ingest("a", vectors=vectors[:20])
    section = merged(client)["a", "section", 2, 9]
    client.delete("documents__merged", [section.id])
    with pytest.raises(StoreError, match="rebuild"):
        store.append("a", vectors[20])
    store.rebuild()
    store.append("a", vectors[20])
    assert_document(client, NarrowMean(), "a", vectors)


@pytest.mark.parametrize(
    ("turn", "error"),
    [("  ", EmptyInputError), (np.ones(DIMENSION + 1), DimensionError), (np.ones((2, 2)), DimensionError)],
)
def test_a_bad_turn_changes_nothing(client, turn, error):
    store = MergedStore(CountingBackend(client), merger=MeanMerger(), embedder=HashingEmbedder())
    vectors = chunk_vectors(1, 3, DIMENSION)
    for vector in vectors:
        store.append("chat", vector)
    with pytest.raises(error):
        store.append("chat", turn)
    with pytest.raises(InputError, match="id"):
        store.append("", vectors[0])
    assert_document(client, MeanMerger(), "chat", vectors)
