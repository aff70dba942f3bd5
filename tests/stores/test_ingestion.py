"""Ingesting into a real embedded Qdrant, compared with merges made directly."""

import numpy as np
import pytest
from qdrant_client import QdrantClient

from merger_plugins import MeanMerger
from merger_plugins.chunking import SentenceChunker
from merger_plugins.errors import (
    DimensionError,
    EmptyInputError,
    InputError,
    NonFiniteError,
    StoreUnavailableError,
)
from merger_plugins.stores import Document, MergedStore
from merger_plugins.stores.documents import words
from tests.stores.support import (
    DIMENSION,
    MERGERS,
    CountingBackend,
    FailingBackend,
    HashingEmbedder,
    assert_document,
    documents,
    informed,
    merged,
    stored,
)
from tests.strategies import chunk_vectors

SENTENCES = [
    f"Sentence number {i} speaks of {fruit}." for i, fruit in enumerate(["pears", "apples", "figs", "plums"])
]
CHUNKER = SentenceChunker(size=6, count_tokens=words)


def everything(client):
    return {
        point_id: (point.payload, None if point.vector is None else point.vector.tolist())
        for shelf in ("chunks", "merged")
        for point_id, point in stored(client, "documents", shelf).items()
    }


@pytest.mark.parametrize("name", MERGERS)
def test_sections_and_roots_are_the_merges_of_the_chunk_vectors(client, name):
    merger = MERGERS[name]
    store = MergedStore(CountingBackend(client), merger=merger)
    given = documents(1, 1, 2, 3, 9, 10, 11, 20, 31, 105)
    for document_id, vectors in given.items():
        masses = np.arange(1, len(vectors) + 1)
        result = store.ingest(document_id, vectors=vectors * 7, masses=masses, metadata={"n": len(vectors)})
        assert (result.document_id, result.chunks, result.embedded) == (document_id, len(vectors), 0)
    for document_id, vectors in given.items():
        assert_document(client, merger, document_id, vectors, masses=np.arange(1, len(vectors) + 1))


def test_a_chunk_point_says_what_it_is(client):
    store = MergedStore(
        CountingBackend(client), merger=MeanMerger(), embedder=HashingEmbedder(), chunker=CHUNKER
    )
    text = " ".join(SENTENCES)
    store.ingest("fruit", text, metadata={"lang": "en"})
    points = sorted(stored(client, "documents", "chunks").values(), key=lambda p: p.payload["position"])
    for position, point in enumerate(points):
        payload = point.payload
        assert payload["page_content"] == SENTENCES[position] == text[payload["start"] : payload["end"]]
        vector = HashingEmbedder().embed_query(SENTENCES[position])
        assert payload["norm"] == pytest.approx(np.linalg.norm(vector), rel=1e-6)
        assert payload["mass"] == len(SENTENCES[position].split())
        assert (payload["document_id"], payload["position"], payload["level"]) == ("fruit", position, 0)
        assert payload["metadata"] == {"lang": "en"}
        assert "fingerprint" not in payload  # a raw vector is no merger's work
    root = merged(client)["fruit", "root", 1, 0]
    assert root.payload["metadata"] == {"lang": "en"}
    assert root.payload["mass"] == sum(p.payload["mass"] for p in points)


def test_ingesting_again_reads_a_little_and_writes_nothing(client):
    backend = CountingBackend(client)
    embedder = HashingEmbedder()
    store = MergedStore(backend, merger=informed(), embedder=embedder, chunker=CHUNKER, contextual=True)
    store.ingest("a", " ".join(SENTENCES * 4), metadata={"x": 1})
    before = everything(client)
    embedder.seen.clear()
    backend.reset()
    result = store.ingest("a", " ".join(SENTENCES * 4), metadata={"x": 1})
    assert result.unchanged
    assert result.chunks == 16
    assert not embedder.seen
    assert not backend.written
    assert sum(backend.reads.values()) <= 3
    assert everything(client) == before


@pytest.mark.parametrize("contextual", [False, True])
def test_a_changed_text_embeds_and_replaces_what_changed(client, contextual):
    embedder = HashingEmbedder()
    options = {"merger": informed(), "embedder": embedder, "chunker": CHUNKER, "contextual": contextual}
    backend = CountingBackend(client)
    store = MergedStore(backend, **options)
    old = [f"Word{i} follows word{i + 1} closely here." for i in range(24)]
    new = [*old[:20], "A changed sentence stands here now.", *old[21:]]
    store.ingest("a", chunks=old)
    embedder.seen.clear()
    backend.reset()
    result = store.ingest("a", chunks=new)
    assert embedder.seen == [new[20]]
    assert (result.embedded, result.deleted) == (1, 0)
    if not contextual:
        assert backend.written["chunks"] == 1
        assert (backend.written["merged"], backend.swapped) == (1, 2)  # the last section; the root
    other = QdrantClient(":memory:")
    MergedStore(CountingBackend(other), **options).ingest("a", chunks=new)
    assert_same_store(client, other)


def test_a_sentence_put_in_front_keeps_all_other_vectors(client):
    embedder = HashingEmbedder()
    store = MergedStore(CountingBackend(client), merger=MeanMerger(), embedder=embedder, chunker=CHUNKER)
    store.ingest("a", " ".join(SENTENCES))
    embedder.seen.clear()
    result = store.ingest("a", " ".join(["A new one opens this.", *SENTENCES]))
    assert embedder.seen == ["A new one opens this."]
    assert result.chunks == 5
    vectors = np.stack([embedder.embed_query(text) for text in ["A new one opens this.", *SENTENCES]])
    norms = [p.payload["norm"] for p in stored(client, "documents", "chunks").values()]
    np.testing.assert_allclose(sorted(norms), sorted(np.linalg.norm(vectors, axis=1)), rtol=1e-5)


def test_other_metadata_is_written_without_embedding(client):
    embedder = HashingEmbedder()
    store = MergedStore(CountingBackend(client), merger=MeanMerger(), embedder=embedder, chunker=CHUNKER)
    store.ingest("a", " ".join(SENTENCES), metadata={"v": 1})
    embedder.seen.clear()
    assert not store.ingest("a", " ".join(SENTENCES), metadata={"v": 2}).unchanged
    assert not embedder.seen
    assert {p.payload["metadata"]["v"] for p in stored(client, "documents", "chunks").values()} == {2}
    assert merged(client)["a", "root", 1, 0].payload["metadata"] == {"v": 2}


@pytest.mark.parametrize(("before", "after"), [(115, 7), (31, 30), (11, 10), (10, 9), (9, 115), (70, 65)])
def test_a_shorter_or_longer_version_leaves_nothing_behind(client, before, after):
    store = MergedStore(CountingBackend(client), merger=informed(), contextual=True)
    store.ingest("other", vectors=chunk_vectors(1, 12, DIMENSION))
    store.ingest("a", vectors=chunk_vectors(2, before, DIMENSION))
    vectors = chunk_vectors(3, after, DIMENSION)
    store.ingest("a", vectors=vectors)
    assert_document(client, informed(), "a", vectors)
    assert_document(client, informed(), "other", chunk_vectors(1, 12, DIMENSION))
    assert len(stored(client, "documents", "chunks")) == 12 + after


def test_contextual_vectors_are_the_mergers(client):
    merger = informed()
    store = MergedStore(CountingBackend(client), merger=merger, contextual=True)
    vectors, masses = chunk_vectors(4, 23, DIMENSION), np.arange(1, 24)
    store.ingest("a", vectors=vectors, masses=masses)
    points = sorted(stored(client, "documents", "chunks").values(), key=lambda p: p.payload["position"])
    np.testing.assert_allclose(
        np.stack([p.contextual for p in points]), merger.contextualize(vectors, masses=masses), atol=1e-5
    )
    assert {p.payload["fingerprint"] for p in points} == {merger.fingerprint}


def test_many_documents_go_in_together_and_errors_stay_with_their_document(client):
    embedder = HashingEmbedder()
    backend = CountingBackend(client)
    store = MergedStore(backend, merger=MeanMerger(), embedder=embedder, chunker=CHUNKER)
    reported = []
    results = store.ingest_many(
        [
            ("a", SENTENCES[0]),
            ("b", "   "),
            Document("c", chunks=SENTENCES, metadata={"x": float("inf")}),
            Document("d", vectors=[[np.nan] * DIMENSION]),
            Document("e", vectors=np.ones((2, DIMENSION + 1))),
            ("f", SENTENCES[1]),
            ("a", SENTENCES[2]),
            "no",
        ],
        progress=reported.append,
    )
    assert [type(result.error) for result in results] == [
        type(None),
        EmptyInputError,
        InputError,
        NonFiniteError,
        DimensionError,
        type(None),
        type(None),
        InputError,
    ]
    assert reported == results
    assert sorted(document.id for document in store.documents()) == ["a", "f"]
    texts = {p.payload["page_content"] for p in stored(client, "documents", "chunks").values()}
    assert texts == {SENTENCES[1], SENTENCES[2]}


def test_an_embedder_that_fails_on_one_text_costs_one_document(client):
    class Picky(HashingEmbedder):
        def embed_documents(self, texts):
            if any("figs" in text for text in texts):
                raise RuntimeError("I do not like figs")
            return super().embed_documents(texts)

    store = MergedStore(CountingBackend(client), merger=MeanMerger(), embedder=Picky(), chunker=CHUNKER)
    results = store.ingest_many(zip("abcd", SENTENCES, strict=True))
    assert [result.document_id for result in results if result.error] == ["c"]
    assert "figs" in str(results[2].error)
    assert len(list(store.documents())) == 3
    with pytest.raises(RuntimeError, match="figs"):
        store.ingest("c", SENTENCES[2])


def test_documents_are_read_as_they_are_needed_and_written_in_few_requests(client):
    backend = CountingBackend(client)
    store = MergedStore(backend, merger=MeanMerger())
    seen = []

    def produce():
        for index in range(300):
            seen.append(len(stored(client, "documents", "chunks")) if index == 299 else 0)
            yield Document(str(index), vectors=chunk_vectors(index, 5, DIMENSION))

    store.ingest_many(produce())
    assert seen[-1] > 500  # the first batches were written before the last document was asked for
    assert backend.requests <= 1 + 4 * 7  # what is there, claims, chunks, the rest; some read back
    assert store.inspect().documents == 300


def test_repeated_texts_are_embedded_once(client):
    embedder = HashingEmbedder()
    store = MergedStore(CountingBackend(client), merger=MeanMerger(), embedder=embedder)
    store.ingest_many([Document("a", chunks=["same", "same"]), Document("b", chunks=["same", "other"])])
    assert sorted(embedder.seen) == ["other", "same"]


def test_deleting_removes_every_point_of_the_document(client):
    store = MergedStore(CountingBackend(client), merger=MeanMerger())
    given = documents(2, 25, 12)
    for document_id, vectors in given.items():
        store.ingest(document_id, vectors=vectors)
    assert store.delete("d0")
    assert not store.delete("d0")
    assert not store.delete("never there")
    assert [document.id for document in store.documents()] == ["d1"]
    assert_document(client, MeanMerger(), "d1", given["d1"])
    assert len(stored(client, "documents", "chunks")) == 12
    store.ingest("d0", vectors=given["d0"])
    assert_document(client, MeanMerger(), "d0", given["d0"])


@pytest.mark.parametrize("contextual", [False, True])
@pytest.mark.parametrize(("before", "after"), [(None, 25), (31, 12), (12, 31), (25, 25)])
def test_whatever_interrupts_an_ingestion_repeating_it_completes_it(contextual, before, after):
    old = None if before is None else chunk_vectors(1, before, DIMENSION)
    new = chunk_vectors(2, after, DIMENSION)
    new[:5] = chunk_vectors(1, 5, DIMENSION)
    survived = 0
    for changes in range(0, 200, 7):
        client = QdrantClient(":memory:")
        backend = FailingBackend(client)
        store = MergedStore(backend, merger=informed(), contextual=contextual)
        store.ingest("other", vectors=new)
        if old is not None:
            store.ingest("a", vectors=old)
        backend.changes_left = changes
        try:
            store.ingest("a", vectors=new)
            survived += 1
        except StoreUnavailableError:
            pass
        backend.changes_left = None
        again = MergedStore(backend, merger=informed(), contextual=contextual)
        again.ingest("a", vectors=new)
        assert_document(client, informed(), "a", new)
        assert_document(client, informed(), "other", new)
        assert not list(again.verify())
    assert 0 < survived < 29


@pytest.mark.parametrize("changes", range(0, 40, 3))
def test_going_back_to_the_old_version_after_an_interruption_restores_it(client, changes):
    backend = FailingBackend(client)
    store = MergedStore(backend, merger=MeanMerger())
    old = chunk_vectors(1, 22, DIMENSION)
    store.ingest("a", vectors=old)
    backend.changes_left = changes
    with pytest.raises(StoreUnavailableError):
        store.ingest("a", vectors=chunk_vectors(2, 44, DIMENSION))
    backend.changes_left = None
    store.ingest("a", vectors=old)
    assert_document(client, MeanMerger(), "a", old)
    assert store.ingest("a", vectors=old).unchanged


@pytest.mark.parametrize("changes", range(4))
def test_an_interrupted_deletion_can_be_repeated_or_undone(client, changes):
    backend = FailingBackend(client)
    store = MergedStore(backend, merger=MeanMerger())
    vectors = chunk_vectors(1, 22, DIMENSION)
    for finish in ("delete", "ingest", "append", "repair"):
        store.ingest("a", vectors=vectors)
        backend.changes_left = changes
        with pytest.raises(StoreUnavailableError):
            store.delete("a")
        backend.changes_left = None
        gone = changes > 0
        assert [document.id for document in store.documents()] == [] if gone else ["a"]
        assert [problem.kind for problem in store.verify()] == ["unfinished"] * gone
        if finish == "delete":
            assert store.delete("a")
            assert not store.delete("a")
        elif finish == "repair":
            assert not store.repair()
            if not gone:
                store.delete("a")
        elif finish == "ingest":
            store.ingest("a", vectors=vectors)
            assert_document(client, MeanMerger(), "a", vectors)
            store.delete("a")
        else:
            store.append("a", vectors[0])
            expected = vectors[:1] if gone else np.concatenate([vectors, vectors[:1]])
            assert_document(client, MeanMerger(), "a", expected)
            store.delete("a")
        assert not stored(client, "documents", "chunks")
        assert not merged(client)
        assert not list(store.verify())


def assert_same_store(one, other):
    for shelf in ("chunks", "merged"):
        first, second = stored(one, "documents", shelf), stored(other, "documents", shelf)
        assert first.keys() == second.keys()
        for point_id, point in first.items():
            twin = second[point_id]
            for mine, theirs in ((point.vector, twin.vector), (point.contextual, twin.contextual)):
                assert (mine is None) == (theirs is None)
                if mine is not None:
                    np.testing.assert_allclose(mine, theirs, atol=1e-5)
            approximate = {"node", "norm", "mass", "context", "version", "token"}
            assert {k: v for k, v in point.payload.items() if k not in approximate} == {
                k: v for k, v in twin.payload.items() if k not in approximate
            }
            assert point.payload.get("mass") == pytest.approx(twin.payload.get("mass"))
