"""Recalling what was said, and questions that follow from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from merger_plugins import HistoryGate, MeanMerger, load_embedder, load_gate, merge_question
from merger_plugins.chroma import ChromaStore
from merger_plugins.conversation import ConversationQuery
from merger_plugins.errors import DimensionError, EmptyInputError, InputError
from merger_plugins.qdrant import AsyncQdrantStore, QdrantStore
from merger_plugins.stores import FusionWeights
from tests.stores.support import DIMENSION, HashingEmbedder, documents, informed
from tests.strategies import chunk_vectors

BOILER = [
    "the boiler leaks again",
    "call the plumber about the boiler",
    "the boiler was fixed for ninety euros",
]
HOLIDAY = ["we go to the island in june", "the ferry leaves at noon", "book the small cabin on the ferry"]


@pytest.fixture(params=[(QdrantStore, False), (QdrantStore, True), (ChromaStore, True)], ids=str)
def store(request):
    kind, contextual = request.param
    with kind(":memory:", merger=informed(), embedder=HashingEmbedder(), contextual=contextual) as made:
        for turn in BOILER:
            made.append("house", turn, speaker="Ann")
        for turn in HOLIDAY:
            made.append("holiday", turn, speaker="Ben")
        made.ingest("manual", "A boiler needs water. The ferry is a ship.")
        yield made


def ranked(hits):
    return [(hit.id, pytest.approx(hit.score, abs=1e-4)) for hit in hits]


def both(store, queries, k, level="chunk", **options):
    """What the better of two searches' scores rank first."""
    scores = {}
    for query in queries:
        for hit in store.search(query, 50, level, **options):
            scores[hit.id] = max(hit.score, scores.get(hit.id, -1))
    return sorted(scores.items(), key=lambda pair: -pair[1])[:k]


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
    assert len(merged.queries) == 2
    for level in ("chunk", "section", "document", "fused"):
        asked = store.search("when does it leave", 9, level, conversation="holiday")
        assert ranked(asked) == both(store, merged.queries, 9, level)


def test_only_so_many_turns_of_history_count(store):
    last = store.merged_question("when does it leave", "holiday", history=1)
    assert len(last.turns) == 1
    assert len(store.merged_question("when does it leave", "holiday").turns) == 3
    none = store.merged_question("when does it leave", "holiday", history=0)
    assert none.weight == 0


def test_a_removed_turn_is_no_history(store):
    store.remove("holiday", 1)
    assert len(store.merged_question("when does it leave", "holiday").turns) == 2


@pytest.mark.parametrize("kind", [QdrantStore, ChromaStore])
def test_the_last_turns_count_by_their_masses_and_ages(kind):
    vectors = chunk_vectors(5, 12, DIMENSION)
    masses = [1.0, 40.0, 3.0, 9.0, 2.0, 25.0, 7.0, 1.0, 60.0, 5.0, 8.0, 4.0]
    question = chunk_vectors(6, 1, DIMENSION)[0]
    with kind(":memory:", merger=MeanMerger()) as store:
        for vector, mass in zip(vectors, masses, strict=True):
            store.append("chat", vector, mass=mass)
        for history in (1, 3, 8, 12, 50):
            expected = merge_question(question, vectors[-history:], masses=masses[-history:])
            merged = store.merged_question(question, "chat", history=history)
            np.testing.assert_allclose(merged.vector, expected.vector, atol=1e-5)
            np.testing.assert_allclose(merged.turns, expected.turns, atol=1e-5)
            found = store.search(question, 12, conversation="chat", history=history)
            assert ranked(found) == both(store, expected.queries, 12)
            told = store.recall(question, 12, conversation_id="chat", history=history)
            assert [h.id for h in told] == [h.id for h in found]


def test_the_chunks_of_a_long_turn_are_of_one_age():
    embedder = HashingEmbedder()
    embedder.max_tokens = 22
    long = "This sentence has exactly ten words in it right now. " * 14
    question = embedder.embed_query("what was it")
    with QdrantStore(":memory:", merger=MeanMerger(), embedder=embedder) as store:
        for turn in ("an early one", long, long, "a late one"):
            store.append("chat", turn, speaker="Ada")
        spoken = embedder.seen[1:]
        pieces = (len(spoken) - 1) // 2
        assert pieces > 2
        rows = embedder.embed_documents(spoken)
        masses = [float(len(text.split())) for text in spoken]
        masses[:-1] = [mass - 1 for mass in masses[:-1]]  # the speaker is counted in turns of one chunk alone
        ages = [2] * pieces + [1] * pieces + [0]
        expected = merge_question(question, rows, masses=masses, ages=ages)
        merged = store.merged_question(question, "chat", history=3)
        np.testing.assert_allclose(merged.vector, expected.vector, atol=1e-5)
        assert len(store.merged_question(question, "chat", history=1).turns) == 1
        assert len(store.merged_question(question, "chat", history=2).turns) == 1 + pieces


async def test_a_follow_up_question_in_an_event_loop():
    async with AsyncQdrantStore(":memory:", merger=informed(), embedder=HashingEmbedder()) as store:
        with QdrantStore(":memory:", merger=informed(), embedder=HashingEmbedder()) as plain:
            for turn in [*HOLIDAY, *BOILER]:
                await store.append("chat", turn, speaker="Ben")
                plain.append("chat", turn, speaker="Ben")
            for shown in ("keep", "away", "skip"):
                found = await store.search("when", 4, conversation="chat", history=4, shown=shown)
                expected = plain.search("when", 4, conversation="chat", history=4, shown=shown)
                assert [(hit.text, hit.score) for hit in found] == [(hit.text, hit.score) for hit in expected]


TIMETABLE = [
    "The ferry leaves the harbour at noon every day.",
    "The ferry comes back to the harbour at six every day.",
    "Tickets for the ferry are sold at the harbour.",
    "A boiler needs water and a plumber once a year.",
]


@pytest.fixture(params=[QdrantStore, ChromaStore])
def guide(request):
    """Passages, and a conversation whose second reply quotes two of them among other words."""
    embedder = HashingEmbedder()
    with request.param(":memory:", merger=informed(), embedder=embedder) as made:
        for number, passage in enumerate(TIMETABLE):
            made.ingest(f"p{number}", chunks=[passage], metadata={"kind": "passage"})
        made.append("chat", "when does the ferry leave", speaker="user")
        made.append("chat", f"I found this: {TIMETABLE[0]}  {TIMETABLE[2]} Anything else?", speaker="agent")
        embedder.seen.clear()
        yield made
        assert not embedder.seen


FERRY = "ferry harbour"


def names(hits):
    return [hit.document_id for hit in hits]


def test_passages_that_were_shown_are_kept_unless_one_asks(guide):
    asked = {"filter": {"kind": "passage"}, "conversation": "chat"}
    assert set(names(guide.search(FERRY, 3, **asked))) == {"p0", "p1", "p2"}
    assert names(guide.search(FERRY, 3, **asked)) == names(guide.search(FERRY, 3, **asked, shown="keep"))


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("level", ["chunk", "fused"])
def test_passages_that_were_shown_are_left_out(guide, level, grouped):
    found = guide.search(FERRY, 4, level, conversation="chat", shown="skip", group_by_document=grouped)
    assert names(found) == ["p1", "p3"]
    one = guide.search(FERRY, 1, level, conversation="chat", shown="skip", group_by_document=grouped)
    assert names(one) == ["p1"]
    early = guide.search(FERRY, 9, level, conversation="chat", history=0, shown="skip")
    assert len(early) == 6


def test_the_question_turns_away_from_what_was_shown(guide):
    asked = {"filter": {"kind": "passage"}, "conversation": "chat"}
    turned = guide.search(FERRY, 4, **asked, shown="away")
    kept = {hit.document_id: hit.score for hit in guide.search(FERRY, 4, **asked)}
    assert min(kept["p0"], kept["p2"]) > 0.44
    assert max(hit.score for hit in turned if hit.document_id in ("p0", "p2")) < 0.402
    embedder = HashingEmbedder()
    said = [f"user: {'when does the ferry leave'}"]
    said.append(f"agent: I found this: {TIMETABLE[0]}  {TIMETABLE[2]} Anything else?")
    expected = merge_question(
        embedder.embed_query(FERRY),
        embedder.embed_documents(said),
        question_mass=2,
        masses=[len(text.split()) for text in said],
        shown=embedder.embed_documents([TIMETABLE[0], TIMETABLE[2]]),
    )
    assert ranked(turned) == both(guide, expected.queries, 4, filter={"kind": "passage"})


def test_what_was_shown_is_looked_for_among_what_may_be_found(guide):
    inside = {"documents": ["p1", "p2"], "conversation": "chat"}
    assert names(guide.search(FERRY, 3, **inside, shown="skip")) == ["p1"]


def test_a_document_has_other_chunks_than_those_that_were_shown():
    rows = chunk_vectors(3, 40, DIMENSION)
    rows[:20] = rows[0] + chunk_vectors(4, 20, DIMENSION)
    with QdrantStore(":memory:", merger=MeanMerger()) as store:
        store.ingest("a", vectors=rows[:20])
        store.ingest("b", vectors=rows[20:])
        for row in rows[:6]:
            store.append("chat", row)
        options = {"documents": ["a", "b"], "conversation": "chat", "group_by_document": True}
        found = store.search(rows[0], 2, **options, shown="skip")
        assert sorted(names(found)) == ["a", "b"]
        assert next(hit.position for hit in found if hit.document_id == "a") >= 6


@pytest.mark.parametrize("level", ["section", "document"])
def test_bad_choices_of_what_was_shown(store, level):
    with pytest.raises(InputError, match="choose one of keep, away, skip"):
        store.search("x", shown="hide")
    with pytest.raises(InputError, match="leaves out chunks"):
        store.search("x", level=level, shown="skip")


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


def test_the_trained_gate_is_for_the_bundled_embedder():
    gate = load_gate()
    embedder = load_embedder()
    with QdrantStore(":memory:") as store:
        for turn in HOLIDAY:
            store.append("holiday", turn, speaker="Ben")
        rows = embedder.embed_documents([f"Ben: {turn}" for turn in HOLIDAY])
        masses = [embedder.count_tokens(f"Ben: {turn}") for turn in HOLIDAY]
        question = "when does it leave"
        expected = merge_question(
            embedder.embed_query(question),
            rows,
            question_mass=embedder.count_tokens(question),
            masses=masses,
            gate=gate,
        )
        merged = store.merged_question(question, "holiday")
        assert merged.weight == pytest.approx(expected.weight, abs=1e-4)
        assert merged.doubt == pytest.approx(expected.doubt, abs=1e-4)
        other = store.merged_question(question, "holiday", gate=HistoryGate(share=0.3))
        assert abs(other.weight - expected.weight) > 0.1
        assert other.doubt < expected.doubt


def test_a_merged_question_searches_another_store():
    chats = QdrantStore(":memory:", "chats", merger=MeanMerger())
    own = documents(11, 12)["d0"]
    for vector in own[:5]:
        chats.append("ann", vector)
    store = QdrantStore(":memory:", "docs", merger=MeanMerger())
    for name, vectors in documents(12, 4, 15, 30).items():
        store.ingest(name, vectors=vectors)
    asked = chats.merged_question(own[6], "ann", gate=HistoryGate(doubt=0.1, trusted=(0.9, 1)))
    assert asked.doubts == (pytest.approx(0.1, abs=0.01), 0)
    for level in ("chunk", "section", "document", "fused"):
        found = store.search(asked, 5, level)
        total = FusionWeights().total if level == "fused" else 1
        best: dict[str, float] = {}
        for row, doubt in zip(asked.queries, asked.doubts, strict=True):
            for hit in store.search(row, 50, level):
                best[hit.id] = max(best.get(hit.id, -1.0), hit.score - doubt * total)
        expected = sorted(best.values(), reverse=True)[:5]
        np.testing.assert_allclose([hit.score for hit in found], expected, atol=1e-6)
    assert len(store.passages(asked, 6, per_document=2)) == 6
    with pytest.raises(InputError, match="already"):
        store.search(asked, conversation="ann")


def test_passages_of_two_queries_are_the_best_of_both():
    store = QdrantStore(":memory:", "docs", merger=MeanMerger())
    texts = documents(12, 4, 15, 30)
    for name, vectors in texts.items():
        store.ingest(name, vectors=vectors)
    both = np.stack([texts["d0"].mean(axis=0), texts["d2"].mean(axis=0)]).astype(np.float32)
    asked = ConversationQuery(both[0], both, 0.5, 0.0, np.zeros(0, np.float32))
    assert {hit.document_id for hit in store.passages(asked, 4, per_document=2)} == {"d0", "d2"}
    doubted = store.passages(replace(asked, doubt=2.0), 40, per_document=40)
    alone = store.passages(both[1], 40, per_document=40)
    assert [hit.id for hit in doubted] == [hit.id for hit in alone]
