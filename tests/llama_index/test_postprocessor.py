import asyncio
import json
import logging
import pickle
from typing import Any

import numpy as np
import pytest
from chromadb import Collection
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import NodeRelationship, NodeWithScore, QueryBundle, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.vector_stores.qdrant import QdrantVectorStore
from pydantic import PrivateAttr
from qdrant_client import QdrantClient

from merger_plugins import CalibratedMerger, MeanMerger, load_merger
from merger_plugins.errors import DimensionError, FingerprintError, InputError, StoreError
from merger_plugins.llama_index import MergerNodePostprocessor, MergerTransform
from merger_plugins.stores import FusionWeights
from merger_plugins.tree import RollingMerge
from tests.llama_index.apps import (
    KINDS,
    QUESTION,
    App,
    PlainModel,
    WordModel,
    app,
    assert_same,
    calibrated,
    nothing_blocks,
    word_vector,
)

MODES = ("context", "merge", "expand")


def cos(one: Any, other: Any) -> float:
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def masses(nodes: list[Any]) -> list[int]:
    return [len(node.text.split()) for node in nodes]


def mean(nodes: list[Any]) -> Any:
    rows = np.array([node.embedding for node in nodes])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return np.average(rows, axis=0, weights=masses(nodes))


# What the modes give


@pytest.mark.parametrize("kind", KINDS)
def test_context_scores_a_node_and_its_document(apps: dict[str, App], kind: str) -> None:
    one = apps[kind]
    query = word_vector(QUESTION)
    everything = one.nodes()
    vectors = {node.text: node.embedding for nodes in everything.values() for node in nodes}
    weights = FusionWeights(chunk=1.0, root=0.5)
    found = one.retrieved()
    got = MergerNodePostprocessor.from_index(one.index, weights=weights).postprocess_nodes(
        found, query_str=QUESTION
    )
    expected = {
        node.node_id: cos(vectors[node.node.text], query)
        + 0.5 * cos(mean(everything[node.node.ref_doc_id]), query)
        for node in found
    }
    assert len({node.node.ref_doc_id for node in found}) > 1
    assert [node.node_id for node in got] == sorted(expected, key=lambda name: -expected[name])
    np.testing.assert_allclose(
        [node.score for node in got], sorted(expected.values(), reverse=True), atol=1e-5
    )


@pytest.mark.parametrize("kind", ["qdrant", "chroma"])
def test_with_a_hook_roots_are_those_that_it_stores(apps: dict[str, App], kind: str) -> None:
    one = apps[kind]
    query = word_vector(QUESTION)
    vectors = {node.text: node.embedding for nodes in one.nodes().values() for node in nodes}
    with one.hook() as hook:
        roots = {hit.document_id: hit.score for hit in hook.search(QUESTION, 10, "document")}
        got = MergerNodePostprocessor.from_index(one.index, hook=hook).postprocess_nodes(
            one.retrieved(), query_str=QUESTION
        )
    for node in got:
        expected = cos(vectors[node.node.text], query) + 0.1 * roots[node.node.ref_doc_id]
        assert node.score == pytest.approx(expected, abs=1e-6)


def test_merge_makes_one_node_of_a_documents_nodes(apps: dict[str, App]) -> None:
    one = apps["simple"]
    found = one.retrieved()
    got = MergerNodePostprocessor.from_index(one.index, mode="merge").postprocess_nodes(
        found, query_str=QUESTION
    )
    everything = {node.text: node for nodes in one.nodes().values() for node in nodes}
    groups: dict[str, list[Any]] = {}
    for node in found:
        groups.setdefault(node.node.ref_doc_id or "", []).append(everything[node.node.text])
    assert {node.node.ref_doc_id for node in got} == set(groups)
    assert max(len(group) for group in groups.values()) > 2
    for node in got:
        group = sorted(groups[node.node.ref_doc_id or ""], key=lambda chunk: chunk.start_char_idx)
        merged = MeanMerger().merge([chunk.embedding for chunk in group], masses=masses(group))
        np.testing.assert_allclose(node.node.embedding, merged, atol=1e-6)
        assert node.score == pytest.approx(cos(merged, word_vector(QUESTION)), abs=1e-6)
        assert node.node.metadata == group[0].metadata
    scores = [node.score for node in got]
    assert scores == sorted(scores, reverse=True)


def test_merged_text_is_in_reading_order_and_says_nothing_twice() -> None:
    one = app("simple")
    nodes = one.nodes()["tower"][:3]
    text = one.index.docstore.get_node(one.index.docstore.get_ref_doc_info("tower").node_ids[0]).get_content()
    assert nodes[0].end_char_idx > nodes[1].start_char_idx, "the splitter was to overlap"
    shuffled = [NodeWithScore(node=node, score=0.0) for node in (nodes[2], nodes[0], nodes[1])]
    (got,) = MergerNodePostprocessor(mode="merge", embed_model=one.model).postprocess_nodes(
        shuffled, query_str=QUESTION
    )
    whole = next(document.text for document in _documents() if document.id_ == "tower")
    assert got.text == whole[nodes[0].start_char_idx : nodes[2].end_char_idx]
    assert got.text.startswith(text[:20])


def _documents() -> list[Any]:
    from tests.llama_index.apps import documents

    return documents()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hooked", [False, True])
def test_expand_adds_the_best_section_of_each_document(apps: dict[str, App], kind: str, hooked: bool) -> None:
    one = apps[kind]
    if hooked and kind == "simple":
        pytest.skip("the simple store has no hook")
    query = word_vector(QUESTION)
    merger = load_hook_merger(one) if hooked else MeanMerger()
    expected = set()
    found = one.retrieved(k=3)
    for document in {node.node.ref_doc_id for node in found}:
        nodes = one.nodes()[document]
        rolling = merger.rolling()
        rolling.extend([node.embedding for node in nodes], masses=masses(nodes))
        best = int(np.argmax(rolling.sections(1) @ query))
        expected |= {node.text for node in nodes[10 * best : 10 * best + 10]}
    expected |= {node.text for node in found}
    hook = one.hook() if hooked else None
    got = MergerNodePostprocessor.from_index(one.index, mode="expand", hook=hook).postprocess_nodes(
        found, query_str=QUESTION
    )
    assert {node.text for node in got} == expected
    assert len(expected) > len(found)
    context = MergerNodePostprocessor.from_index(one.index, hook=hook)
    as_context = {node.node_id: node.score for node in context.postprocess_nodes(found, query_str=QUESTION)}
    assert as_context.items() <= {node.node_id: node.score for node in got}.items()


def load_hook_merger(one: App) -> Any:
    with one.hook() as hook:
        return hook.merger


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
async def test_asynchronously_the_same(apps: dict[str, App], kind: str, mode: Any) -> None:
    one = apps[kind]
    made = MergerNodePostprocessor.from_index(one.index, mode=mode)
    found = one.retrieved()
    plain = made.postprocess_nodes(found, query_str=QUESTION)
    assert_same(plain, await made.apostprocess_nodes(found, query_bundle=QueryBundle(QUESTION)))


def test_the_hosts_nodes_stay_as_they_are(apps: dict[str, App]) -> None:
    one = apps["qdrant"]
    found = one.retrieved()
    before = [node.model_dump_json() for node in found]
    for mode in MODES:
        MergerNodePostprocessor.from_index(one.index, mode=mode).postprocess_nodes(found, query_str=QUESTION)
    assert [node.model_dump_json() for node in found] == before


def test_a_merger_by_name_is_loaded(apps: dict[str, App]) -> None:
    one = apps["simple"]
    by_name = MergerNodePostprocessor.from_index(one.index, merger="mean")
    assert_same(
        by_name.postprocess_nodes(one.retrieved(), query_str=QUESTION),
        MergerNodePostprocessor.from_index(one.index).postprocess_nodes(one.retrieved(), query_str=QUESTION),
    )


# Where vectors come from


@pytest.mark.parametrize("kind", KINDS)
def test_the_nodes_own_vector_comes_first(apps: dict[str, App], kind: str) -> None:
    one = apps[kind]
    found = one.retrieved(k=1)
    other = word_vector("something else entirely").tolist()
    changed = [NodeWithScore(node=found[0].node.model_copy(update={"embedding": other}), score=1.0)]
    weights = FusionWeights(root=0.0)
    (got,) = MergerNodePostprocessor.from_index(one.index, weights=weights).postprocess_nodes(
        changed, query_str=QUESTION
    )
    assert got.score == pytest.approx(cos(other, word_vector(QUESTION)), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
async def test_the_store_comes_before_embedding_again(apps: dict[str, App], kind: str) -> None:
    one = apps[kind]
    found = one.retrieved()
    assert all(node.node.embedding is None for node in found)
    bundle = QueryBundle(QUESTION, embedding=word_vector(QUESTION).tolist())
    with_store = MergerNodePostprocessor.from_index(one.index, mode="merge")
    kept = with_store.postprocess_nodes(found, bundle)
    assert_same(kept, await with_store.apostprocess_nodes(found, bundle))
    assert not one.model.asked
    without = MergerNodePostprocessor(mode="merge", embed_model=one.model)
    assert_same(kept, without.postprocess_nodes(found, bundle))
    assert one.model.asked == {"text": len(found)}
    assert_same(kept, await without.apostprocess_nodes(found, bundle))
    assert one.model.asked == {"text": len(found), "text awaited": len(found)}


async def test_the_query_is_embedded_once_and_only_where_the_bundle_has_no_vector(
    apps: dict[str, App],
) -> None:
    one = apps["qdrant"]
    found = one.retrieved()
    made = MergerNodePostprocessor.from_index(one.index)
    without = made.postprocess_nodes(found, query_str=QUESTION)
    assert one.model.asked == {"query": 1}
    await made.apostprocess_nodes(found, query_str=QUESTION)
    assert one.model.asked == {"query": 1, "query awaited": 1}
    with_vector = QueryBundle(QUESTION, embedding=word_vector(QUESTION).tolist())
    assert_same(made.postprocess_nodes(found, with_vector), without)
    assert one.model.asked == {"query": 1, "query awaited": 1}


class OtherStore(SimpleVectorStore):
    """A store of a kind that is not known here, which gives whole nodes or nothing."""

    _nodes: dict[str, TextNode] = PrivateAttr(default_factory=dict)

    @classmethod
    def class_name(cls) -> str:
        return "OtherStore"

    def get_nodes(self, node_ids: Any = None, filters: Any = None) -> Any:
        if filters is not None:
            raise NotImplementedError  # as stores of the host that give nodes by id alone
        return [self._nodes[node_id] for node_id in node_ids if node_id in self._nodes]


class OtherStoreWithCoroutines(OtherStore):
    async def aget_nodes(self, node_ids: Any = None, filters: Any = None) -> Any:
        return self.get_nodes(node_ids, filters)


@pytest.mark.parametrize("kind", [OtherStore, OtherStoreWithCoroutines])
@pytest.mark.parametrize("mode", ["merge", "context"])
async def test_any_other_store_is_asked_for_its_nodes(apps: dict[str, App], mode: Any, kind: Any) -> None:
    one = apps["simple"]
    everything = {node.text: node for nodes in one.nodes().values() for node in nodes}
    found = one.retrieved()
    store = kind()
    for node in found:
        store._nodes[node.node_id] = everything[node.text].model_copy(update={"id_": node.node_id})
    bundle = QueryBundle(QUESTION, embedding=word_vector(QUESTION).tolist())
    made = MergerNodePostprocessor(mode=mode, vector_store=store, docstore=one.index.docstore)
    if mode == "context":  # it does not know the other nodes' vectors
        with pytest.raises(InputError, match="have no vector"):
            made.postprocess_nodes(found, bundle)
        with pytest.raises(InputError, match="have no vector"):
            await made.apostprocess_nodes(found, bundle)
        return
    got = made.postprocess_nodes(found, bundle)
    assert_same(
        got, MergerNodePostprocessor.from_index(one.index, mode=mode).postprocess_nodes(found, bundle)
    )
    assert_same(got, await made.apostprocess_nodes(found, bundle))


@pytest.mark.parametrize("mode", ["merge", "context"])
async def test_a_store_of_coroutines_alone_serves_coroutines_alone(apps: dict[str, App], mode: Any) -> None:
    one = apps["qdrant"]
    store = QdrantVectorStore(one.collection, aclient=one.store._aclient)
    made = MergerNodePostprocessor(mode=mode, vector_store=store, embed_model=one.model)
    found = one.retrieved()
    expected = MergerNodePostprocessor.from_index(one.index, mode=mode).postprocess_nodes(
        found, query_str=QUESTION
    )
    assert_same(await made.apostprocess_nodes(found, query_str=QUESTION), expected)
    with pytest.raises(StoreError, match="asynchronous client alone"):
        made.postprocess_nodes(found, query_str=QUESTION)


# Asynchronous


@pytest.mark.parametrize("kind", ["qdrant", "qdrant without coroutines", "chroma"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("hooked", [False, True])
async def test_nothing_blocks_the_event_loop(
    apps: dict[str, App], kind: str, mode: Any, hooked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = apps[kind.split()[0]]
    found = one.retrieved()
    settings: dict[str, Any] = {"hook": one.hook() if hooked else None, "embed_model": PlainModel()}
    if kind == "qdrant without coroutines":
        settings["vector_store"] = QdrantVectorStore(one.collection, client=one.client)
    if hooked and mode == "merge":
        settings["vector_store"] = None  # so that texts are embedded, by a model without coroutines
    made = MergerNodePostprocessor.from_index(one.index, mode=mode, **settings)
    watched = [
        *((QdrantClient, name) for name in ("retrieve", "scroll", "query_points")),
        *((Collection, name) for name in ("get", "query")),
        (RollingMerge, "extend"),
        (MeanMerger, "merge_many"),
        (CalibratedMerger, "merge_many"),
        (PlainModel, "_get_text_embedding"),
        (PlainModel, "_get_query_embedding"),
    ]
    with nothing_blocks(monkeypatch, *watched) as seen:
        await made.apostprocess_nodes(found, query_str=QUESTION)
    assert seen["PlainModel._get_query_embedding"] == 1
    assert len(seen) > 1


@pytest.mark.parametrize("kind", ["qdrant", "chroma"])
async def test_many_at_once_give_what_one_after_the_other_gives(apps: dict[str, App], kind: str) -> None:
    one = apps[kind]
    with one.hook() as hook:
        made = MergerNodePostprocessor.from_index(one.index, hook=hook)
        questions = [f"{QUESTION} {word}" for word in ["honey", "rent", "oven", "lamp"] for _ in range(8)]
        found = [one.retrieved(question) for question in questions]
        one_by_one = [
            made.postprocess_nodes(nodes, query_str=question)
            for nodes, question in zip(found, questions, strict=True)
        ]
        at_once = await asyncio.gather(
            *(
                made.apostprocess_nodes(nodes, query_str=question)
                for nodes, question in zip(found, questions, strict=True)
            )
        )
    assert len(questions) == 32
    for one_result, other in zip(one_by_one, at_once, strict=True):
        assert_same(one_result, other)


# Bad input


def made_for(one: App, **settings: Any) -> MergerNodePostprocessor:
    return MergerNodePostprocessor.from_index(one.index, **settings)


@pytest.mark.parametrize("mode", MODES)
async def test_an_empty_list_stays_empty_without_any_work(apps: dict[str, App], mode: Any) -> None:
    one = apps["qdrant"]
    one.model.asked.clear()
    made = made_for(one, mode=mode, hook=one.hook())
    assert made.postprocess_nodes([], query_str=QUESTION) == []
    assert await made.apostprocess_nodes([]) == []
    assert not one.model.asked


def test_both_forms_of_a_query_are_the_hosts_error(apps: dict[str, App]) -> None:
    with pytest.raises(ValueError, match="both query_str and query_bundle"):
        made_for(apps["simple"]).postprocess_nodes([], QueryBundle(QUESTION), QUESTION)


def test_without_a_query_there_is_no_score(apps: dict[str, App]) -> None:
    with pytest.raises(InputError, match="query_bundle= or query_str="):
        made_for(apps["simple"]).postprocess_nodes(apps["simple"].retrieved())


def test_a_node_of_another_embedding_space_is_refused(apps: dict[str, App]) -> None:
    one = apps["simple"]
    stranger = TextNode(text="x", embedding=[1.0, 2.0, 3.0], relationships=_source("tower"))
    with pytest.raises(DimensionError, match="dimension 3, and the query's has 256"):
        made_for(one).postprocess_nodes([NodeWithScore(node=stranger)], query_str=QUESTION)


def test_a_node_that_another_merger_made_is_refused(apps: dict[str, App]) -> None:
    one = apps["simple"]
    merged = TextNode(
        text="x",
        embedding=word_vector("x").tolist(),
        metadata={"merger_level": "section", "merger_fingerprint": "0123456789abcdef"},
        relationships=_source("tower"),
    )
    with pytest.raises(FingerprintError, match=r"0123456789abcdef.*merger="):
        made_for(one).postprocess_nodes([NodeWithScore(node=merged)], query_str=QUESTION)


def _source(document: str) -> dict[NodeRelationship, Any]:
    return {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)}


@pytest.mark.parametrize("mode", MODES)
def test_nodes_of_no_document_are_refused_or_kept_with_a_warning(
    apps: dict[str, App], mode: Any, caplog: pytest.LogCaptureFixture
) -> None:
    one = apps["simple"]
    found = [*one.retrieved(k=2), NodeWithScore(node=TextNode(text="an orphan", id_="orphan"), score=9.0)]
    with pytest.raises(InputError, match=r"'orphan'.*SOURCE.*on_missing='keep'"):
        made_for(one, mode=mode).postprocess_nodes(found, query_str=QUESTION)
    with caplog.at_level(logging.WARNING):
        got = made_for(one, mode=mode, on_missing="keep").postprocess_nodes(found, query_str=QUESTION)
    (orphan,) = [node for node in got if node.text == "an orphan"]
    own = cos(word_vector("an orphan"), word_vector(QUESTION))
    assert orphan.score == pytest.approx(own if mode == "merge" else 1.1 * own, abs=1e-6)
    assert "'orphan'" in caplog.text


def test_documents_that_nobody_knows_are_refused_or_kept(
    apps: dict[str, App], caplog: pytest.LogCaptureFixture
) -> None:
    one = apps["simple"]
    made = MergerNodePostprocessor(embed_model=one.model)
    with pytest.raises(InputError, match=r"no merged vectors.*vector_store= or docstore="):
        made.postprocess_nodes(one.retrieved(), query_str=QUESTION)
    kept = MergerNodePostprocessor(embed_model=one.model, on_missing="keep")
    with caplog.at_level(logging.WARNING):
        assert len(kept.postprocess_nodes(one.retrieved(), query_str=QUESTION)) == 8
    assert "no merged vectors" in caplog.text


def test_nodes_without_a_vector_are_refused_or_kept_at_the_end(apps: dict[str, App]) -> None:
    one = apps["simple"]
    unknown = NodeWithScore(node=TextNode(text="y", id_="unknown", relationships=_source("tower")), score=9.0)
    found = [unknown, *one.retrieved(k=2)]
    bundle = QueryBundle(QUESTION, embedding=word_vector(QUESTION).tolist())
    with pytest.raises(InputError, match=r"'unknown'.*no vector.*vector_store= or embed_model="):
        made_for(one, embed_model=None).postprocess_nodes(found, bundle)
    got = made_for(one, embed_model=None, on_missing="keep").postprocess_nodes(found, bundle)
    assert (got[-1].node_id, got[-1].score) == ("unknown", 9.0)


@pytest.mark.parametrize("mode", MODES)
def test_where_no_node_has_a_vector_all_can_be_kept(apps: dict[str, App], mode: Any) -> None:
    found = apps["simple"].retrieved(k=3)
    bundle = QueryBundle(QUESTION, embedding=word_vector(QUESTION).tolist())
    assert MergerNodePostprocessor(mode=mode, on_missing="keep").postprocess_nodes(found, bundle) == found


@pytest.mark.parametrize("mode", MODES)
def test_a_node_that_is_there_twice_counts_once(apps: dict[str, App], mode: Any) -> None:
    one = apps["simple"]
    found = one.retrieved()
    once = made_for(one, mode=mode).postprocess_nodes(found, query_str=QUESTION)
    assert_same(once, made_for(one, mode=mode).postprocess_nodes([*found, *found[:3]], query_str=QUESTION))


@pytest.mark.parametrize("merger", [MeanMerger(), calibrated()], ids=["mean", "calibrated"])
def test_merged_nodes_stay_apart_with_their_own_vectors(merger: Any) -> None:
    one = app("simple")
    nodes = MergerTransform(merger=merger)(one.nodes()["tower"])
    found = [NodeWithScore(node=node, score=0.0) for node in (*nodes[:2], nodes[-1])]
    got = made_for(one, mode="merge", merger=merger).postprocess_nodes(found, query_str=QUESTION)
    (whole,) = [node for node in got if "merger_level" in node.metadata]
    assert len(got) == 2
    assert whole.node.embedding == pytest.approx(nodes[-1].embedding)
    assert whole.score == pytest.approx(cos(nodes[-1].embedding, word_vector(QUESTION)), abs=1e-6)


def test_without_a_model_the_query_must_bring_its_vector(apps: dict[str, App]) -> None:
    one = apps["simple"]
    with pytest.raises(InputError, match="embed_model="):
        made_for(one, embed_model=None).postprocess_nodes(one.retrieved(), query_str=QUESTION)


def test_nodes_that_do_not_tell_their_order_have_no_sections(caplog: pytest.LogCaptureFixture) -> None:
    one = app("qdrant")
    index = VectorStoreIndex(
        [
            TextNode(text=f"Note {number} on the lamp.", relationships=_source("notes"))
            for number in range(30)
        ],
        storage_context=StorageContext.from_defaults(
            vector_store=QdrantVectorStore("unordered", client=one.client)
        ),
        embed_model=one.model,
    )
    found = index.as_retriever(similarity_top_k=3).retrieve(QUESTION)
    made = MergerNodePostprocessor.from_index(index)
    assert len(made.postprocess_nodes(found, query_str=QUESTION)) == 3, "a root needs no order"
    expand = MergerNodePostprocessor.from_index(index, mode="expand")
    with pytest.raises(InputError, match=r"\['notes'\] do not tell their order"):
        expand.postprocess_nodes(found, query_str=QUESTION)
    with caplog.at_level(logging.WARNING):
        kept = expand.model_copy(update={"on_missing": "keep"})
        assert len(kept.postprocess_nodes(found, query_str=QUESTION)) >= 10
    assert "do not tell their order" in caplog.text


@pytest.mark.parametrize("kind", ["qdrant", "chroma"])
@pytest.mark.parametrize("mode", ["context", "expand"])
async def test_a_hook_without_its_companion_names_the_call_that_makes_it(kind: str, mode: Any) -> None:
    one = app(kind)
    made = made_for(one, mode=mode, hook=one.hook())
    with pytest.raises(StoreError, match=r"backfill\(\)"):
        made.postprocess_nodes(one.retrieved(), query_str=QUESTION)
    with pytest.raises(StoreError, match=r"backfill\(\)"):
        await made.apostprocess_nodes(one.retrieved(), query_str=QUESTION)


def test_documents_added_after_the_back_fill_are_refused() -> None:
    from llama_index.core import Document

    one = app("qdrant")
    with one.hook() as hook:
        hook.backfill()
        one.index.insert(Document(text="The lamp of the new reef tower was lit today.", id_="new"))
        made = made_for(one, hook=hook)
        with pytest.raises(InputError, match=r"'new'.*backfill\(\)"):
            made.postprocess_nodes(one.retrieved(), query_str=QUESTION)
        hook.backfill()
        assert "new" in {
            node.node.ref_doc_id for node in made.postprocess_nodes(one.retrieved(), query_str=QUESTION)
        }


def test_what_is_no_hook_is_refused(apps: dict[str, App]) -> None:
    with pytest.raises(ValueError, match="QdrantStore, ChromaStore"):
        made_for(apps["qdrant"], hook=apps["qdrant"].client)


class Failing(WordModel):
    """Answers for a while."""

    def _get_text_embedding(self, text: str) -> list[float]:
        if self.asked["text"] == 3:
            raise ConnectionError("the model went away")
        return super()._get_text_embedding(text)


def test_a_model_that_fails_half_way_is_heard(apps: dict[str, App]) -> None:
    made = MergerNodePostprocessor(mode="merge", embed_model=Failing(), on_missing="keep")
    with pytest.raises(ConnectionError, match="went away"):
        made.postprocess_nodes(apps["simple"].retrieved(), query_str=QUESTION)


# Dictionaries and pickles


def test_a_dictionary_brings_back_everything_that_it_can_hold() -> None:
    made = MergerNodePostprocessor(
        mode="merge", merger="mean", weights=FusionWeights(2, 0, 0.5), on_missing="keep"
    )
    data = json.loads(json.dumps(made.to_dict()))
    again = MergerNodePostprocessor.from_dict(data)
    assert again.to_dict() == made.to_dict()
    assert (again.mode, again.weights, again.on_missing) == ("merge", FusionWeights(2, 0, 0.5), "keep")
    assert data["class_name"] == "MergerNodePostprocessor"


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_dictionary_cannot_hold_is_asked_for(apps: dict[str, App], kind: str) -> None:
    one = apps[kind]
    made = made_for(one)
    data = json.loads(made.model_dump_json())
    with pytest.raises(ValueError, match=r"vector_store was a .*from_dict"):
        MergerNodePostprocessor.from_dict(data)
    live = {"vector_store": one.store, "docstore": one.index.docstore, "embed_model": one.model}
    again = MergerNodePostprocessor.from_dict(data, **live)
    assert_same(
        again.postprocess_nodes(one.retrieved(), query_str=QUESTION),
        made.postprocess_nodes(one.retrieved(), query_str=QUESTION),
    )


def test_the_dictionary_of_a_merger_notes_its_fingerprint(tmp_path: Any) -> None:
    merger = load_merger().calibrated(np.random.default_rng(0).standard_normal((50, 384)))
    folder = str(merger.save(tmp_path / "one"))
    data = MergerNodePostprocessor(merger=folder).to_dict()
    assert MergerNodePostprocessor.from_dict(data).merger == folder
    data["merger"]["fingerprint"] = "0123456789abcdef"
    with pytest.raises(FingerprintError, match="0123456789abcdef"):
        MergerNodePostprocessor.from_dict(data)
    with pytest.raises(ValueError, match=r"from_dict\(data, merger="):
        MergerNodePostprocessor.from_dict(MergerNodePostprocessor(merger=merger).to_dict())


def test_it_is_pickled_whole_or_not_at_all(apps: dict[str, App]) -> None:
    one = apps["simple"]
    made = made_for(one)
    again = pickle.loads(pickle.dumps(made))
    assert_same(
        again.postprocess_nodes(one.retrieved(), query_str=QUESTION),
        made.postprocess_nodes(one.retrieved(), query_str=QUESTION),
    )
    with pytest.raises(InputError, match=r"hook cannot.*from_dict\(data, hook="):
        pickle.dumps(made_for(apps["qdrant"], vector_store=None, hook=apps["qdrant"].hook()))
