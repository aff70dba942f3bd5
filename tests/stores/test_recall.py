"""Recalling what was said, and questions that follow from it."""

from __future__ import annotations

import numpy as np
import pytest

from merger_plugins import merge_question
from merger_plugins.errors import DimensionError, EmptyInputError, InputError
from merger_plugins.qdrant import QdrantStore
from tests.stores.support import DIMENSION, HashingEmbedder, informed

BOILER = [
    "the boiler leaks again",
    "call the plumber about the boiler",
    "the boiler was fixed for ninety euros",
]
HOLIDAY = ["we go to the island in june", "the ferry leaves at noon", "book the small cabin on the ferry"]


@pytest.fixture(params=[False, True], ids=["raw", "contextual"])
def store(request):
    with QdrantStore(
        ":memory:", merger=informed(), embedder=HashingEmbedder(), contextual=request.param
    ) as made:
        for turn in BOILER:
            made.append("house", turn, speaker="Ann")
        for turn in HOLIDAY:
            made.append("holiday", turn, speaker="Ben")
        made.ingest("manual", "A boiler needs water. The ferry is a ship.")
        yield made


def test_turns_of_one_conversation(store):
    found = store.recall("ferry at noon", 2, conversation_id="holiday")
    assert found[0].text == "the ferry leaves at noon"
    assert {hit.document_id for hit in found} == {"holiday"}
    assert found[0].speaker == "Ben"


def test_episodes_and_conversations(store):
    assert store.recall("boiler plumber", 1, "conversation")[0].document_id == "house"
    episode = store.recall("boiler plumber", 1, "episode", conversation_id="house")[0]
    assert (episode.document_id, episode.position, episode.stop) == ("house", 0, 3)
    assert episode.text == "\n".join(BOILER)


@pytest.mark.parametrize("level", ["chunk", "section", "document", "fused"])
def test_only_hits_of_the_documents_asked_for(store, level):
    found = store.search("boiler ferry", 20, level, documents=["manual", "house"])
    assert {hit.document_id for hit in found} == {"manual", "house"}
    assert store.search("boiler ferry", 20, level, documents=["nobody"]) == []


def test_a_follow_up_question_is_merged_with_the_last_turns(store):
    embedder = HashingEmbedder()
    spoken = np.stack([embedder.embed_query(f"Ben: {turn}") for turn in HOLIDAY])
    masses = [float(len(f"Ben: {turn}".split())) for turn in HOLIDAY]
    expected = merge_question(
        embedder.embed_query("when does it leave"), spoken, question_mass=4, masses=masses
    )
    merged = store.merged_question("when does it leave", "holiday")
    assert merged.weight == pytest.approx(expected.weight)
    assert np.allclose(merged.vector, expected.vector, atol=1e-5)
    by_hand = store.search(merged.vector, 5, documents=["manual"])
    asked = store.search("when does it leave", 5, documents=["manual"], conversation="holiday")
    assert [(hit.id, round(hit.score, 5)) for hit in asked] == [
        (hit.id, round(hit.score, 5)) for hit in by_hand
    ]


def test_only_so_many_turns_of_history_count(store):
    last = store.merged_question("when does it leave", "holiday", history=1)
    assert len(last.turns) == 1
    assert len(store.merged_question("when does it leave", "holiday").turns) == 3
    none = store.merged_question("when does it leave", "holiday", history=0)
    assert none.weight == 0


def test_a_removed_turn_is_no_history(store):
    store.remove("holiday", 1)
    assert len(store.merged_question("when does it leave", "holiday").turns) == 2


def test_without_a_conversation_a_question_stays_as_it_is(store):
    question = np.ones(DIMENSION, np.float32)
    merged = store.merged_question(question, "nobody")
    assert merged.weight == 0
    assert np.allclose(merged.vector, question / np.linalg.norm(question))


def test_an_empty_store_recalls_nothing():
    with QdrantStore(":memory:", merger=informed(), embedder=HashingEmbedder()) as store:
        assert store.recall("anything", conversation_id="nobody") == []
        assert store.search("anything", conversation="nobody") == []


def test_bad_questions(store):
    with pytest.raises(InputError, match="level is 'page'; choose one of turn, episode, conversation"):
        store.recall("x", level="page")
    with pytest.raises(InputError, match="history is -1"):
        store.recall("x", history=-1)
    with pytest.raises(EmptyInputError):
        store.recall(" ")
    with pytest.raises(DimensionError):
        store.merged_question(np.ones(3), "holiday")
    with pytest.raises(InputError, match="id must be a string"):
        store.merged_question("x", "")
