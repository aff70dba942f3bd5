"""Retriever, postprocessor and embedding inside LlamaIndex's engines, evaluator, caches and callbacks."""

from typing import Any

import pytest
from llama_index.core import VectorStoreIndex, get_response_synthesizer
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.evaluation import RetrieverEvaluator
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.storage.kvstore import SimpleKVStore

from merger_plugins.llama_index import MergerEmbedding, MergerNodePostprocessor, MergerRetriever
from merger_plugins.qdrant import QdrantStore
from tests.llama_index.apps import KINDS, QUESTION, App, WordModel, assert_same, documents, ranking

HOOKED = ("qdrant", "chroma")
MODES = ("context", "merge", "expand")


def engine(retriever: Any, *postprocessors: Any, **settings: Any) -> RetrieverQueryEngine:
    return RetrieverQueryEngine(
        retriever,
        response_synthesizer=get_response_synthesizer(llm=MockLLM(), **settings),
        node_postprocessors=list(postprocessors),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
async def test_an_index_as_query_engine(apps: dict[str, App], kind: str, mode: Any) -> None:
    one = apps[kind]
    made = MergerNodePostprocessor.from_index(one.index, mode=mode)
    settings: dict[str, Any] = {
        "llm": MockLLM(),
        "similarity_top_k": 8,
        "node_postprocessors": [made],
    }
    one.model.asked.clear()
    answer = one.index.as_query_engine(**settings).query(QUESTION)
    assert one.model.asked == {"query": 1}, "the host hands its vector over"
    assert_same(answer.source_nodes, made.postprocess_nodes(one.retrieved(), query_str=QUESTION))
    assert answer.source_nodes[0].text.split()[-1] in str(answer), "the stand-in model repeats its prompt"
    awaited = await one.index.as_query_engine(**settings).aquery(QUESTION)
    assert_same(answer.source_nodes, awaited.source_nodes)
    streamed = one.index.as_query_engine(streaming=True, **settings).query(QUESTION)
    assert_same(answer.source_nodes, streamed.source_nodes)
    assert str(streamed) == str(answer)


@pytest.mark.parametrize("kind", HOOKED)
@pytest.mark.parametrize("mode", ["fused", "document", "section"])
async def test_the_retriever_in_a_query_engine(apps: dict[str, App], kind: str, mode: Any) -> None:
    with apps[kind].hook() as hook:
        ours = MergerRetriever(hook, mode=mode, similarity_top_k=5)
        found = ours.retrieve(QUESTION)
        plain = engine(ours).query(QUESTION)
        assert_same(plain.source_nodes, found)
        assert found[0].text.split()[-1] in str(plain)
        assert_same((await engine(ours).aquery(QUESTION)).source_nodes, found)
        streamed = engine(ours, streaming=True).query(QUESTION)
        assert_same(streamed.source_nodes, found)
        assert str(streamed) == str(plain)


async def test_a_postprocessor_after_it_need_not_embed_the_query_again(apps: dict[str, App]) -> None:
    one = apps["qdrant"]
    with one.hook() as hook:
        made = engine(
            MergerRetriever(hook, similarity_top_k=6),
            MergerNodePostprocessor.from_index(one.index, mode="merge", hook=hook),
        )
        one.model.asked.clear()
        plain = made.query(QUESTION)
        assert one.model.asked == {"query": 1}
        awaited = await made.aquery(QUESTION)
        assert one.model.asked == {"query": 1, "query awaited": 1}
    assert_same(plain.source_nodes, awaited.source_nodes)
    assert len({node.node.ref_doc_id for node in plain.source_nodes}) == len(plain.source_nodes)


@pytest.mark.parametrize("kind", HOOKED)
async def test_beside_the_hosts_retriever_in_one_fusion(apps: dict[str, App], kind: str) -> None:
    one = apps[kind]
    with one.hook() as hook:
        both = [MergerRetriever(hook, similarity_top_k=5), one.index.as_retriever(similarity_top_k=5)]
        fusion = QueryFusionRetriever(
            both, llm=MockLLM(), mode="reciprocal_rerank", num_queries=1, similarity_top_k=20, use_async=False
        )
        found = {node.node_id for retriever in both for node in retriever.retrieve(QUESTION)}
        fused = fusion.retrieve(QUESTION)
        assert {node.node_id for node in fused} == found
        assert len(fused) < 10, "both find the same points under the same ids"
        awaited = await fusion.aretrieve(QUESTION)  # which orders equal scores otherwise
        assert dict(ranking(awaited)) == pytest.approx(dict(ranking(fused)))


@pytest.mark.parametrize("kind", HOOKED)
async def test_the_hosts_evaluator_measures_it(apps: dict[str, App], kind: str) -> None:
    right = [own[3].text for own in apps[kind].nodes().values()]
    with apps[kind].hook() as hook:
        stored = {chunk.text: chunk.id for one in documents() for chunk in hook.contents(one.id_)}
        made = MergerRetriever(hook, similarity_top_k=3)
        evaluator = RetrieverEvaluator.from_metric_names(["mrr", "hit_rate"], retriever=made)
        measured = [await evaluator.aevaluate(text, [stored[text]]) for text in right]
    assert [one.metric_vals_dict["hit_rate"] for one in measured] == [1.0] * len(right)
    assert all(one.metric_vals_dict["mrr"] >= 0.5 for one in measured)


def test_callbacks_are_told() -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    with QdrantStore(":memory:", embedder=WordModel()) as store:
        for document in documents():
            store.ingest(document.id_, document.text)
        made = MergerRetriever(store, callback_manager=CallbackManager([debug]))
        found = made.retrieve(QUESTION)
    ((_, end),) = debug.get_event_pairs(CBEventType.RETRIEVE)
    assert [node.node_id for node in end.payload["nodes"]] == [node.node_id for node in found]
    assert len(found) == 2


def test_the_embedding_in_an_index_and_with_the_hosts_cache_and_callbacks() -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    model = WordModel()
    made = MergerEmbedding(
        model,
        max_tokens=32,
        count_tokens=lambda text: len(text.split()),
        embeddings_cache=SimpleKVStore(),
        callback_manager=CallbackManager([debug]),
    )
    made.get_query_embedding("honey")
    assert len(debug.get_event_pairs(CBEventType.EMBEDDING)) == 1
    index = VectorStoreIndex.from_documents(documents(), embed_model=made)
    asked = model.asked["text"]
    again = VectorStoreIndex.from_documents(documents(), embed_model=made)
    assert model.asked["text"] == asked
    for one in (index, again):
        (found,) = one.as_retriever(similarity_top_k=1).retrieve("lamp of the tower")
        assert found.node.ref_doc_id == "tower"
