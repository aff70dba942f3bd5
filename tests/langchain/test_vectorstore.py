import asyncio
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_core.vectorstores import InMemoryVectorStore, VectorStoreRetriever

from merger_plugins.errors import InputError, StoreError
from merger_plugins.langchain import MergerRetriever, MergerVectorStore
from tests.langchain.apps import APPS, QUESTION, SUBJECTS, Counting, documents, hook_over


class App:
    def __init__(self, name: str) -> None:
        self.embeddings = Counting()
        self.plain = APPS[name](self.embeddings)
        self.hook = hook_over(self.plain, self.embeddings)
        self.store = MergerVectorStore(self.plain, self.hook)

    def roots(self) -> dict[str, Any]:
        hook = hook_over(self.plain, self.embeddings)
        scan = hook._backend.scan
        from merger_plugins.stores.backend import Where

        return {p.payload["document_id"]: p for p in scan("merged", Where({"kind": "root"}), vectors=True)}

    def assert_current(self) -> None:
        """The merged vectors are those that a back-fill from scratch makes."""
        before = self.roots()
        done = self.hook.backfill()
        assert (done.merged, done.removed) == (0, 0)
        after = self.roots()
        assert before.keys() == after.keys() == {d.id for d in self.hook.documents()}
        self.hook.backfill(anew=True, calibrate=False)


@pytest.fixture(params=sorted(APPS))
def app(request):
    return App(request.param)


def sources(found: list[Document]) -> list[str]:
    return [one.metadata["source"] for one in found]


def test_what_is_added_is_merged(app):
    app.store.add_documents(documents())
    assert app.roots().keys() == SUBJECTS.keys()
    app.assert_current()
    got = app.store.as_retriever(search_type="document", search_kwargs={"k": 3}).invoke(QUESTION)
    assert sources(got) == ["lighthouse"] * 3


def test_chunks_that_come_later_join_their_document(app):
    first, rest = documents()[:2], documents()[2:]
    app.store.add_documents(rest)
    app.store.add_documents(first)
    app.assert_current()
    assert [chunk.text for chunk in app.hook.contents("lighthouse")] == SUBJECTS["lighthouse"]


def test_only_what_changed_is_written(app, monkeypatch):
    app.store.add_documents(documents())
    written: list[str] = []
    original = type(app.hook._backend).write

    def noted(self, shelf, points, **kwargs):
        written.extend(
            p.payload["document_id"] for p in points if p.payload.get("kind") in ("root", "section")
        )
        return original(self, shelf, points, **kwargs)

    monkeypatch.setattr(type(app.hook._backend), "write", noted)
    app.store.add_documents(
        [Document(page_content="Fog hides the reef.", metadata={"source": "lighthouse", "start_index": 300})]
    )
    assert set(written) <= {"lighthouse"}
    monkeypatch.undo()
    app.assert_current()


def test_what_is_deleted_is_gone_from_the_merged_vectors(app):
    ids = app.store.add_documents(documents())
    app.store.delete(ids[:2])
    app.assert_current()
    assert [chunk.text for chunk in app.hook.contents("lighthouse")] == SUBJECTS["lighthouse"][2:]
    app.store.delete(ids[2:3])
    app.assert_current()
    assert "lighthouse" not in app.roots()


def test_a_chunk_that_moves_to_another_document(app):
    ids = app.store.add_documents(documents())
    moved = Document(
        id=ids[0], page_content="The tower stands on a reef.", metadata={"source": "bees", "start_index": 900}
    )
    app.store.add_documents([moved])
    app.assert_current()
    assert len(app.hook.contents("lighthouse")) == 2
    assert len(app.hook.contents("bees")) == 4


def test_texts_are_added_like_documents(app):
    app.store.add_texts(
        ["One.", "Two."], [{"source": "numbers", "start_index": 0}, {"source": "numbers", "start_index": 5}]
    )
    assert app.roots().keys() == {"numbers"}


@pytest.mark.filterwarnings("ignore:Using SHA-1")  # Qdrant takes UUIDs alone, which only that one gives
def test_under_langchains_indexing(app):
    records = InMemoryRecordManager("app")
    records.create_schema()
    texts = documents()

    def run(texts: list[Document], cleanup: str) -> dict[str, int]:
        return index(texts, records, app.store, cleanup=cleanup, source_id_key="source")

    assert run(texts, "incremental")["num_added"] == len(texts)
    app.assert_current()
    assert run(texts, "incremental")["num_skipped"] == len(texts)
    texts[1] = Document(page_content="Its lamp was lit in 1872.", metadata=texts[1].metadata)
    assert run(texts[:3], "incremental") == {
        "num_added": 1,
        "num_updated": 0,
        "num_skipped": 2,
        "num_deleted": 1,
    }
    app.assert_current()
    assert [chunk.text for chunk in app.hook.contents("lighthouse")][1] == "Its lamp was lit in 1872."
    assert run(texts[3:], "full")["num_deleted"] == 3
    app.assert_current()
    assert app.roots().keys() == SUBJECTS.keys() - {"lighthouse"}


async def test_awaited(app):
    ids = await app.store.aadd_documents(documents())
    app.assert_current()
    await app.store.adelete(ids[:1])
    app.assert_current()
    await app.store.aadd_texts(["Fog."], [{"source": "lighthouse", "start_index": 0}])
    app.assert_current()
    assert app.hook.contents("lighthouse")[0].text == "Fog."


def test_additions_in_one_event_loop_after_another(app):
    async def add(loop: int) -> None:
        some = [
            Document(
                page_content=f"{loop} {number}", metadata={"source": "fog", "start_index": 9 * loop + number}
            )
            for number in range(3)
        ]
        await asyncio.gather(*(app.store.aadd_documents([one]) for one in some))

    for loop in range(2):
        asyncio.run(add(loop))
    assert [chunk.text for chunk in app.hook.contents("fog")] == ["0 0", "0 1", "0 2", "1 0", "1 1", "1 2"]


async def test_additions_side_by_side(app):
    app.store.add_documents(documents())
    more = [
        Document(
            page_content=f"Ship {number} passed.", metadata={"source": name, "start_index": 1000 + number}
        )
        for number in range(4)
        for name in ("lighthouse", "bees")
    ]
    await asyncio.gather(*(app.store.aadd_documents([one]) for one in more))
    app.assert_current()
    assert len(app.hook.contents("lighthouse")) == len(SUBJECTS["lighthouse"]) + 4


def test_the_vectors_are_those_of_a_back_fill(app):
    everything = documents()
    app.store.add_documents(everything[:12])
    app.store.add_documents(everything[12:20])
    app.store.add_documents(everything[20:])
    kept = {name: point.vector for name, point in app.roots().items()}
    fingerprint = app.hook.merger.fingerprint
    app.hook.backfill(anew=True, calibrate=False)
    again = hook_over(app.plain, app.embeddings)
    if again.merger.fingerprint == fingerprint:
        for name, point in app.roots().items():
            np.testing.assert_allclose(point.vector, kept[name], atol=1e-5)


def test_growth_by_half_calibrates_again(app):
    app.store.add_documents(documents()[:10])
    seen = app.hook.inspect().calibration_vectors
    assert seen == 10
    app.store.add_documents(documents()[10:12])
    assert app.hook.inspect().calibration_vectors == 10
    app.store.add_documents(documents()[12:])
    assert app.hook.inspect().calibration_vectors == len(documents())
    app.assert_current()


def test_it_answers_like_the_store_inside(app):
    app.store.add_documents(documents())
    assert app.store.similarity_search(QUESTION, k=3) == app.plain.similarity_search(QUESTION, k=3)
    assert app.store.similarity_search_with_score(QUESTION, k=2) == app.plain.similarity_search_with_score(
        QUESTION, k=2
    )
    vector = app.embeddings.embed_query(QUESTION)
    assert app.store.similarity_search_by_vector(vector, k=2) == app.plain.similarity_search_by_vector(
        vector, k=2
    )
    assert app.store.similarity_search_with_relevance_scores(QUESTION, k=2) == (
        app.plain.similarity_search_with_relevance_scores(QUESTION, k=2)
    )
    assert app.store.max_marginal_relevance_search(QUESTION, k=2) == app.plain.max_marginal_relevance_search(
        QUESTION, k=2
    )
    assert app.store.embeddings is app.embeddings
    before = app.store.as_retriever(search_kwargs={"k": 2})
    assert isinstance(before, VectorStoreRetriever)
    assert sources(before.invoke(QUESTION)) == ["lighthouse"] * 2


async def test_it_answers_like_the_store_inside_when_awaited(app):
    app.store.add_documents(documents())
    assert await app.store.asimilarity_search(QUESTION, k=3) == app.plain.similarity_search(QUESTION, k=3)
    got = await app.store.as_retriever(search_kwargs={"k": 2}).ainvoke(QUESTION)
    assert sources(got) == ["lighthouse"] * 2


def test_a_retriever_of_merged_vectors(app):
    app.store.add_documents(documents())
    retriever = app.store.as_retriever(
        search_type="fused", search_kwargs={"k": 2, "filter": {"source": "bees"}}, tags=["mine"]
    )
    assert isinstance(retriever, MergerRetriever)
    assert (retriever.k, retriever.tags) == (2, ["mine"])
    assert sources(retriever.invoke(QUESTION)) == ["bees"] * 2


# Bad input


def test_a_failure_of_merging_keeps_what_was_added(app, monkeypatch):
    app.store.add_documents(documents())

    def failing(*_args: object, **_kwargs: object) -> None:
        raise StoreError("The connection was cut.")

    monkeypatch.setattr(type(app.hook), "refresh", failing)
    fog = Document(page_content="Fog hides the reef.", metadata={"source": "lighthouse", "start_index": 300})
    with pytest.raises(StoreError, match="cut") as caught:
        app.store.add_documents([fog])
    assert any("backfill" in note for note in caught.value.__notes__)
    monkeypatch.undo()
    assert len(app.plain.similarity_search("fog", k=100)) == len(documents()) + 1
    app.hook.backfill()
    app.assert_current()
    assert len(app.hook.contents("lighthouse")) == 4


def test_documents_without_a_place_are_an_error_that_names_the_fields(app):
    with pytest.raises((InputError, StoreError), match="order"):
        app.store.add_documents([Document(page_content="No place.", metadata={"source": "a"})])


async def test_chunks_without_a_document_are_an_error_unless_they_may_be_left_out(app):
    app.store.add_documents(documents())
    nobodys = [Document(page_content="No source."), documents()[0]]
    with pytest.raises(StoreError, match=r"1 of 2 points .* 'metadata.source'") as caught:
        app.store.add_documents(nobodys)
    assert any("has what was asked for" in note for note in caught.value.__notes__)
    with pytest.raises(StoreError, match="belong to no document"):
        await app.store.aadd_documents(nobodys[:1])
    before = app.roots()
    tolerant = MergerVectorStore(app.plain, app.hook, backfill={"skip_missing": True})
    tolerant.add_documents(nobodys[:1])
    await tolerant.aadd_texts(["No source."])
    assert app.roots().keys() == before.keys()


def test_the_options_of_a_back_fill_are_passed_on(app):
    fields = {"group_by": "metadata.book", "order_by": "metadata.page"}
    store = MergerVectorStore(app.plain, app.hook, backfill=fields)
    store.add_documents(
        [Document(page_content=f"Page {n}.", metadata={"book": "b", "page": n}) for n in (2, 1, 3)]
    )
    assert [chunk.text for chunk in app.hook.contents("b")] == ["Page 1.", "Page 2.", "Page 3."]


def test_other_things_are_refused(app):
    with pytest.raises(InputError, match="VectorStore"):
        MergerVectorStore("app", app.hook)
    with pytest.raises(InputError, match="QdrantStore"):
        MergerVectorStore(app.plain, app.plain)
    with pytest.raises(InputError, match="hook="):
        MergerVectorStore.from_texts(["a"], app.embeddings)
    with pytest.raises(AttributeError):
        _ = app.store.no_such_thing


def test_from_texts_wraps_a_store(app):
    made = MergerVectorStore.from_texts(
        ["One."],
        app.embeddings,
        [{"source": "numbers", "start_index": 0}],
        vectorstore=app.plain,
        hook=app.hook,
    )
    assert app.roots().keys() == {"numbers"}
    assert made.vectorstore is app.plain


def test_a_store_whose_collection_the_hook_does_not_have(app):
    store = MergerVectorStore(InMemoryVectorStore(app.embeddings), app.hook)
    with pytest.raises(StoreError):
        store.add_documents(documents())
