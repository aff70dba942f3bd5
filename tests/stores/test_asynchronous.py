"""The store in an event loop: the same results, and the loop stays free."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest
from qdrant_client import AsyncQdrantClient

from merger_plugins.errors import EmptyInputError, StoreError
from merger_plugins.qdrant import AsyncQdrantStore, QdrantStore
from tests.stores.support import HashingEmbedder, informed

TEXTS = {
    "tower": "The tower stands on a reef. Its lamp was lit in 1871.",
    "lease": "Rent is due on the first day of the month.",
}


def options():
    return {"merger": informed(), "embedder": HashingEmbedder()}


async def filled(store):
    for name, text in TEXTS.items():
        await store.ingest(name, text)
    for turn in range(15):
        await store.append("talk", f"turn {turn} about the tower", speaker="Ann")
    await store.calibrate()


def hits(found):
    return [(hit.document_id, hit.position, round(hit.score, 5)) for hit in found]


@pytest.mark.parametrize("level", ["chunk", "section", "document", "fused"])
@pytest.mark.parametrize("client", ["memory", "folder", "coroutines"])
async def test_it_gives_what_the_store_gives(client, level, tmp_path):
    location = {"memory": ":memory:", "folder": tmp_path / "store"}.get(client) or AsyncQdrantClient(
        ":memory:"
    )
    with QdrantStore(":memory:", **options()) as plain:
        for name, text in TEXTS.items():
            plain.ingest(name, text)
        for turn in range(15):
            plain.append("talk", f"turn {turn} about the tower", speaker="Ann")
        plain.calibrate()
        expected = hits(plain.search("when was the lamp lit", 5, level))
    async with AsyncQdrantStore(location, **options()) as store:
        await filled(store)
        assert hits(await store.search("when was the lamp lit", 5, level)) == expected
        assert sorted([document.id async for document in store.documents()]) == ["lease", "talk", "tower"]
        assert (await store.inspect()).documents == 2
        assert await store.delete("lease")
        assert not await store.delete("lease")


async def test_requests_of_a_client_of_coroutines_run_in_the_callers_loop():
    threads = set()

    class Watched(AsyncQdrantClient):
        async def upsert(self, *args, **kwargs):
            threads.add(threading.current_thread())
            return await super().upsert(*args, **kwargs)

    client = Watched(":memory:")
    async with AsyncQdrantStore(client, **options()) as store:
        await store.ingest("tower", TEXTS["tower"])
    assert threads == {threading.current_thread()}
    assert await client.collection_exists("documents")  # one that was passed in stays open


async def test_the_loop_stays_free_while_texts_are_embedded():
    class Slow(HashingEmbedder):
        def embed_documents(self, texts):
            time.sleep(0.3)
            return super().embed_documents(texts)

    async with AsyncQdrantStore(":memory:", merger=informed(), embedder=Slow()) as store:
        ingesting = asyncio.create_task(store.ingest("tower", TEXTS["tower"]))
        longest, last = 0.0, time.perf_counter()
        while not ingesting.done():
            await asyncio.sleep(0.005)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
        assert longest < 0.2


@pytest.mark.parametrize("client", ["memory"])
async def test_turns_that_arrive_at_once_are_all_there_once(client):
    location = ":memory:" if client == "memory" else AsyncQdrantClient(":memory:")
    async with AsyncQdrantStore(location, **options()) as store:
        await store.append("talk", "how it began")
        turns = [f"turn {index} about something" for index in range(30)]
        await asyncio.gather(*(store.append("talk", turn) for turn in turns))
        found = await store.search(np.ones(16, np.float32), 100, "chunk")
        assert sorted(hit.text for hit in found) == sorted([*turns, "how it began"])
        assert sorted(hit.position for hit in found) == list(range(31))


async def test_a_write_that_is_no_longer_awaited_is_finished():
    async with AsyncQdrantStore(":memory:", **options()) as store:
        task = asyncio.create_task(store.ingest("tower", TEXTS["tower"]))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await store.inspect()).documents == 1


async def test_errors_are_those_of_the_store():
    store = AsyncQdrantStore(":memory:", **options())
    with pytest.raises(EmptyInputError):
        await store.ingest("tower", " ")
    await store.close()
    with pytest.raises(StoreError, match="is closed"):
        await store.inspect()


def test_a_store_of_another_event_loop_is_refused():
    client = AsyncQdrantClient(":memory:")
    store = AsyncQdrantStore(client, **options())
    asyncio.run(store.ingest("tower", TEXTS["tower"]))
    with pytest.raises(StoreError, match="each event loop"):
        asyncio.run(store.inspect())
