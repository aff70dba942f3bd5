"""`RollingMemoryBlock` inside LlamaIndex's `Memory` and its chat engines."""

from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import MockLLM
from llama_index.core.memory import Memory

from merger_plugins.llama_index import RollingMemoryBlock
from merger_plugins.stores import MergedStore
from tests.llama_index.chats import LINES, say


def memory(block: RollingMemoryBlock, session: str = "monday", **settings: Any) -> Memory:
    """Short-term memory of 30 words."""
    limits = {"token_limit": 50, "chat_history_token_ratio": 0.6, "token_flush_size": 20, **settings}
    return Memory.from_defaults(session_id=session, memory_blocks=[block], tokenizer_fn=str.split, **limits)


def told(messages: list[ChatMessage]) -> str:
    """What the block put into the system message."""
    return next((message.content or "" for message in messages if message.role == "system"), "")


async def test_what_left_the_short_term_memory_is_recalled_for_the_latest_message(store: MergedStore) -> None:
    chat = memory(RollingMemoryBlock(store=store, similarity_top_k=2))
    for message in say():
        await chat.aput(message)
    short = await chat.aget_all()
    (conversation,) = store.documents()
    assert conversation.id == "monday"
    active = {message.content for message in await chat.aget() if message.role != "system"}
    assert len(active) < len(LINES) == len(short)
    kept = [text for _, text in LINES if text not in active]
    assert conversation.chunks == len(kept) > 2
    answer = told(await chat.aget(input="How many hives does Anna have?"))
    assert "How many hives does she have?" in answer
    assert "lamp" not in answer


async def test_nothing_reaches_the_store_before_it_leaves_the_short_term_memory(store: MergedStore) -> None:
    chat = memory(RollingMemoryBlock(store=store), token_limit=10_000)
    await chat.aput_messages(say())
    assert list(store.documents()) == []
    assert told(await chat.aget(input="hives?")) == ""


async def test_in_a_chat_engine(store: MergedStore) -> None:
    chat = memory(RollingMemoryBlock(store=store, similarity_top_k=2))
    engine = SimpleChatEngine.from_defaults(llm=MockLLM(), memory=chat)
    for _, text in LINES:
        await engine.achat(text)
    answer = await engine.achat("What do you know of the honey of my sister Anna?")
    assert "Anna keeps bees" in str(answer), "the stand-in model repeats its prompt"
    assert sum(one.chunks for one in store.documents()) > 4
