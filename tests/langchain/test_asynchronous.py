"""Coroutines of the adapter do no work in the event loop's own thread."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage

from merger_plugins.langchain import MergerChatHistory, MergerEmbeddings, MergerRetriever, MergerVectorStore
from merger_plugins.qdrant import QdrantStore
from tests.langchain.apps import APPS, QUESTION, Counting, documents, hook_over

WORK = ("chromadb", "qdrant_client", "sqlite3", "merger_plugins", "tests.langchain.apps.Counting.embed")
ALLOWED = ("merger_plugins.langchain", "merger_plugins.stores.asynchronous", "merger_plugins._threads")

OF_ONE_QUERY = ("_checked", "_only", "_rows")


@contextmanager
def worked() -> Iterator[set[str]]:
    """Functions of databases, stores, mergers and embedders that this thread calls meanwhile."""
    seen: set[str] = set()

    def note(frame: FrameType, event: str, _argument: Any) -> None:
        name = f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}"
        if event == "call" and name.startswith(WORK) and not name.startswith(ALLOWED):
            seen.add(name)

    sys.setprofile(note)
    try:
        yield seen
    finally:
        sys.setprofile(None)


@pytest.fixture(params=sorted(APPS))
def app(request: pytest.FixtureRequest) -> Any:
    embeddings = Counting()
    plain = APPS[request.param](embeddings)
    hook = hook_over(plain, embeddings)
    plain.add_documents(documents())
    hook.backfill(contextual="companion")
    return MergerVectorStore(plain, hook), hook


async def test_retrieving(app, tmp_path):
    _, hook = app
    chats = QdrantStore(tmp_path / "chats", embedder=Counting())
    chats.append("ann", "Tell me about the lighthouse.")
    Counting().embed_query(QUESTION)  # remembered, so that the application's own coroutine does nothing
    for mode in ("fused", "contextual", "chunk", "section", "document"):
        retriever = MergerRetriever(hook=hook, mode=mode, conversations=chats)
        with worked() as seen:
            assert await retriever.ainvoke(QUESTION)
            assert await retriever.ainvoke(QUESTION, conversation="ann")
            assert await retriever.abatch([QUESTION, QUESTION])
        assert seen == set()
    with worked() as seen:  # the same is noticed where it is not awaited
        retriever.invoke(QUESTION)
    assert {"tests.langchain.apps.Counting.embed_query"} < seen


async def test_adding_and_deleting(app):
    store, _ = app
    fog = Document(page_content="Fog hides the reef.", metadata={"source": "lighthouse", "start_index": 300})
    with worked() as seen:
        (added,) = await store.aadd_documents([fog])
        await store.adelete([added])
        await store.asimilarity_search(QUESTION)
        await store.aadd_texts(["Fog."], [{"source": "lighthouse", "start_index": 0}])
    assert seen == set()


async def test_chats(tmp_path):
    question = "the year of the light"
    Counting().embed_query(question)  # remembered
    history = MergerChatHistory(QdrantStore(tmp_path / "chats", embedder=Counting()), "ann")
    with worked() as seen:
        await history.aadd_messages([HumanMessage("When was the lamp lit?"), AIMessage("In 1871.")])
        assert len(await history.arecall(question, 1)) == 1
        assert len(await history.aget_messages()) == 2
        await history.aclear()
    assert seen == set()
    history.hook.close()


async def test_embedding_long_texts():
    class Awaited(Counting):
        async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
            return [[float(len(text)), 1.0] for text in texts]

        async def aembed_query(self, text: str) -> list[float]:
            return [float(len(text)), 1.0]

    text = "The keeper wrote down the weather. " * 20
    for embeddings in (MergerEmbeddings(Awaited(), max_tokens=16), MergerEmbeddings()):
        with worked() as seen:
            await embeddings.aembed_documents(["short", text])
            await embeddings.aembed_query("short")
        assert {name.rpartition(".")[2] for name in seen} <= {"aembed", "aembed_query", *OF_ONE_QUERY}
