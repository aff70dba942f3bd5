import asyncio
import threading
from typing import Any

import numpy as np
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.runnables import ConfigurableField
from qdrant_client import QdrantClient, models

from merger_plugins.errors import EmptyInputError, InputError, StoreError
from merger_plugins.langchain import MergerRetriever
from merger_plugins.qdrant import AsyncQdrantStore, QdrantStore
from merger_plugins.stores import FusionWeights
from tests.langchain.apps import APPS, QUESTION, SUBJECTS, Counting, documents, hook_over

MODES = ("fused", "contextual", "chunk", "section", "document")


@pytest.fixture(params=sorted(APPS), scope="module")
def app(request: pytest.FixtureRequest) -> Any:
    """A vector store with documents, its hook, its embeddings; the tests only read."""
    embeddings = Counting()
    store = APPS[request.param](embeddings)
    store.add_documents(documents())
    hook = hook_over(store, embeddings)
    hook.backfill(contextual="companion")
    return store, hook, embeddings


def found(documents: list[Document]) -> list[tuple[str | None, str, float]]:
    return [(one.id, one.page_content, round(one.metadata["score"], 6)) for one in documents]


@pytest.mark.parametrize("mode", MODES)
def test_it_gives_what_the_hook_gives(app, mode):
    _, hook, embeddings = app
    direct = hook.passages(QUESTION, 5) if mode == "document" else hook.search(QUESTION, 5, mode)
    embeddings.queries.clear()
    got = MergerRetriever(hook=hook, mode=mode, k=5).invoke(QUESTION)
    assert embeddings.queries == [QUESTION]
    assert [(one.id, one.page_content) for one in got] == [(hit.id, hit.text) for hit in direct]
    np.testing.assert_allclose(
        [one.metadata["score"] for one in got], [hit.score for hit in direct], atol=1e-6
    )


def test_documents_are_those_of_the_vector_store(app):
    store, hook, _ = app
    theirs = store.similarity_search(QUESTION, k=6)
    ours = MergerRetriever(hook=hook, mode="chunk", k=6).invoke(QUESTION)
    assert [one.page_content for one in ours] == [one.page_content for one in theirs]
    for own, other in zip(ours, theirs, strict=True):
        extra = {
            key for key in other.metadata if key.startswith("_")
        }  # langchain-qdrant's _id, _collection_name
        assert own.id == (other.id or other.metadata.get("_id"))
        assert {k: v for k, v in own.metadata.items() if k not in ("score", "merger")} == {
            k: v for k, v in other.metadata.items() if k not in extra
        }


def test_whole_documents_in_reading_order(app):
    _, hook, _ = app
    got = MergerRetriever(hook=hook, mode="document", k=4, chunks_per_document=3).invoke(QUESTION)
    assert [one.metadata["source"] for one in got[:3]] == ["lighthouse"] * 3
    assert [one.page_content for one in got[:3]] == SUBJECTS["lighthouse"]
    assert len(got) == 4
    assert [one.metadata["merger"]["position"] for one in got[:3]] == [0, 1, 2]


@pytest.mark.parametrize("mode", ["fused", "chunk", "document"])
def test_filters_thresholds_and_k_of_one_call(app, mode):
    _, hook, _ = app
    retriever = MergerRetriever(hook=hook, mode=mode, k=4)
    assert len(retriever.invoke(QUESTION)) == 4
    assert len(retriever.invoke(QUESTION, k=2)) == 2
    assert len(retriever.invoke(QUESTION, k=7)) == 7
    only = retriever.invoke(QUESTION, filter={"source": "bees"})
    assert {one.metadata["source"] for one in only} == {"bees"}
    assert len(only) == 3
    all_of_them = retriever.invoke(QUESTION, k=10)
    least = sorted(one.metadata["score"] for one in all_of_them)[5]
    some = retriever.invoke(QUESTION, k=10, score_threshold=least)
    assert found(some) == found([one for one in all_of_them if one.metadata["score"] >= least])
    assert 0 < len(some) < len(all_of_them)
    assert retriever.k == 4


def test_a_database_filter_is_passed_through():
    embeddings = Counting()
    store = APPS["qdrant"](embeddings)
    store.add_documents(documents())
    hook = hook_over(store, embeddings)
    hook.backfill()
    native = models.Filter(
        must_not=[models.FieldCondition(key="metadata.source", match=models.MatchValue(value="lighthouse"))]
    )
    got = MergerRetriever(hook=hook).invoke(QUESTION, filter=native)
    assert got
    assert "lighthouse" not in {one.metadata["source"] for one in got}


def test_weights_and_the_parts_of_a_score(app):
    _, hook, _ = app
    weights = FusionWeights(1.0, 0.5, 0.25)
    (best, *_) = MergerRetriever(hook=hook, weights=weights).invoke(QUESTION)
    parts = best.metadata["merger"]
    total = parts["chunk"] + 0.5 * parts["section"] + 0.25 * parts["root"]
    assert best.metadata["score"] == pytest.approx(total, abs=1e-6)
    assert parts["document_id"] == best.metadata["source"]


def test_no_score_and_another_key(app):
    _, hook, _ = app
    assert "score" not in MergerRetriever(hook=hook, score_key=None).invoke(QUESTION)[0].metadata
    assert "similarity" in MergerRetriever(hook=hook, score_key="similarity").invoke(QUESTION)[0].metadata


async def test_asynchronous_calls_give_the_same_and_embed_by_the_coroutine(app):
    _, hook, embeddings = app
    for mode in MODES:
        retriever = MergerRetriever(hook=hook, mode=mode, k=5)
        embeddings.queries.clear()
        embeddings.awaited.clear()
        awaited = await retriever.ainvoke(QUESTION)
        assert (embeddings.queries, embeddings.awaited) == ([], [QUESTION])
        assert found(awaited) == found(retriever.invoke(QUESTION))


async def test_the_event_loop_is_never_blocked(app, monkeypatch):
    _, hook, _ = app
    loop_thread = threading.get_ident()
    seen = []
    for name in ("nearest", "fetch", "scan", "count"):
        original = getattr(type(hook._backend), name)

        def noted(self, *args, _original=original, **kwargs):
            seen.append(threading.get_ident())
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(type(hook._backend), name, noted)
    await MergerRetriever(hook=hook).ainvoke(QUESTION)
    assert seen
    assert loop_thread not in seen


async def test_many_at_once_give_the_sequential_results(app):
    _, hook, _ = app
    questions = [f"{QUESTION} {name}? {number}" for number in range(8) for name in SUBJECTS]
    retriever = MergerRetriever(hook=hook, k=3)
    one_by_one = [found(retriever.invoke(question)) for question in questions]
    at_once = await asyncio.gather(*(retriever.ainvoke(question) for question in questions))
    assert [found(one) for one in at_once] == one_by_one
    batched = retriever.batch(questions, config={"max_concurrency": 4})
    assert [found(one) for one in batched] == one_by_one
    assert [found(one) for one in await retriever.abatch(questions, {"max_concurrency": 4})] == one_by_one


async def test_an_asynchronous_hook():
    store = AsyncQdrantStore(":memory:", contextual=True)
    for name, texts in SUBJECTS.items():
        await store.ingest(name, chunks=texts)
    retriever = MergerRetriever(hook=store, k=3)
    at_once = await asyncio.gather(*(retriever.ainvoke(QUESTION) for _ in range(32)))
    assert len({tuple(found(one)) for one in at_once}) == 1
    assert at_once[0][0].metadata["merger"]["document_id"] == "lighthouse"
    with pytest.raises(InputError, match="ainvoke"):
        retriever.invoke(QUESTION)
    await store.close()


def test_callbacks_and_streaming(app):
    _, hook, _ = app

    class Notes(BaseCallbackHandler):
        def __init__(self) -> None:
            self.notes: list[Any] = []

        def on_retriever_start(self, serialized, query, **kwargs):
            self.notes.append((query, kwargs["tags"]))

        def on_retriever_end(self, documents, **kwargs):
            self.notes.append(len(documents))

    notes = Notes()
    retriever = MergerRetriever(hook=hook, k=2, tags=["merged"])
    retriever.invoke(QUESTION, config={"callbacks": [notes]})
    assert notes.notes == [(QUESTION, ["merged"]), 2]
    (streamed,) = list(retriever.stream(QUESTION))
    assert found(streamed) == found(retriever.invoke(QUESTION))


async def test_what_a_runnable_offers(app):
    _, hook, _ = app
    retriever = MergerRetriever(hook=hook, k=3)
    expected = found(retriever.invoke(QUESTION))
    assert [found(one) async for one in retriever.astream(QUESTION)] == [expected]
    events = [event["event"] async for event in retriever.astream_events(QUESTION, version="v2")]
    assert events == ["on_retriever_start", "on_retriever_end"]
    assert found(retriever.bind(k=2).invoke(QUESTION)) == expected[:2]
    chosen = retriever.configurable_fields(k=ConfigurableField(id="k"))
    assert found(chosen.invoke(QUESTION, {"configurable": {"k": 1}})) == expected[:1]
    assert found(chosen.invoke(QUESTION)) == expected


async def test_no_more_at_once_than_asked_for(app):
    store, _, _ = app

    class Crowded(Counting):
        now = most = 0

        async def aembed_query(self, text: str) -> list[float]:
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0.01)
            self.now -= 1
            return self.embed_query(text)

    embeddings = Crowded()
    retriever = MergerRetriever(hook=hook_over(store, embeddings), k=1)
    await retriever.abatch([QUESTION] * 8, {"max_concurrency": 2})
    assert embeddings.most == 2
    await retriever.abatch([QUESTION] * 8)
    assert embeddings.most > 2


async def test_a_follow_up_question_in_a_conversation(tmp_path):
    talking = Counting()
    chats = QdrantStore(tmp_path / "chats", "chats", embedder=talking)
    chats.append("ann", "Tell me about the lighthouse on the reef.", speaker="ann")
    embeddings = Counting()
    store = APPS["qdrant"](embeddings)
    store.add_documents(documents())
    hook = hook_over(store, embeddings)
    hook.backfill()
    retriever = MergerRetriever(hook=hook, conversations=chats, k=1, mode="document")
    alone = retriever.invoke("How many people lived there?", k=8)
    asked = retriever.invoke("How many people lived there?", conversation="ann", k=8)
    assert asked[0].metadata["source"] == "lighthouse"
    assert asked[0].metadata["merger"]["root"] > alone[0].metadata["merger"]["root"]
    talking.queries.clear()
    awaited = await retriever.ainvoke("How many people lived there?", conversation="ann", k=8)
    assert found(awaited) == found(asked)
    assert (talking.queries, len(talking.awaited)) == ([], 1)


# Bad input


def test_a_collection_without_merged_vectors_names_the_call():
    embeddings = Counting()
    store = APPS["qdrant"](embeddings)
    store.add_documents(documents())
    hook = hook_over(store, embeddings)
    for mode in ("fused", "contextual", "section", "document"):
        with pytest.raises(StoreError, match=r"Call backfill\(\)"):
            MergerRetriever(hook=hook, mode=mode).invoke(QUESTION)
    hook.backfill()
    with pytest.raises(InputError, match=r"backfill\(contextual='companion', anew=True\)"):
        MergerRetriever(hook=hook, mode="contextual").invoke(QUESTION)


def test_an_empty_store_gives_nothing():
    assert MergerRetriever(hook=QdrantStore(":memory:")).invoke(QUESTION) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": "3"}, "k is '3'"),
        ({"mode": "best"}, "choose one of fused"),
        ({"search_type": "mmr"}, "takes no search_type"),
        ({"chunks_per_document": 0}, "chunks_per_document"),
        ({"filter": 7}, "filter"),
        ({"score_threshold": "0.5"}, "score_threshold is '0.5'"),
        ({"score_threshold": float("nan")}, "score_threshold is nan"),
        ({"weights": (1, 0.2, 0.2)}, "FusionWeights"),
        ({"conversation": ""}, "id"),
    ],
)
def test_a_call_that_asks_for_something_else(app, given, words):
    _, hook, _ = app
    with pytest.raises((InputError, StoreError), match=words):
        MergerRetriever(hook=hook).invoke(QUESTION, **given)


def test_an_unknown_setting_or_hook_is_refused(app):
    _, hook, _ = app
    with pytest.raises(ValueError, match="extra"):
        MergerRetriever(hook=hook, kay=3)
    with pytest.raises(ValueError, match="hook"):
        MergerRetriever(hook="app")


@pytest.mark.parametrize("question", [None, {"question": QUESTION}, [QUESTION]])
async def test_a_question_is_a_text(app, question):
    retriever = MergerRetriever(hook=app[1])
    with pytest.raises(InputError, match="where a str was expected"):
        retriever.invoke(question)
    with pytest.raises(InputError, match="where a str was expected"):
        await retriever.ainvoke(question)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_found(app, mode):
    retriever = MergerRetriever(hook=app[1], mode=mode)
    assert retriever.invoke(QUESTION, filter={"source": "nobody"}) == []
    assert retriever.invoke(QUESTION, score_threshold=9.0) == []


def test_an_empty_question(app):
    _, hook, _ = app
    with pytest.raises(EmptyInputError):
        MergerRetriever(hook=hook).invoke("  ")


async def test_an_empty_question_awaited(app):
    _, hook, _ = app
    with pytest.raises(EmptyInputError):
        await MergerRetriever(hook=hook).ainvoke("  ")


def test_embeddings_of_another_dimension(app):
    store, _, _ = app

    class Short(Counting):
        def embed_query(self, text: str) -> list[float]:
            return super().embed_query(text)[:100]

    with pytest.raises(InputError, match="dimension 100"):
        MergerRetriever(hook=hook_over(store, Short())).invoke(QUESTION)


async def test_embeddings_that_fail_say_so_themselves(app):
    store, hook, _ = app

    class Failing(Counting):
        def embed_query(self, text: str) -> list[float]:
            raise ConnectionError("no network")

        async def aembed_query(self, text: str) -> list[float]:
            return self.embed_query(text)

    class Notes(BaseCallbackHandler):
        def __init__(self) -> None:
            self.errors: list[BaseException] = []

        def on_retriever_error(self, error, **kwargs):
            self.errors.append(error)

    notes = Notes()
    retriever = MergerRetriever(hook=hook_over(store, Failing()))
    with pytest.raises(ConnectionError, match="no network"):
        retriever.invoke(QUESTION, {"callbacks": [notes]})
    with pytest.raises(ConnectionError, match="no network"):
        await retriever.ainvoke(QUESTION, {"callbacks": [notes]})
    assert [type(error) for error in notes.errors] == [ConnectionError] * 2
    # One of several questions that fails takes no other with it.
    found, failed = MergerRetriever(hook=hook).batch([QUESTION, " "], return_exceptions=True)
    assert found
    assert isinstance(failed, EmptyInputError)


def test_it_closes_nothing(tmp_path):
    client = QdrantClient(path=str(tmp_path / "q"))
    with QdrantStore(client) as hook:
        hook.ingest("a", chunks=["One thing.", "Another thing."])
        MergerRetriever(hook=hook).invoke("thing")
    assert client.collection_exists("documents")
    client.close()
