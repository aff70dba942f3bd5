"""Search on every level, compared with cosines over everything that is stored."""

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from merger_plugins import MeanMerger
from merger_plugins.chunking import SentenceChunker
from merger_plugins.errors import DimensionError, EmptyInputError, InputError, NonFiniteError, ZeroVectorError
from merger_plugins.stores import FusionWeights, MergedStore
from merger_plugins.stores.documents import words
from tests.stores.support import (
    DIMENSION,
    FILTERS,
    CountingBackend,
    HashingEmbedder,
    documents,
    informed,
    merged,
    metadata_of,
    stored,
    unit,
)
from tests.strategies import chunk_vectors

LENGTHS = (1, 4, 9, 10, 11, 23, 35)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "contextual"])
def filled(request):
    client = QdrantClient(":memory:")
    store = MergedStore(CountingBackend(client), merger=informed(), contextual=request.param)
    for index, (document_id, vectors) in enumerate(documents(8, *LENGTHS).items()):
        texts = [f"{document_id}/{i}" for i in range(len(vectors))]
        store.ingest(document_id, vectors=vectors, chunks=texts, metadata=metadata_of(index))
    yield store, client, request.param
    client.close()


QUERIES = [chunk_vectors(8000 + i, 1, DIMENSION)[0] for i in range(4)] + [chunk_vectors(77, 1, DIMENSION)[0]]


def cosines(points, query, *, contextual=False):
    """(id, cosine) of points, best first, computed here."""
    scored = [(p.id, float((p.contextual if contextual else p.vector) @ unit(query))) for p in points]
    return sorted(scored, key=lambda pair: -pair[1])


def assert_ranked(hits, expected):
    assert [hit.id for hit in hits] == [point_id for point_id, _ in expected]
    np.testing.assert_allclose([hit.score for hit in hits], [score for _, score in expected], atol=1e-5)


@pytest.mark.parametrize("query", QUERIES)
def test_chunks_sections_and_documents_are_ranked_by_cosine(filled, query):
    store, client, contextual = filled
    chunks = stored(client, "documents", "chunks").values()
    assert_ranked(store.search(query, 7), cosines(chunks, query)[:7])
    if contextual:
        assert_ranked(store.search(query, 7, "contextual"), cosines(chunks, query, contextual=True)[:7])
    tree = merged(client)
    sections = [point for key, point in tree.items() if key[2] == 1]
    assert_ranked(store.search(query, 5, "section"), cosines(sections, query)[:5])
    roots = [point for key, point in tree.items() if key[1] == "root"]
    hits = store.search(query, 100, "document")
    assert_ranked(hits, cosines(roots, query))
    assert sorted(hit.document_id for hit in hits) == [f"d{i}" for i in range(len(LENGTHS))]


def fused_by_hand(client, query, weights, contextual, keep=bool):
    tree = merged(client)
    own = dict(cosines(stored(client, "documents", "chunks").values(), query, contextual=contextual))
    scored = []
    for point in stored(client, "documents", "chunks").values():
        name = point.payload["document_id"]
        first = point.payload["position"] // 10 * 10
        section = next(
            float(p.vector @ unit(query)) for k, p in tree.items() if (k[0], *k[2:]) == (name, 1, first)
        )
        root = next(float(p.vector @ unit(query)) for k, p in tree.items() if k[0] == name and k[1] == "root")
        if keep(point.payload):
            score = weights.chunk * own[point.id] + weights.section * section + weights.root * root
            scored.append((point.id, score, own[point.id], section, root, name))
    return sorted(scored, key=lambda entry: -entry[1])


@pytest.mark.parametrize("weights", [FusionWeights(), FusionWeights(0.5, 0, 2), FusionWeights(1, 1, 0)])
@pytest.mark.parametrize("query", QUERIES)
def test_fused_scores_are_those_computed_over_everything(filled, query, weights):
    store, client, contextual = filled
    expected = fused_by_hand(client, query, weights, contextual)
    hits = store.search(query, 12, "fused", weights=weights)
    assert_ranked(hits, [entry[:2] for entry in expected[:12]])
    for hit, (_, _, chunk, section, root, name) in zip(hits, expected, strict=False):
        assert hit.document_id == name
        assert hit.parts.chunk == pytest.approx(chunk, abs=1e-5)
        assert hit.parts.section == (pytest.approx(section, abs=1e-5) if weights.section else None)
        assert hit.parts.root == (pytest.approx(root, abs=1e-5) if weights.root else None)


@pytest.mark.parametrize("query", QUERIES)
def test_grouping_keeps_the_best_hit_of_each_document(filled, query):
    store, client, contextual = filled
    best = {}
    for entry in fused_by_hand(client, query, FusionWeights(), contextual):
        best.setdefault(entry[5], entry)
    grouped = store.search(query, 4, "fused", group_by_document=True)
    assert_ranked(grouped, [entry[:2] for entry in list(best.values())[:4]])
    for level in ("chunk", "section", "document"):
        ranked = store.search(query, 1000, level)
        first = {}
        for hit in ranked:
            first.setdefault(hit.document_id, hit.id)
        hits = store.search(query, 4, level, group_by_document=True)
        assert [hit.id for hit in hits] == list(first.values())[:4]


def test_a_strong_root_brings_in_a_chunk_that_chunk_search_ranks_behind():
    client = QdrantClient(":memory:")
    store = MergedStore(CountingBackend(client), merger=MeanMerger())
    query = np.eye(DIMENSION)[0]
    near = np.stack([0.80 * query + 0.6 * np.eye(DIMENSION)[i] for i in range(1, 4)])
    store.ingest("strong", vectors=near)
    for index in range(12):
        lone = np.stack([0.82 * query + 0.57 * np.eye(DIMENSION)[5 + index % 8], *-np.eye(DIMENSION)[:8]])
        store.ingest(f"weak{index}", vectors=lone)
    assert store.search(query, 1)[0].document_id.startswith("weak")
    assert store.search(query, 1, "fused", oversampling=3)[0].document_id == "strong"


@pytest.mark.parametrize(
    ("filter", "keep"),
    [
        *FILTERS,
        ({"absent": "x"}, lambda m: "absent" in m),
        (
            models.Filter(
                must_not=[models.FieldCondition(key="metadata.n", match=models.MatchAny(any=[0, 1]))]
            ),
            lambda m: m["n"] > 1,
        ),
    ],
)
def test_filters_choose_by_metadata(filled, filter, keep):
    store, client, contextual = filled
    query = QUERIES[0]
    chunks = [p for p in stored(client, "documents", "chunks").values() if keep(p.payload["metadata"])]
    assert_ranked(store.search(query, 200, filter=filter), cosines(chunks, query))
    roots = [p for k, p in merged(client).items() if k[1] == "root" and keep(p.payload["metadata"])]
    assert_ranked(store.search(query, 200, "document", filter=filter), cosines(roots, query))
    expected = fused_by_hand(
        client, query, FusionWeights(), contextual, lambda payload: keep(payload["metadata"])
    )
    assert_ranked(store.search(query, 30, "fused", filter=filter), [entry[:2] for entry in expected[:30]])


def test_hits_say_where_they_stand():
    client = QdrantClient(":memory:")
    chunker = SentenceChunker(size=5, count_tokens=words)
    store = MergedStore(
        CountingBackend(client), merger=MeanMerger(), embedder=HashingEmbedder(), chunker=chunker
    )
    text = " ".join(f"Topic{i} matters to everybody here." for i in range(24))
    store.ingest("long", text, metadata={"x": 1})
    store.ingest("short", "Something else entirely stands here.")
    chunk = store.search("Topic13 matters to everybody here", 1)[0]
    assert chunk.text == text[chunk.start : chunk.end] == "Topic13 matters to everybody here."
    assert (chunk.level, chunk.position, chunk.stop, chunk.metadata) == ("chunk", 13, 14, {"x": 1})
    sections = {
        hit.position: hit for hit in store.search("topic", 10, "section") if hit.document_id == "long"
    }
    assert {hit.position: hit.stop for hit in sections.values()} == {0: 10, 10: 20, 20: 24}
    for hit in sections.values():
        assert hit.text.replace("\n", " ") == text[hit.start : hit.end]
        assert (hit.level, hit.metadata) == ("section", {"x": 1})
    lone = next(hit for hit in store.search("topic", 10, "section") if hit.document_id == "short")
    assert (lone.position, lone.stop, lone.text) == (0, 1, "Something else entirely stands here.")
    document = store.search("matters to everybody", 1, "document")[0]
    assert (document.level, document.position, document.stop, document.text) == ("document", 0, 24, None)


def test_an_empty_store_finds_nothing():
    store = MergedStore(CountingBackend(QdrantClient(":memory:")), merger=MeanMerger(), contextual=True)
    for level in ("chunk", "contextual", "section", "document", "fused"):
        assert store.search(np.ones(3), 3, level) == []
    assert list(store.documents()) == []
    assert not store.delete("a")


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"k": 0}, InputError, "k is 0"),
        ({"k": 2.0}, InputError, "k is 2.0"),
        ({"oversampling": 0}, InputError, "oversampling is 0"),
        ({"level": "paragraph"}, InputError, "fused"),
        ({"query": "  "}, EmptyInputError, "empty"),
        ({"query": np.ones(DIMENSION + 1)}, DimensionError, "has 16"),
        ({"query": np.zeros(DIMENSION)}, ZeroVectorError, "length zero"),
        ({"query": np.full(DIMENSION, np.inf)}, NonFiniteError, "infinity"),
        ({"filter": "x"}, InputError, "mapping"),
        ({"filter": {"x": {"y": 1}}}, InputError, "'x'"),
    ],
)
def test_searches_that_make_no_sense_are_refused(filled, options, error, says):
    store, _, _ = filled
    with pytest.raises(error, match=says):
        store.search(**({"query": QUERIES[0]} | options))


def test_contextual_search_needs_contextual_vectors(filled):
    store, _, contextual = filled
    if not contextual:
        with pytest.raises(InputError, match="contextual=True"):
            store.search(QUERIES[0], 3, "contextual")


@pytest.mark.parametrize("weights", [(-1, 0, 0), (1, float("nan"), 0), (1, 0, float("inf"))])
def test_weights_are_numbers_from_zero_on(weights):
    with pytest.raises(InputError, match="weight"):
        FusionWeights(*weights)
