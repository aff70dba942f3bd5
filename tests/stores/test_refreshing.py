"""Documents of a back-filled collection that are merged again by themselves."""

import threading
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from merger_plugins import MeanMerger
from merger_plugins.errors import ConflictError, InputError, StoreError
from merger_plugins.qdrant import QdrantBackend, QdrantStore
from merger_plugins.stores import MergedStore
from merger_plugins.stores.backend import Where
from tests.stores import foreign
from tests.strategies import Array


def made(form: str = "langchain", **options: Any) -> tuple[QdrantClient, QdrantStore, dict[str, Array]]:
    client, texts = QdrantClient(":memory:"), foreign.corpus()
    foreign.create(client, form)
    foreign.put(client, texts, form)
    store = QdrantStore(client, "app", merger=MeanMerger())
    store.backfill(**foreign.OPTIONS[form], **options)
    return client, store, texts


def merged(store: MergedStore) -> dict[tuple[str, str, int], Array]:
    return {
        (p.payload["document_id"], p.payload["kind"], p.payload["position"]): p.vector
        for p in store._backend.scan("merged", Where(), vectors=True)
        if p.payload["kind"] != "meta" and p.vector is not None and "document_id" in p.payload
    }


def assert_as_from_scratch(client: QdrantClient, store: MergedStore, form: str) -> None:
    found = merged(store)
    client.delete_collection("app__merged")
    QdrantStore(client, "app", merger=MeanMerger()).backfill(**foreign.OPTIONS[form])
    fresh = merged(QdrantStore(client, "app", merger=MeanMerger()))
    assert found.keys() == fresh.keys()
    for key, vector in fresh.items():
        np.testing.assert_allclose(found[key], vector, atol=1e-5)


def name_in(form: str, name: str) -> str:
    return name if form != "by_hand" else name[1:]


@pytest.mark.parametrize("form", sorted(foreign.FORMS))
def test_documents_that_grew_and_shrank(form):
    client, store, texts = made(form)
    grown = np.concatenate([texts["d3"], texts["d5"][:7]])
    foreign.put(client, {"d3": grown}, form)
    client.delete("app", [foreign.point_id("d6", place) for place in range(3, 35)])
    done = store.refresh([name_in(form, "d3"), name_in(form, "d6")])
    assert (done.merged, done.documents) == (2, 2)
    assert_as_from_scratch(client, store, form)


def test_others_are_not_read():
    _, store, _ = made()
    seen: list[str] = []
    scan = QdrantBackend.scan

    def noted(self, shelf, where, **kwargs):
        for point in scan(self, shelf, where, **kwargs):
            if shelf == "chunks":
                seen.append(point.payload["metadata"]["source"])
            yield point

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QdrantBackend, "scan", noted)
        assert store.refresh(["d2"]).merged == 0
    assert set(seen) == {"d2"}


def test_documents_that_are_gone_lose_their_vectors():
    client, store, texts = made()
    client.delete("app", [foreign.point_id("d7", place) for place in range(len(texts["d7"]))])
    done = store.refresh(["d7"])
    assert (done.documents, done.removed) == (0, 1)
    assert not [key for key in merged(store) if key[0] == "d7"]
    assert_as_from_scratch(client, store, "langchain")
    assert store.refresh(["d7", "never there"]).removed == 0


def test_searches_see_the_change():
    client, store, _ = made()
    vector = np.zeros(foreign.DIMENSION, np.float32)
    vector[0] = 1
    foreign.put(client, {"d9": np.stack([vector] * 3)})
    store.refresh(["d9"])
    assert store.search(vector, 1, "document")[0].document_id == "d9"
    client.delete("app", [foreign.point_id("d9", place) for place in range(3)])
    store.refresh(["d9"])
    assert store.search(vector, 1, "document")[0].document_id != "d9"


def test_without_a_back_fill_everything_is_merged():
    client, texts = QdrantClient(":memory:"), foreign.corpus()
    foreign.create(client)
    foreign.put(client, texts)
    store = QdrantStore(client, "app", merger=MeanMerger())
    assert store.refresh(["d0"]).merged == len(texts)
    assert_as_from_scratch(client, store, "langchain")


def test_names_inside_json_text_are_found_all_the_same():
    """Which the database cannot filter by: everything is read."""
    client, texts = QdrantClient(":memory:"), foreign.corpus()
    foreign.create(client, "by_hand")

    def hidden(payload, name, place):
        return {"node": f'{{"book": "{name}"}}', "at": place, "text": payload["text"]}

    foreign.put(client, texts, "by_hand", change=hidden)
    store = QdrantStore(client, "app", merger=MeanMerger())
    store.backfill(group_by="node.book", order_by="at")
    foreign.put(client, {"d3": texts["d5"][:12]}, "by_hand", change=hidden)
    before = merged(store)
    store.refresh(["d3"])
    after = merged(store)
    assert {key for key in after if key[0] != "d3"} == {key for key in before if key[0] != "d3"}
    assert after["d3", "root", 0].tolist() != before["d3", "root", 0].tolist()
    assert len(store.contents("d3")) == 12
    foreign.put(client, {"d99": texts["d5"][:12]}, "by_hand", change=hidden)
    assert store.refresh(["d99"]).merged == 1
    assert len(store.contents("d99")) == 12


def test_the_documents_of_chunks():
    _, store, _ = made()
    ids = [foreign.point_id(name, 0) for name in ("d3", "d7")]
    assert store.documents_of([*ids, ids[0], "00000000-0000-0000-0000-000000000000"]) == ["d3", "d7"]
    assert store.documents_of([]) == []
    assert QdrantStore(":memory:", merger=MeanMerger()).documents_of(ids) == []


def test_threads_wait_for_one_another():
    client, store, texts = made()
    errors: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for _ in range(3):
                store.refresh([name])
        except BaseException as error:  # noqa: BLE001 - told below
            errors.append(error)

    for name, vectors in texts.items():
        foreign.put(client, {name: vectors[::-1]})
    threads = [threading.Thread(target=work, args=[name]) for name in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert_as_from_scratch(client, store, "langchain")


def test_interrupted_it_is_completed_by_a_repeat(monkeypatch):
    client, store, texts = made()
    foreign.put(client, {"d7": texts["d7"][::-1], "d6": texts["d6"][:13]})
    write = QdrantBackend.write

    def failing(self, shelf, points, **kwargs):
        if any(point.payload.get("kind") == "section" for point in points):
            write(self, shelf, points[: len(points) // 2], **kwargs)
            raise StoreError("The connection was cut.")
        return write(self, shelf, points, **kwargs)

    monkeypatch.setattr(QdrantBackend, "write", failing)
    with pytest.raises(StoreError, match="cut"):
        store.refresh(["d7", "d6"])
    foreign.put(client, {"d7": texts["d7"]})
    monkeypatch.undo()
    store.refresh(["d7", "d6"])
    assert_as_from_scratch(client, store, "langchain")


def test_a_collection_of_our_own_needs_none():
    store = QdrantStore(":memory:", merger=MeanMerger())
    store.ingest("a", vectors=foreign.corpus()["d5"])
    with pytest.raises(StoreError, match="by this package"):
        store.refresh(["a"])


def test_bad_names_and_collections():
    _, store, _ = made()
    with pytest.raises(InputError):
        store.refresh([""])
    with pytest.raises(StoreError, match="no collection"):
        QdrantStore(":memory:", merger=MeanMerger()).refresh(["a"])


def test_it_gives_up_on_a_back_fill_that_never_ends(monkeypatch):
    _, store, _ = made()

    def busy(*_args: object) -> None:
        raise ConflictError("Another back-fill is at work.")

    monkeypatch.setattr("merger_plugins.stores.keeping.backfill", busy)
    monkeypatch.setattr("merger_plugins.stores.keeping.PATIENCE", 0.2)
    with pytest.raises(ConflictError):
        store.refresh(["d0"])


def test_numbers_as_names():
    client, store, texts = made("by_hand")
    foreign.put(client, {"d3": texts["d5"][:11]}, "by_hand")
    done = store.refresh(["3"])
    assert (done.merged, done.removed) == (1, 0)
    assert_as_from_scratch(client, store, "by_hand")


def test_a_collection_by_dot_product_of_unit_vectors():
    client, texts = QdrantClient(":memory:"), foreign.corpus()
    unit = {name: vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for name, vectors in texts.items()}
    foreign.create(client, distance=models.Distance.DOT)
    foreign.put(client, unit)
    store = QdrantStore(client, "app", merger=MeanMerger())
    store.backfill()
    foreign.put(client, {"d4": unit["d6"][:9]})
    assert store.refresh(["d4"]).merged == 1
    assert len(store.contents("d4")) == len(texts["d4"]) == 11
