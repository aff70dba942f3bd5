import asyncio
from typing import Any

import numpy as np
import pytest
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from qdrant_client import AsyncQdrantClient

from merger_plugins.errors import InputError, StoreError
from merger_plugins.llama_index import RollingMemoryBlock
from merger_plugins.qdrant import AsyncQdrantStore, QdrantStore
from merger_plugins.stores.documents import words
from merger_plugins.stores.store import MergedStore
from tests.llama_index.apps import PlainModel, WordModel, nothing_blocks, word_vector
from tests.llama_index.chats import LINES, say


async def test_lines_are_in_reading_order_with_their_speakers(store: MergedStore) -> None:
    block = RollingMemoryBlock(store=store, similarity_top_k=8)
    await block.aput(say(), session_id="monday")
    got = await block.aget([ChatMessage(role="user", content="honey")], session_id="monday")
    assert got.splitlines() == [f"{role}: {text}" for role, text in LINES]


async def test_sessions_are_apart_unless_asked_for(store: MergedStore) -> None:
    question = [ChatMessage(role="user", content="The honey that she sells in June is sold out?")]
    await RollingMemoryBlock(store=store).aput(say(), session_id="monday")
    alone = RollingMemoryBlock(store=store, similarity_top_k=2)
    await alone.aput(say([("user", "The honey is sold out.")]), session_id="tuesday")
    assert await alone.aget(question, session_id="tuesday") == "user: The honey is sold out."
    across = RollingMemoryBlock(store=store, similarity_top_k=3, across_sessions=True)
    both = await across.aget(question, session_id="tuesday")
    assert "sold out" in both
    assert "she sells the honey in June" in both
    assert await alone.aget(question, session_id="wednesday") == ""


async def test_episodes(store: MergedStore) -> None:
    block = RollingMemoryBlock(store=store, recall="episode", similarity_top_k=1)
    await block.aput(say(LINES * 2), session_id="monday")
    got = await block.aget([ChatMessage(role="user", content="rent")], session_id="monday")
    assert len(got.splitlines()) in (6, 10)


async def test_a_follow_up_is_merged_with_the_session(store: MergedStore) -> None:
    block = RollingMemoryBlock(store=store, similarity_top_k=1, history=4)
    await block.aput(say(LINES[:4]), session_id="monday")
    expected = store.recall(
        store.merged_question("And when?", "monday", history=4).vector, 1, conversation_id="monday"
    )
    got = await block.aget([ChatMessage(role="user", content="And when?")], session_id="monday")
    assert got == f"{expected[0].speaker}: {expected[0].text}"


async def test_another_process_goes_on_where_this_one_stopped(tmp_path: Any) -> None:
    question = [ChatMessage(role="user", content="honey in June")]
    with QdrantStore(tmp_path / "memory", embedder=WordModel()) as first:
        await RollingMemoryBlock(store=first).aput(say(LINES[:4]), session_id="monday")
        before = await RollingMemoryBlock(store=first).aget(question, session_id="monday")
    with QdrantStore(tmp_path / "memory", embedder=WordModel()) as second:
        block = RollingMemoryBlock(store=second)
        assert await block.aget(question, session_id="monday") == before
        await block.aput(say(LINES[4:]), session_id="monday")
        (conversation,) = second.documents()
        assert conversation.chunks == len(LINES)
        assert list(second.verify()) == []


async def test_a_sessions_vector_rolls_on_and_is_kept(tmp_path: Any) -> None:
    model = WordModel()
    with QdrantStore(tmp_path / "memory", embedder=model) as first:
        block = RollingMemoryBlock(store=first)
        assert await block.asession_vector("monday") is None
        await block.aput(say(LINES[:4]), session_id="monday")
        before = await block.asession_vector("monday")
        await block.aput(say([("user", "Something else.")]), session_id="tuesday")
    with QdrantStore(tmp_path / "memory", embedder=model) as second:
        block = RollingMemoryBlock(store=second)
        assert await block.asession_vector("monday") == pytest.approx(before, abs=1e-6)
        await block.aput(say(LINES[4:]), session_id="monday")
        rolling = second.merger.rolling()
        turns = [f"{role}: {text}" for role, text in LINES]
        rolling.extend([word_vector(turn) for turn in turns], masses=[words(turn) for turn in turns])
        np.testing.assert_allclose(await block.asession_vector("monday"), rolling.vector, atol=1e-6)


async def test_an_asynchronous_store() -> None:
    async with AsyncQdrantStore(AsyncQdrantClient(":memory:"), embedder=WordModel()) as store:
        block = RollingMemoryBlock(store=store, similarity_top_k=1)
        await block.aput(say(), session_id="monday")
        got = await block.aget([ChatMessage(role="user", content="rent of my flat")], session_id="monday")
        assert got == "user: The rent of my flat goes up in March."
        vector = await block.asession_vector("monday")
        (root,) = await store.search(word_vector(LINES[4][1]), 1, "document")
        assert np.dot(vector, word_vector(LINES[4][1])) / np.linalg.norm(word_vector(LINES[4][1])) == (
            pytest.approx(root.score, abs=1e-6)
        )


async def test_nothing_blocks_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    with QdrantStore(":memory:", embedder=PlainModel()) as store:
        block = RollingMemoryBlock(store=store)
        backend = type(store._backend)
        watched = [
            *((backend, name) for name in ("fetch", "nearest", "upsert", "swap") if hasattr(backend, name)),
            (PlainModel, "_get_text_embedding"),
            (PlainModel, "_get_query_embedding"),
        ]
        with nothing_blocks(monkeypatch, *watched) as seen:
            await block.aput(say(), session_id="monday")
            await block.aget(say(), session_id="monday")
    assert seen["PlainModel._get_text_embedding"] == len(LINES)
    assert seen["PlainModel._get_query_embedding"] == 1


async def test_what_has_no_text_is_left_out(store: MergedStore) -> None:
    block = RollingMemoryBlock(store=store)
    await block.aput(
        [
            ChatMessage(role="user", blocks=[ImageBlock(url="https://example.org/a.png")]),
            ChatMessage(role="tool", content="42"),
            ChatMessage(role="user", blocks=[TextBlock(text="first"), TextBlock(text="second")]),
        ],
        session_id="monday",
    )
    assert await block.aget(say([("user", "first")]), session_id="monday") == "user: first\nsecond"
    assert await block.aget([], session_id="monday") == ""
    assert await block.aget(session_id="monday") == ""
    assert await block.aget([ChatMessage(role="assistant", content="first")], session_id="monday") == ""


class Failing(WordModel):
    broken: bool = False

    def _get_text_embedding(self, text: str) -> list[float]:
        if self.broken and "rent" in text:
            raise ConnectionError("the model went away")
        return super()._get_text_embedding(text)


async def test_what_could_not_be_stored_is_stored_before_the_next(store: MergedStore) -> None:
    model = Failing(broken=True)
    block = RollingMemoryBlock(store=QdrantStore(":memory:", embedder=model))
    with pytest.raises(StoreError, match=r"4 messages could not be stored.*went away"):
        await block.aput(say(), session_id="monday")
    model.broken = False
    await block.aput(say([("user", "One more.")]), session_id="monday")
    everything = await block.model_copy(update={"similarity_top_k": 20}).aget(
        say([("user", "honey")]), session_id="monday"
    )
    assert everything.splitlines() == [f"{role}: {text}" for role, text in [*LINES, ("user", "One more.")]]


async def test_messages_put_at_once_are_stored_once_and_in_order(store: MergedStore) -> None:
    block = RollingMemoryBlock(store=store, similarity_top_k=20)
    await asyncio.gather(*(block.aput(say([line]), session_id="monday") for line in LINES))
    got = await block.aget(say([("user", "honey")]), session_id="monday")
    assert got.splitlines() == [f"{role}: {text}" for role, text in LINES]


async def test_text_that_cannot_be_stored_does_not_hold_up_the_rest(store: MergedStore) -> None:
    block = RollingMemoryBlock(store=store)
    with pytest.raises(InputError, match=r"broken.*left out"):
        await block.aput(say([("user", "broken \ud800"), *LINES[:2]]), session_id="monday")
    await block.aput(say(LINES[2:3]), session_id="monday")
    (conversation,) = store.documents()
    assert conversation.chunks == 3


def test_a_block_needs_a_store() -> None:
    with pytest.raises(ValueError, match="QdrantStore, ChromaStore"):
        RollingMemoryBlock(store=object())


async def test_truncating_drops_the_oldest_lines(store: MergedStore) -> None:
    block = RollingMemoryBlock(store=store)
    content = "one two three\nfour five\nsix"
    assert await block.atruncate(content, 2) == "four five\nsix"
    assert await block.atruncate(content, 4) == "six"
    assert await block.atruncate(content, 100) is None


def test_it_can_be_written_down_and_told_its_store_again(store: MergedStore) -> None:
    block = RollingMemoryBlock(store=store, similarity_top_k=7, history=2)
    data = block.model_dump(mode="json")
    with pytest.raises(ValueError, match="store was a"):
        RollingMemoryBlock.model_validate(data)
    again = RollingMemoryBlock.model_validate({**data, "store": store})
    assert again.model_dump(mode="json") == data
