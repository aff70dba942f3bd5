import json
import logging
import pickle
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import BaseNode, MetadataMode, NodeRelationship, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import SimpleVectorStore

from merger_plugins import MeanMerger, RollingMerge, load_merger
from merger_plugins.errors import DimensionError, InputError
from merger_plugins.llama_index import MergerNodePostprocessor, MergerTransform
from tests.llama_index.apps import (
    WordModel,
    calibrated,
    documents,
    level,
    nothing_blocks,
    splitter,
    word_vector,
)


def chunks(document: str = "tower") -> list[BaseNode]:
    wanted = [one for one in documents() if one.id_ == document]
    return list(IngestionPipeline(transformations=[splitter(), WordModel()]).run(documents=wanted))


# What it adds


def test_it_adds_sections_and_a_document_merged_from_the_chunks() -> None:
    nodes = chunks()
    got = MergerTransform()(nodes)
    assert got[: len(nodes)] == nodes
    rolling = MeanMerger().rolling()
    masses = [len(node.text.split()) for node in nodes]
    rolling.extend([node.embedding for node in nodes], masses=masses)
    sections, (document,) = level(got, "section"), level(got, "document")
    assert len(got) == len(nodes) + len(sections) + 1
    np.testing.assert_allclose([node.embedding for node in sections], rolling.sections(1), atol=1e-6)
    np.testing.assert_allclose(document.embedding, rolling.vector, atol=1e-6)
    assert document.text == documents()[0].text
    assert [node.metadata["merger_position"] for node in sections] == list(range(0, len(nodes), 10))


def test_merged_nodes_belong_to_the_document_and_name_their_chunks() -> None:
    nodes = chunks()
    for node in MergerTransform()(nodes)[len(nodes) :]:
        assert node.ref_doc_id == "tower"
        start, stop = node.metadata["merger_position"], node.metadata["merger_stop"]
        children = node.relationships[NodeRelationship.CHILD]
        assert [child.node_id for child in children] == [one.node_id for one in nodes[start:stop]]
        assert node.metadata["topic"] == "tower"
        for mode in (MetadataMode.LLM, MetadataMode.EMBED):
            assert "merger" not in node.get_content(mode)
        UUID(node.node_id)  # what Qdrant asks of an id


def test_a_short_document_has_no_sections() -> None:
    got = MergerTransform()(chunks()[:10])
    assert not level(got, "section")
    assert len(level(got, "document")) == 1


def test_levels_can_be_chosen() -> None:
    assert {node.metadata.get("merger_level") for node in MergerTransform(levels=("section",))(chunks())} == {
        None,
        "section",
    }


def test_it_is_pure() -> None:
    nodes = chunks()
    before = [node.model_dump_json() for node in nodes]
    one = MergerTransform()(nodes)
    other = MergerTransform()(list(reversed(nodes)))
    assert [node.model_dump_json() for node in nodes] == before
    assert sorted(node.node_id for node in one) == sorted(node.node_id for node in other)
    by_id = {node.node_id: node.embedding for node in other}
    for node in one:
        np.testing.assert_allclose(node.embedding, by_id[node.node_id], atol=1e-6)


def test_merged_nodes_are_made_anew() -> None:
    once = MergerTransform()(chunks())
    assert [node.node_id for node in MergerTransform()(once)] == [node.node_id for node in once]


def test_a_documents_chunks_may_be_mixed_with_anothers() -> None:
    towers, bees = chunks("tower"), chunks("bees")
    mixed = [node for pair in zip(towers, bees, strict=False) for node in pair]
    got = {node.ref_doc_id: node.embedding for node in level(MergerTransform()(mixed), "document")}
    alone = {
        node.ref_doc_id: node.embedding
        for own in (towers, bees)
        for node in level(MergerTransform()(own[: min(len(towers), len(bees))]), "document")
    }
    assert got == alone


async def test_asynchronously_the_same_without_blocking(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = chunks()
    plain = MergerTransform()(nodes)
    with nothing_blocks(monkeypatch, (RollingMerge, "extend")) as seen:
        got = await MergerTransform().acall(nodes)
    assert seen["RollingMerge.extend"] == 1
    assert [node.to_dict() for node in got] == [node.to_dict() for node in plain]


# With the postprocessor


def test_postprocessing_leaves_merged_nodes_out_of_a_document() -> None:
    store, docstore = SimpleVectorStore(), SimpleDocumentStore()
    nodes = IngestionPipeline(transformations=[splitter(), WordModel(), MergerTransform()]).run(
        documents=documents()
    )
    store.add(nodes)
    docstore.add_documents(nodes)
    from llama_index.core.schema import NodeWithScore, QueryBundle

    found = [NodeWithScore(node=node, score=0.0) for node in nodes[:3]]
    bundle = QueryBundle("honey", embedding=word_vector("honey").tolist())
    got = MergerNodePostprocessor(vector_store=store, docstore=docstore).postprocess_nodes(found, bundle)
    (whole,) = [node for node in level(nodes, "document") if node.ref_doc_id == nodes[0].ref_doc_id]
    unit = np.array(bundle.embedding) / np.linalg.norm(bundle.embedding)
    own = np.array(got[0].node.embedding)
    expected = own @ unit / np.linalg.norm(own) + 0.1 * np.array(whole.embedding) @ unit
    assert got[0].score == pytest.approx(expected, abs=1e-6)
    expand = MergerNodePostprocessor(mode="expand", vector_store=store, docstore=docstore)
    completed = expand.postprocess_nodes(found, bundle)
    assert len(completed) > len(found)
    assert not level([node.node for node in completed], "section")
    assert not level([node.node for node in completed], "document")


# Bad input


def test_nodes_without_an_embedding_are_refused() -> None:
    nodes = chunks()
    nodes[1] = nodes[1].model_copy(update={"embedding": None})
    with pytest.raises(InputError, match=r"1 nodes of 'tower'.*after the embedding model"):
        MergerTransform()(nodes)


def test_nodes_of_two_models_are_refused() -> None:
    nodes = chunks()
    nodes[1] = nodes[1].model_copy(update={"embedding": [1.0, 2.0]})
    with pytest.raises(DimensionError, match=r"\[2, 256\]"):
        MergerTransform()(nodes)


def test_nodes_of_no_document_are_refused_or_passed_on(caplog: pytest.LogCaptureFixture) -> None:
    orphan = TextNode(text="alone", id_="orphan", embedding=word_vector("alone").tolist())
    with pytest.raises(InputError, match=r"'orphan'.*on_missing='keep'"):
        MergerTransform()([orphan])
    with caplog.at_level(logging.WARNING):
        assert MergerTransform(on_missing="keep")([orphan]) == [orphan]
    assert "'orphan'" in caplog.text


def test_no_nodes_give_none() -> None:
    assert MergerTransform()([]) == []


# Dictionaries and pickles


def test_a_dictionary_and_a_pickle_bring_it_back(tmp_path: Any) -> None:
    merger = calibrated()
    folder = str(merger.save(tmp_path / "merger"))
    made = MergerTransform(merger=folder, levels=("document",), space="words", on_missing="keep")
    again = MergerTransform.from_dict(json.loads(json.dumps(made.to_dict())))
    assert again.to_dict() == made.to_dict()
    live = MergerTransform(merger=merger, levels=("document",))
    vectors = [
        level(one(chunks()), "document")[0].embedding
        for one in (made, again, live, pickle.loads(pickle.dumps(live)))
    ]
    assert vectors[1:] == vectors[:-1]
    assert live.to_dict()["merger"]["fingerprint"] == merger.fingerprint


def test_a_graphs_session_is_no_hindrance(tmp_path: Any) -> None:
    merger = load_merger(MeanMerger().export(tmp_path / "graph", dimension=256))
    made = MergerTransform(merger=merger)
    got = [node.to_dict() for node in made(chunks())[-1:]]
    again = MergerTransform.from_dict(json.loads(json.dumps(made.to_dict())))
    for other in (again, pickle.loads(pickle.dumps(made)), made.model_copy(deep=True)):
        assert level(other(chunks()), "document")[0].embedding == got[0]["embedding"]
