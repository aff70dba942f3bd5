"""Back-fill of collections that compare by dot product or by distance, which unit vectors make cosines of."""

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from merger_plugins.errors import StoreError
from merger_plugins.qdrant import QdrantStore
from tests.stores.foreign import QdrantApp, corpus, create, hosted, langchain, point_id, put
from tests.stores.support import DIMENSION, informed, unit
from tests.strategies import chunk_vectors

LEVELS = ("chunk", "section", "document", "fused")


@pytest.fixture(params=["qdrant", "edge", "chroma"])
def host(request, tmp_path):
    with hosted(request.param, tmp_path) as made:
        yield made


@pytest.fixture(params=[0, 1])
def distance(request, host):
    return host.distances[request.param]


def of_unit_length(seed=3):
    return {name: unit(vectors) for name, vectors in corpus(seed).items()}


@pytest.mark.parametrize("contextual", ["none", "companion"])
def test_unit_vectors_rank_and_score_as_by_cosine(host, distance, contextual):
    texts = of_unit_length()
    for name, compared in (("theirs", distance), ("cosine", host.cosine)):
        host.write(name, compared, texts)
        assert host.store(name).backfill(contextual=contextual).documents == len(texts)
    for seed in range(4):
        query = 3 * chunk_vectors(900 + seed, 1, DIMENSION)[0]
        for level in (*LEVELS, *(["contextual"] if contextual == "companion" else [])):
            for options in (
                {},
                {"filter": {"source": ["d3", "d5", "d6", "d7"]}},
                {"group_by_document": True},
            ):
                theirs, cosine = (
                    host.store(name).search(query, 6, level, **options) for name in ("theirs", "cosine")
                )
                assert len(cosine) >= 4
                assert [(h.document_id, h.position) for h in theirs] == [
                    (h.document_id, h.position) for h in cosine
                ]
                np.testing.assert_allclose(
                    [h.score for h in theirs], [h.score for h in cosine], atol=2e-6, rtol=0
                )
                if level in ("chunk", "contextual", "fused"):
                    assert [h.id for h in theirs] == [h.id for h in cosine]


def test_every_vector_must_have_unit_length(host, distance):
    texts = of_unit_length()
    texts["d7"][63] *= 1.25
    host.write("theirs", distance, texts)
    word = getattr(distance, "value", distance)
    with pytest.raises(StoreError, match=rf"compared by {word}.*lengths from 1 to 1\.25.*cosine"):
        host.store("theirs").backfill()
    assert not host.exists("theirs__merged")
    host.write("theirs", distance, of_unit_length())
    assert host.store("theirs").backfill().chunks == sum(map(len, texts.values()))


def test_a_vector_of_another_length_that_came_later_is_refused_and_the_old_vectors_answer(host, distance):
    texts = of_unit_length()
    host.write("theirs", distance, texts)
    host.store("theirs").backfill()
    query = chunk_vectors(900, 1, DIMENSION)[0]
    before = host.store("theirs").search(query, 5, "document")
    host.write("theirs", distance, {"d8": chunk_vectors(1, 3, DIMENSION) * 0.2})
    with pytest.raises(StoreError, match="lengths from"):
        host.store("theirs").backfill()
    assert host.store("theirs").search(query, 5, "document") == before


def test_lengths_are_taken_to_a_thousandth(host, distance):
    texts = {name: (vectors * 1.0005).astype(np.float32) for name, vectors in of_unit_length().items()}
    host.write("theirs", distance, texts)
    assert host.store("theirs").backfill().documents == len(texts)


def test_a_collection_that_was_not_back_filled_says_what_to_do(host, distance):
    host.write("theirs", distance, of_unit_length())
    with pytest.raises(StoreError, match=r"run backfill\(\)"):
        host.store("theirs").search(np.ones(DIMENSION), 3)


def test_what_ranks_otherwise_is_refused():
    client = QdrantClient(":memory:")
    host = QdrantApp(client)
    host.write("theirs", host.other, of_unit_length())
    with pytest.raises(StoreError, match="compared by Manhattan"):
        host.store("theirs").backfill()
    client.close()


def test_a_named_vector_for_contextual_ones_is_compared_as_the_chunks_are():
    client = QdrantClient(":memory:")
    euclid = models.VectorParams(size=DIMENSION, distance=models.Distance.EUCLID)
    create(client, distance=models.Distance.EUCLID, contextual=euclid)
    texts = of_unit_length()
    put(client, texts)
    store = QdrantStore(client, "app", merger=informed())
    store.backfill(contextual="named")
    query = chunk_vectors(900, 1, DIMENSION)[0]
    cosines = {}
    for name, vectors in texts.items():
        masses = [float(len(langchain(name, i)["page_content"].split())) for i in range(len(vectors))]
        made = informed().contextualize(vectors, masses=masses) @ unit(query)
        cosines |= {point_id(name, i): float(value) for i, value in enumerate(made)}
    hits = store.search(query, 6, "contextual")
    assert [hit.id for hit in hits] == sorted(cosines, key=lambda each: -cosines[each])[:6]
    for hit in hits:
        assert hit.score == pytest.approx(cosines[hit.id], abs=1e-5)
    client.close()
