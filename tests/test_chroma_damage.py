"""Chroma's own index, torn by a kill or a full disk in the middle of a save."""

import shutil
from contextlib import closing

import chromadb
import numpy as np
import pytest

from merger_plugins.chroma import ChromaBackend, ChromaStore
from merger_plugins.chroma.damage import ASIDE, indexes_of, torn
from merger_plugins.errors import StoreError
from merger_plugins.stores.backend import Where
from tests.stores.support import DIMENSION, assert_document, documents
from tests.strategies import NarrowMean

GIVEN = documents(7, 40, 25, 3)
INDEX = {"hnsw": {"space": "cosine", "sync_threshold": 10, "batch_size": 5}}
FILES = ["data_level0.bin", "header.bin", "index_metadata.pickle", "length.bin", "link_lists.bin"]
HARM = {
    "half": lambda data: data[: len(data) // 2],
    "zeros": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "empty": lambda data: data[:0],
    "gone": None,
}


def make(folder, given=GIVEN):
    """A store whose indexes are saved every ten points, as those of large stores are every thousand."""
    with closing(chromadb.PersistentClient(str(folder))) as client:
        for name, metadata in (("documents", None), ("documents__merged", {"merger:dimension": DIMENSION})):
            client.get_or_create_collection(
                name, configuration=INDEX, metadata=metadata, embedding_function=None
            )
    with ChromaStore(folder, merger=NarrowMean()) as store:
        for name, vectors in given.items():
            for start in range(0, len(vectors), 10):
                store.extend(name, vectors=vectors[start : start + 10])


def index_of(folder, collection):
    with closing(chromadb.PersistentClient(str(folder))) as client:
        found = str(client.get_collection(collection, embedding_function=None).id)
    (index,) = indexes_of(folder, [found])
    return index


def nearest(store, shelf, vector, match):
    """The payload of the nearest point, past the index, which is approximate and may overlook one."""
    (found,) = store._backend.nearest(shelf, vector, 1, Where(match), exact=True)
    return found.point.payload


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound") / "db"
    make(folder)
    return folder, {name: index_of(folder, name).name for name in ("documents", "documents__merged")}


@pytest.fixture
def folder(sound, tmp_path):
    return shutil.copytree(sound[0], tmp_path / "db")


def test_sound_indexes_are_not_called_torn(sound, folder):
    for name in sound[1].values():
        assert {file.name for file in (folder / name).iterdir()} == set(FILES)
    assert not torn(folder)
    with ChromaStore(folder, merger=NarrowMean()) as store:
        assert not list(store.verify())
        assert not store.repair()
        for name, vectors in GIVEN.items():
            assert_document(store._backend, NarrowMean(), name, vectors)
    assert not list(folder.glob(f"*{ASIDE}*"))


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("collection", ["documents", "documents__merged"])
def test_damage_is_told_and_what_can_be_is_made_again(sound, folder, collection, file, harm):
    path = folder / sound[1][collection] / file
    if HARM[harm] is None:
        path.unlink()
    else:
        path.write_bytes(HARM[harm](path.read_bytes()))
    with ChromaStore(folder, merger=NarrowMean()) as store:
        said = ""
        try:
            found = len(list(store.verify()))
        except StoreError as error:
            found, said = 0, str(error)
        assert found or not said or ("damaged" in said and "repair()" in said)
        left = store.repair()
        if collection == "documents__merged":
            assert not left
        else:
            assert all((p.kind, p.level) == ("missing", 0) for p in left)
        assert found or said or not left
        for name in {problem.document_id for problem in left}:
            store.ingest(name, vectors=GIVEN[name])
        assert not list(store.verify())
        for name, vectors in GIVEN.items():
            assert_document(store._backend, NarrowMean(), name, vectors)
            assert nearest(store, "chunks", vectors[0], {})["position"] == 0
            rolling = NarrowMean().rolling()
            rolling.extend(vectors)
            assert nearest(store, "merged", rolling.vector, {"kind": "root"})["document_id"] == name
            assert len(store.search(vectors[0], 1)) == len(store.search(vectors[0], 1, "document")) == 1


def test_texts_and_metadata_outlive_an_index(sound, folder):
    with ChromaStore(folder, merger=NarrowMean()) as store:
        store.ingest("text", vectors=GIVEN["d1"], chunks=[f"chunk {i}" for i in range(25)], metadata={"n": 1})
    (folder / sound[1]["documents"] / "header.bin").write_bytes(b"")
    with ChromaStore(folder, merger=NarrowMean()) as store:
        assert any(problem.document_id == "text" for problem in store.repair())
        points = list(store._backend.scan("chunks", Where({"document_id": "text"})))
        assert {p.payload["page_content"] for p in points} == {f"chunk {i}" for i in range(25)}
        assert {p.payload["metadata"]["n"] for p in points} == {1}
        with pytest.raises(StoreError, match="ingest the document again"):
            store.replace("text", 0, GIVEN["d1"][0])
        texts = [f"chunk {i}" for i in range(25)]
        store.ingest("text", vectors=GIVEN["d1"], chunks=texts, metadata={"n": 1})
        assert not list(store.verify("text"))
        assert_document(store._backend, NarrowMean(), "text", GIVEN["d1"])


@pytest.mark.parametrize("through", ["client", "another store"])
def test_only_a_store_that_is_alone_in_the_folder_begins_an_index_anew(sound, folder, through):
    (folder / sound[1]["documents"] / "index_metadata.pickle").write_bytes(b"x")
    client = chromadb.PersistentClient(str(folder))
    store = ChromaStore(client if through == "client" else folder, merger=NarrowMean())
    with pytest.raises(StoreError, match="close the other clients and stores"):
        store.repair()
    store.close()
    client.close()
    with ChromaStore(folder, merger=NarrowMean()) as store:
        assert {problem.kind for problem in store.repair()} == {"missing"}


def test_lost_vectors_are_read_as_none(sound, folder):
    path = folder / sound[1]["documents"] / "index_metadata.pickle"
    path.unlink()
    with closing(ChromaBackend(folder, "documents")) as backend:
        points = list(backend.scan("chunks", Where(), vectors=True))
        lost = [point.id for point in points if point.vector is None]
        assert 0 < len(lost) < len(points) == sum(map(len, GIVEN.values()))
        backend.write("chunks", [point for point in points if point.vector is not None])
        found = backend.fetch("chunks", lost, vectors=True)
        assert found.keys() == set(lost)
        assert all(found[point_id].vector is None for point_id in lost)
        hits = backend.nearest("chunks", np.ones(DIMENSION), 500, Where())
        assert {hit.point.id for hit in hits}.isdisjoint(lost)
