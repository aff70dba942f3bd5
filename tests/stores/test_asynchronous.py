"""The stores in an event loop: the same results, and the loop stays free."""

from __future__ import annotations

import asyncio
import inspect
import threading
from uuid import uuid4

import chromadb
import httpx
import numpy as np
import pytest
from qdrant_client import AsyncQdrantClient

from merger_plugins.chroma import AsyncChromaStore, ChromaStore
from merger_plugins.errors import EmptyInputError, StoreError, StoreUnavailableError
from merger_plugins.qdrant import AsyncQdrantStore, QdrantStore
from merger_plugins.stores import MergedStore
from merger_plugins.stores.asynchronous import AsyncMergedStore
from merger_plugins.stores.backend import Where
from tests.stores.support import DIMENSION, HashingEmbedder, documents, informed
from tests.strategies import NarrowMean, chunk_vectors

TEXTS = {
    "tower": "The tower stands on a reef. Its lamp was lit in 1871.",
    "lease": "Rent is due on the first day of the month.",
}
LEVELS = ["chunk", "section", "document", "fused"]
PLACES = [
    "qdrant-memory",
    "qdrant-folder",
    "qdrant-client",
    "chroma-memory",
    "chroma-folder",
    "chroma-server",
    "chroma-client",
]
COROUTINES = ["qdrant-client", "chroma-server", "chroma-client"]


@pytest.fixture
async def opened(request, tmp_path):
    """Makes stores over one new collection in the place that the test is about."""
    collection = f"test-{uuid4().hex[:12]}"
    shared = {}

    async def open_store(place, **more):
        options = {"merger": informed(), "embedder": HashingEmbedder(), **more}
        if place == "qdrant-client":
            shared.setdefault(place, AsyncQdrantClient(":memory:"))
        elif place == "chroma-client":
            url = request.getfixturevalue("chroma_server").url.removeprefix("http://")
            host, port = url.split(":")
            shared.setdefault(place, await chromadb.AsyncHttpClient(host, int(port)))
        elif place == "chroma-server":
            shared[place] = request.getfixturevalue("chroma_server").url
        location = shared.get(place) or {"memory": ":memory:", "folder": tmp_path / place}[place[7:]]
        return (AsyncQdrantStore if place.startswith("qdrant") else AsyncChromaStore)(
            location, collection, **options
        )

    return open_store


async def filled(store):
    for name, text in TEXTS.items():
        await store.ingest(name, text)
    for turn in range(15):
        await store.append("talk", f"turn {turn} about the tower", speaker="Ann")
    await store.calibrate()


def hits(found):
    return [(hit.document_id, hit.position, round(hit.score, 4)) for hit in found]


@pytest.fixture(scope="module")
def expected():
    """What the store without an event loop finds."""
    found = {}
    for kind in (QdrantStore, ChromaStore):
        with kind(":memory:", merger=informed(), embedder=HashingEmbedder()) as store:
            for name, text in TEXTS.items():
                store.ingest(name, text)
            for turn in range(15):
                store.append("talk", f"turn {turn} about the tower", speaker="Ann")
            store.calibrate()
            found[kind.__name__[:6].lower()] = {
                level: hits(store.search("when was the lamp lit", 5, level)) for level in LEVELS
            }
    return found


@pytest.mark.parametrize("place", PLACES)
async def test_it_gives_what_the_store_gives(place, opened, expected):
    async with await opened(place) as store:
        await filled(store)
        for level in LEVELS:
            assert hits(await store.search("when was the lamp lit", 5, level)) == expected[place[:6]][level]
        assert sorted([document.id async for document in store.documents()]) == ["lease", "talk", "tower"]
        assert (await store.inspect()).documents == 2
        assert await store.delete("lease")
        assert not await store.delete("lease")


@pytest.mark.parametrize("place", PLACES)
async def test_edits_and_health(place, opened):
    vectors = chunk_vectors(1, 30, DIMENSION)
    async with await opened(place, merger=NarrowMean(), contextual=True) as store:
        await store.ingest_many([("tower", TEXTS["tower"])])
        await store.extend("a", vectors=vectors)
        await store.replace("a", 3, vectors[0])
        await store.remove("a", 4)
        assert [problem async for problem in store.verify()] == []
        backend = store._store._backend
        roots = await asyncio.to_thread(lambda: list(backend.scan("merged", Where({"document_id": "a"}))))
        (root,) = [point.id for point in roots if point.payload["kind"] == "root"]
        await asyncio.to_thread(backend.delete, "merged", [root])
        assert {problem.kind async for problem in store.verify("a")} == {"missing", "stray"}
        assert await store.repair() == []
        assert [problem async for problem in store.verify()] == []
        await store.rebuild()
        assert isinstance((await store.embedder()).source, HashingEmbedder)
        assert len(await store.recall(vectors[0], 3, "conversation")) == 2
        assert (await store.merged_question("the lamp", "tower")).vector.shape == (DIMENSION,)
        with pytest.raises(StoreError, match="wrote"):
            await store.backfill()


@pytest.mark.parametrize("place", PLACES)
async def test_calibrating(place, opened):
    async with await opened(place) as store:
        assert not await store.calibration_due()
        for name, vectors in documents(1, 12, 25).items():
            await store.ingest(name, vectors=vectors)
        assert await store.calibration_due()
        before = await store.merger()
        calibrated = await store.calibrate_in_background()
        assert (await store.merger()).fingerprint == calibrated.fingerprint != before.fingerprint
        assert not await store.calibration_due()
        assert (await store.calibrate(if_grown=0.5)).fingerprint == calibrated.fingerprint
        assert [problem async for problem in store.verify()] == []


def test_both_stores_offer_the_same():
    def offered(kind):
        return {name for name in dir(kind) if not name.startswith("_")}

    assert offered(AsyncMergedStore) == offered(MergedStore)
    for name in offered(MergedStore):
        plain, other = getattr(MergedStore, name), getattr(AsyncMergedStore, name)
        assert other.__doc__
        if not isinstance(plain, property):
            assert inspect.signature(plain).parameters == inspect.signature(other).parameters, name


class TestTheLoop:
    """The first ones wait in it for what happens in a thread, and would hang if it were not free."""

    @staticmethod
    def gate(method):
        """A function that waits for leave, once; when it has begun, and how to give leave."""
        begun, leave = threading.Event(), threading.Event()

        def call(*args, **options):
            begun.set()
            assert leave.wait(30)
            return method(*args, **options)

        return call, begun, leave

    async def test_it_is_free_while_texts_are_embedded(self, opened):
        embedder = HashingEmbedder()
        embedder.embed_documents, begun, leave = self.gate(embedder.embed_documents)
        async with await opened("qdrant-memory", embedder=embedder) as store:
            ingesting = asyncio.create_task(store.ingest("tower", TEXTS["tower"]))
            assert await asyncio.to_thread(begun.wait, 30)
            leave.set()
            assert (await ingesting).chunks == 1

    @pytest.mark.parametrize("place", PLACES)
    async def test_it_is_free_while_something_is_written_or_searched(self, place, opened):
        async with await opened(place) as store:
            await store.ingest("lease", TEXTS["lease"])
            backend = store._store._backend
            for name, act in (
                ("write", lambda: store.ingest("tower", TEXTS["tower"])),
                ("nearest", lambda: store.search("lamp", 1)),
            ):
                method, begun, leave = self.gate(getattr(backend, name))
                setattr(backend, name, method)
                task = asyncio.create_task(act())
                assert await asyncio.to_thread(begun.wait, 30)
                leave.set()
                assert await task

    @pytest.mark.parametrize("place", PLACES)
    async def test_short_operations_do_not_wait_for_a_calibration(self, place, opened):
        async with await opened(place) as store:
            await store.ingest("tower", TEXTS["tower"])
            backend = store._store._backend
            backend.scan, begun, leave = self.gate(backend.scan)
            calibrating = asyncio.create_task(store.calibrate())
            assert await asyncio.to_thread(begun.wait, 30)
            assert (await store.search("lamp", 1))[0].document_id == "tower"
            await store.append("talk", "something else")
            assert not calibrating.done()
            leave.set()
            calibrated = await calibrating
            assert [problem async for problem in store.verify()] == []
            assert (await store.merger()).fingerprint == calibrated.fingerprint

    @pytest.mark.parametrize("place", COROUTINES)
    async def test_requests_run_in_it_and_nothing_else_does(self, place, opened, monkeypatch):
        asked, worked = set(), set()

        class Embedder(HashingEmbedder):
            def embed_documents(self, texts):
                worked.add(threading.current_thread())
                return super().embed_documents(texts)

        def watched(kind, name):
            method = getattr(kind, name)

            async def send(*args, **options):
                asked.add(threading.current_thread())
                return await method(*args, **options)

            monkeypatch.setattr(kind, name, send)

        def refused(*_, **__):
            raise AssertionError("a request outside of the loop")

        watched(AsyncQdrantClient, "upsert")
        store = await opened(place, embedder=Embedder())
        watched(httpx.AsyncClient, "send")
        monkeypatch.setattr(httpx.Client, "send", refused)
        async with store:
            await store.ingest("tower", TEXTS["tower"])
            await store.search("lamp", 3, "fused")
        assert asked == {threading.current_thread()}
        assert worked.isdisjoint(asked)


@pytest.mark.parametrize("place", PLACES)
async def test_turns_that_arrive_at_once_are_all_there_once(place, opened):
    async with await opened(place) as store:
        await store.append("talk", "how it began")
        turns = [f"turn {index} about something" for index in range(30)]
        await asyncio.gather(*(store.append("talk", turn) for turn in turns))
        found = await store.search(np.ones(16, np.float32), 100, "chunk")
        assert sorted(hit.text for hit in found) == sorted([*turns, "how it began"])
        assert sorted(hit.position for hit in found) == list(range(31))
        assert [problem async for problem in store.verify()] == []
        if place not in COROUTINES:  # one after the other, as they were called
            assert [hit.text for hit in sorted(found, key=lambda hit: hit.position)][1:] == turns


@pytest.mark.parametrize("place", PLACES)
async def test_a_write_that_is_no_longer_awaited_is_finished(place, opened):
    async with await opened(place) as store:
        task = asyncio.create_task(store.ingest("tower", TEXTS["tower"]))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async for attempt in _attempts():
            if (await store.inspect()).documents == 1:
                break
            assert attempt < 300


async def _attempts():
    for attempt in range(301):
        yield attempt
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("place", PLACES)
async def test_closing_waits_for_what_is_under_way(place, opened):
    store = await opened(place)
    tasks = [asyncio.create_task(store.append("talk", f"turn {index}")) for index in range(8)]
    await asyncio.sleep(0)
    await store.close()
    assert [task.result().document_id for task in tasks] == ["talk"] * 8
    with pytest.raises(StoreError, match="is closed"):
        await store.inspect()
    with pytest.raises(StoreError, match="is closed"):
        store.calibrate_in_background()
    await store.close()


@pytest.mark.parametrize("place", COROUTINES[::2])
async def test_a_client_that_was_passed_in_stays_open(place, opened):
    for name in TEXTS:
        async with await opened(place) as store:
            await store.ingest(name, TEXTS[name])
    async with await opened(place) as store:
        assert (await store.inspect()).documents == 2


async def test_two_stores_of_one_server_have_connections_of_their_own(opened):
    one, other = await opened("chroma-server"), await opened("chroma-server")
    async with other:
        async with one:
            await one.ingest("tower", TEXTS["tower"])
            assert (await other.inspect()).documents == 1
        assert (await other.inspect()).documents == 1


async def test_errors_are_those_of_the_store():
    store = AsyncQdrantStore(":memory:", embedder=HashingEmbedder(), merger=informed())
    with pytest.raises(EmptyInputError):
        await store.ingest("tower", " ")
    await store.close()


async def test_a_server_that_does_not_answer_is_named():
    store = AsyncChromaStore("http://127.0.0.1:1", merger=informed())
    with pytest.raises(StoreUnavailableError, match=r"http://127\.0\.0\.1:1"):
        await store.search(np.ones(DIMENSION))
    await store.close()


def test_a_store_of_another_event_loop_is_refused(chroma_server):
    for store in (
        AsyncQdrantStore(AsyncQdrantClient(":memory:"), merger=informed()),
        AsyncChromaStore(chroma_server.url, f"test-{uuid4().hex[:12]}", merger=informed()),
    ):
        asyncio.run(store.ingest("tower", vectors=chunk_vectors(1, 3, DIMENSION)))
        with pytest.raises(StoreError, match="each event loop"):
            asyncio.run(store.inspect())
