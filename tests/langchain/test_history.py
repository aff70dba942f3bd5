import asyncio

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables.history import RunnableWithMessageHistory

from merger_plugins.chroma import ChromaStore
from merger_plugins.errors import InputError
from merger_plugins.langchain import MergerChatHistory, MergerRetriever
from merger_plugins.qdrant import AsyncQdrantStore, QdrantStore
from tests.langchain.apps import Counting

TALK = [
    SystemMessage("You are a guide."),
    HumanMessage("When was the lighthouse lit?"),
    AIMessage("Its lamp was lit in 1871.", additional_kwargs={"tokens": 9}),
    AIMessage("", tool_calls=[{"name": "weather", "args": {"place": "reef"}, "id": "1"}]),
    ToolMessage("Fog.", tool_call_id="1"),
    HumanMessage("What do bees eat in winter?"),
]


@pytest.fixture(params=["qdrant", "chroma"])
def hook(request, tmp_path):
    if request.param == "qdrant":
        made = QdrantStore(":memory:", "chats", embedder=Counting(), contextual=True)
    else:
        made = ChromaStore(tmp_path / "chroma", "chats", embedder=Counting(), contextual=True)
    yield made
    made.close()


def test_messages_come_back_as_they_were(hook):
    history = MergerChatHistory(hook, "ann")
    assert history.messages == []
    history.add_messages(TALK)
    assert history.messages == TALK
    assert MergerChatHistory(hook, "ann").messages == TALK
    assert MergerChatHistory(hook, "bob").messages == []
    assert str(history).startswith("System: You are a guide.\nHuman: When was the lighthouse lit?")


def test_content_in_blocks(hook):
    blocks = [{"type": "text", "text": "What is "}, "this?", {"type": "image_url", "image_url": {"url": "x"}}]
    history = MergerChatHistory(hook, "ann")
    history.add_messages([HumanMessage(content=blocks)])
    assert history.messages[0].content == blocks
    assert [turn.text for turn in hook.contents("ann")] == ["What is this?"]


def test_a_repeated_call_stores_nothing_twice(hook):
    history = MergerChatHistory(hook, "ann")
    talk = [HumanMessage("Hello."), AIMessage("Hi.")]
    history.add_messages(talk)
    history.add_messages([*talk, HumanMessage("And you?")])
    assert [message.content for message in history.messages] == ["Hello.", "Hi.", "And you?"]


def test_a_message_longer_than_the_model_reads_comes_back_whole(hook, monkeypatch):
    monkeypatch.setattr(Counting, "max_tokens", 64, raising=False)
    long = " ".join(f"Sentence {number} goes on about the tower." for number in range(200))
    history = MergerChatHistory(hook, "ann")
    history.add_user_message(long)
    history.add_ai_message("Indeed.")
    assert [message.content for message in history.messages] == [long, "Indeed."]
    assert sum(document.chunks for document in hook.documents()) > 2


def test_the_session_can_be_cleared(hook):
    for session in ("ann", "bob"):
        MergerChatHistory(hook, session).add_user_message(f"I am {session}.")
    MergerChatHistory(hook, "ann").clear()
    assert MergerChatHistory(hook, "ann").messages == []
    assert len(MergerChatHistory(hook, "bob").messages) == 1
    MergerChatHistory(hook, "ann").clear()


def test_what_was_said_is_recalled(hook):
    history = MergerChatHistory(hook, "ann")
    history.add_messages(TALK)
    MergerChatHistory(hook, "bob").add_user_message("The lighthouse was lit in 1871, says Bob.")
    found = history.recall("the year of the first light", 2)
    assert [message.content for message in found] == [
        "When was the lighthouse lit?",
        "Its lamp was lit in 1871.",
    ]


def test_a_model_that_fails_half_way_leaves_what_was_stored():
    class Failing(Counting):
        working = False

        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            if not self.working and any("Hi." in text for text in texts):
                raise ConnectionError("no network")
            return super().embed_documents(texts)

    embeddings = Failing()
    talk = [HumanMessage("Hello."), AIMessage("Hi."), HumanMessage("And you?")]
    history = MergerChatHistory(QdrantStore(":memory:", "chats", embedder=embeddings), "ann")
    with pytest.raises(ConnectionError, match="no network"):
        history.add_messages(talk)
    assert history.messages == talk[:1]
    embeddings.working = True
    history.add_messages(talk)
    assert history.messages == talk


def test_chats_of_another_day_keep_their_times(hook):
    days = {"Hello.": "2026-03-01T09:00:00+00:00", "Still there?": "2026-03-04T20:00:00+00:00"}
    history = MergerChatHistory(hook, "ann", said_at=lambda message: days[message.content])
    history.add_messages([HumanMessage(text) for text in days])
    stored = [hook.recall(text, 1, conversation_id="ann")[0].time for text in days]
    assert stored == list(days.values())


def test_speakers_are_named(hook):
    MergerChatHistory(hook, "ann", speakers={"human": "Ann"}).add_messages(TALK[1:3])
    assert [turn.speaker for turn in hook.contents("ann")] == ["Ann", "ai"]


async def test_awaited(hook):
    history = MergerChatHistory(hook, "ann")
    await history.aadd_messages(TALK)
    assert await history.aget_messages() == TALK
    assert await history.arecall("the year of the first light", 2) == history.recall(
        "the year of the first light", 2
    )
    await history.aclear()
    assert await history.aget_messages() == []


async def test_an_asynchronous_hook():
    hook = AsyncQdrantStore(":memory:", "chats", embedder=Counting())
    history = MergerChatHistory(hook, "ann")
    await history.aadd_messages(TALK)
    assert await history.aget_messages() == TALK
    assert len(await history.arecall("the year of the first light", 2)) == 2
    with pytest.raises(InputError, match="aget_messages"):
        history.clear()
    await history.aclear()
    assert await history.aget_messages() == []
    await hook.close()


async def test_sessions_side_by_side(hook):
    async def talk(session: str) -> None:
        for number in range(6):
            await MergerChatHistory(hook, session).aadd_messages([HumanMessage(f"{session} {number}")])

    await asyncio.gather(*(talk(f"s{number}") for number in range(5)))
    for number in range(5):
        said = [message.content for message in MergerChatHistory(hook, f"s{number}").messages]
        assert said == [f"s{number} {turn}" for turn in range(6)]


def test_inside_a_chain_with_history(hook):
    prompt = ChatPromptTemplate.from_messages([MessagesPlaceholder("history"), ("human", "{question}")])
    chain = RunnableWithMessageHistory(
        prompt | FakeListChatModel(responses=["In 1871.", "Three keepers."]),
        lambda session_id: MergerChatHistory(hook, session_id),
        input_messages_key="question",
        history_messages_key="history",
    )
    config = {"configurable": {"session_id": "ann"}}
    chain.invoke({"question": "When was the lighthouse lit?"}, config)
    chain.invoke({"question": "Who lived there?"}, config)
    said = [message.content for message in MergerChatHistory(hook, "ann").messages]
    assert said == ["When was the lighthouse lit?", "In 1871.", "Who lived there?", "Three keepers."]


def test_a_follow_up_question_is_merged_with_the_session():
    chats = QdrantStore(":memory:", "chats", embedder=Counting())
    documents = QdrantStore(":memory:", "documents", embedder=Counting())
    documents.ingest("tower", chunks=["The lighthouse stands on a reef.", "Its keepers were three."])
    documents.ingest("hive", chunks=["A colony has one queen.", "Its workers are many."])
    MergerChatHistory(chats, "ann").add_messages([HumanMessage("Tell me about the lighthouse.")])
    retriever = MergerRetriever(hook=documents, conversations=chats, mode="document", k=1)
    got = retriever.invoke("How many were there?", conversation="ann")
    assert got[0].metadata["merger"]["document_id"] == "tower"


def test_other_things_are_refused(hook):
    with pytest.raises(InputError, match="QdrantStore"):
        MergerChatHistory("chats", "ann")
    with pytest.raises(InputError, match="BaseMessage"):
        MergerChatHistory(hook, "ann").add_messages(["hello"])
    with pytest.raises(InputError):
        MergerChatHistory(hook, "").add_messages([HumanMessage("Hello.")])
