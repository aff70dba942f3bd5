"""Chroma and Qdrant rank the same data alike, to ties."""

import numpy as np
import pytest

from merger_plugins.stores import Document, MergedStore
from tests.stores.contract.hosts import OPEN
from tests.stores.support import DIMENSION, documents, informed
from tests.strategies import chunk_vectors

GIVEN = documents(6, 1, 9, 12, 30, 44, 105)
QUERIES = [*chunk_vectors(90, 4, DIMENSION), GIVEN["d3"][4], -GIVEN["d5"][50]]
TIE = 2e-6


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """The same documents and turns in both, with and without contextual vectors."""
    hosts = [OPEN[name](tmp_path_factory.mktemp(name)) for name in ("chroma-memory", "qdrant-memory")]
    pairs = {}
    for contextual in (False, True):
        pair = []
        for host in hosts:
            store = host.store(f"ranking-{contextual}", merger=informed(), contextual=contextual)
            store.ingest_many(
                Document(name, vectors=v, metadata={"n": len(v), "tags": [name, "x"]})
                for name, v in GIVEN.items()
            )
            for vector in GIVEN["d3"][:23]:
                store.append("chat", vector, metadata={"n": 23})
            store.calibrate()
            pair.append(store)
        pairs[contextual] = pair
    yield pairs
    for host in hosts:
        host.close()


def assert_same_ranking(one: MergedStore, other: MergedStore, query, k, level, **options):
    """Equal scores place by place, and equal points wherever no neighbour scores the same."""
    mine, theirs = (store.search(query, k, level, **options) for store in (one, other))
    assert len(mine) == len(theirs)
    scores = np.array([hit.score for hit in theirs])
    np.testing.assert_allclose([hit.score for hit in mine], scores, atol=1e-5)
    start = 0
    for stop in [*(np.flatnonzero(-np.diff(scores) > TIE) + 1), len(scores)]:
        if stop < len(scores) or len(scores) < k:  # what follows the last place may tie with it
            assert {hit.id for hit in mine[start:stop]} == {hit.id for hit in theirs[start:stop]}
        start = stop


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("contextual", [False, True])
@pytest.mark.parametrize("level", ["chunk", "section", "document", "fused", "contextual"])
def test_the_ranking_is_the_same(pairs, level, contextual, grouped):
    if level == "contextual" and not contextual:
        pytest.skip("the store has no contextual vectors")
    for query in QUERIES:
        for k, filter in ((3, None), (10, None), (300, None), (10, {"tags": ["d5", "d3"]}), (10, {"n": 23})):
            assert_same_ranking(*pairs[contextual], query, k, level, filter=filter, group_by_document=grouped)
