"""Any order of ingesting, appending, replacing and deleting leaves what building anew would give."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient

from merger_plugins import MeanMerger
from merger_plugins.stores import Document, MergedStore
from tests.stores.support import (
    DIMENSION,
    CountingBackend,
    assert_document,
    informed,
    merged,
    stored,
)
from tests.strategies import NarrowCalibrated, NarrowMean, chunk_vectors

NAMES = st.sampled_from(["a", "b", "c"])
SEEDS = st.integers(0, 3)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("ingest"), NAMES, SEEDS, st.integers(1, 24)),
        st.tuples(st.just("append"), NAMES, SEEDS, st.integers(1, 7)),
        st.tuples(st.just("change"), NAMES, SEEDS, st.integers(0, 23)),
        st.tuples(st.just("delete"), NAMES, SEEDS, st.just(0)),
        st.tuples(st.just("reopen"), NAMES, SEEDS, st.just(0)),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60)
@given(
    operations=OPERATIONS,
    merger=st.sampled_from([MeanMerger(), informed(), NarrowMean(), informed(NarrowCalibrated)]),
    contextual=st.booleans(),
)
def test_any_history_ends_in_the_same_store(operations, merger, contextual):
    client = QdrantClient(":memory:")
    store = MergedStore(CountingBackend(client), merger=merger, contextual=contextual)
    model = {}
    for act, name, seed, number in operations:
        if act == "ingest":
            model[name] = chunk_vectors(seed, number, DIMENSION)
            store.ingest(name, vectors=model[name])
        elif act == "append":
            added = chunk_vectors(100 + seed, number, DIMENSION)
            model[name] = np.concatenate([model[name], added]) if name in model else added
            for vector in added:
                store.append(name, vector)
        elif act == "change" and name in model:
            model[name] = model[name].copy()
            model[name][number % len(model[name])] = chunk_vectors(200 + seed, 1, DIMENSION)[0]
            store.ingest_many([Document(name, vectors=model[name])])
        elif act == "delete":
            assert store.delete(name) == (name in model)
            model.pop(name, None)
        elif act == "reopen":
            store = MergedStore(CountingBackend(client), merger=merger, contextual=contextual)
    for name, vectors in model.items():
        assert_document(client, merger, name, vectors)
    if client.collection_exists("documents"):
        assert len(stored(client, "documents", "chunks")) == sum(map(len, model.values()))
        assert {key[0] for key in merged(client)} == model.keys()
    if contextual:
        compare_contextual(client, store, model)
    client.close()


def compare_contextual(client, store, model):
    """Those of an ingested document are exact; those of a conversation may lag behind a little."""
    conversations = {document.id for document in store.documents() if document.conversation}
    before = {point.id: point for point in stored(client, "documents", "chunks").values()} if model else {}
    store.rebuild()
    after = stored(client, "documents", "chunks") if model else {}
    for point_id, point in before.items():
        cosine = float(point.contextual @ after[point_id].contextual)
        assert cosine > (0.98 if point.payload["document_id"] in conversations else 0.985)
