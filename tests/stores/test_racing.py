"""Writers that share documents without knowing of each other, as processes on one server do.

Each has a store of its own that takes the database for a server: no lock is held but around a single request,
so that the requests of different writers fall between each other anywhere.
"""

import os
import random
import re
import threading
import time

import numpy as np
import pytest

from merger_plugins import MeanMerger
from merger_plugins.chroma import ChromaBackend
from merger_plugins.errors import ConflictError, InputError, StoreUnavailableError
from merger_plugins.qdrant import QdrantBackend
from merger_plugins.stores import MergedStore, changes, commits, ingestion
from merger_plugins.stores.backend import Backend, Where
from tests.stores.foreign import private_chroma
from tests.stores.support import DIMENSION, assert_document, informed, stored, unit
from tests.strategies import NarrowCalibrated, NarrowMean, chunk_vectors

ROOTS = Where({"kind": "root"})
WRITERS = 16
APPENDS = 2_000 if os.environ.get("RACE_RUNS") == "full" else 400


class Shared(Backend):
    """What only this process can write, taken for what any process can; now and then a request is late."""

    exclusive = queued = False

    def __init__(self, client, collection="documents", seed=0):
        super().__init__(client, collection)
        self._random = random.Random(seed)

    def _late(self):
        if self._random.random() < 0.2:
            time.sleep(self._random.random() * 0.004)

    def fetch(self, *args, **options):
        self._late()
        return super().fetch(*args, **options)

    def write(self, *args, **options):
        self._late()
        super().write(*args, **options)

    def swap(self, *args, **options):
        self._late()
        return super().swap(*args, **options)

    def delete(self, *args, **options):
        self._late()
        super().delete(*args, **options)


class SharedBackend(Shared, QdrantBackend):
    """In Qdrant."""


class SharedChroma(Shared, ChromaBackend):
    """In Chroma, whose swap waits for the other writers of this process."""


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """However busy the machine is, nobody gives up."""
    monkeypatch.setattr(commits, "PATIENCE", 600.0)


@pytest.fixture
def nobody_dies(monkeypatch):
    """However long a writer is not given the processor, nobody takes it for dead."""
    monkeypatch.setattr(changes, "ABANDONED", 60.0)


def together(works):
    """Run these at once; raises what any of them raised."""
    errors = []
    start = threading.Barrier(len(works))

    def run(work):
        start.wait()
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again by the test
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error


def turns(client, conversation):
    points = [
        p for p in stored(client, "documents", "chunks").values() if p.payload["document_id"] == conversation
    ]
    return sorted(points, key=lambda p: p.payload["position"])


@pytest.mark.parametrize(("conversations", "contextual"), [(20, False), (1, False), (3, True)])
def test_many_writers_append_to_the_same_conversations(client, conversations, contextual):
    merger = informed(NarrowCalibrated)
    each = (APPENDS if conversations == 20 else APPENDS // 5) // WRITERS
    vectors = chunk_vectors(1, WRITERS * each, DIMENSION).reshape(WRITERS, each, DIMENSION)
    said = {}

    def writer(number):
        store = MergedStore(SharedBackend(client, seed=number), merger=merger, contextual=contextual)
        choose = random.Random(number)
        for turn in range(each):
            name = f"c{choose.randrange(conversations)}"
            said.setdefault(name, []).append((number, turn))
            store.append(name, vectors[number, turn], speaker=str(number), text=str(turn), mass=1 + turn % 5)

    together([lambda number=number: writer(number) for number in range(WRITERS)])
    assert_said(QdrantBackend(client, "documents"), merger, said, vectors)


@pytest.mark.parametrize("place", ["edge", "chroma-memory", "chroma-folder", "chroma-shared"])
def test_many_writers_in_other_places(tmp_path, place):
    """On the engine of Qdrant's server; in Chroma as threads of one process, and as if of several."""
    database = None
    if place == "edge":
        database = pytest.importorskip("tests.stores.edge").EdgeClient(tmp_path)
    elif place != "chroma-folder":
        database = private_chroma()

    def opened(seed):
        if place == "edge":
            return SharedBackend(database, seed=seed)
        if place == "chroma-shared":
            return SharedChroma(database, seed=seed)
        return ChromaBackend(tmp_path / "db" if database is None else database, "documents")

    merger = informed(NarrowCalibrated)
    each = (APPENDS if os.environ.get("RACE_RUNS") == "full" else APPENDS // 4) // WRITERS
    vectors = chunk_vectors(1, WRITERS * each, DIMENSION).reshape(WRITERS, each, DIMENSION)
    said = {}

    def writer(number):
        with MergedStore(opened(number), merger=merger) as store:
            choose = random.Random(number)
            for turn in range(each):
                name = f"c{choose.randrange(20 if each > 20 else 4)}"
                said.setdefault(name, []).append((number, turn))
                text, mass = str(turn), 1 + turn % 5
                store.append(name, vectors[number, turn], speaker=str(number), text=text, mass=mass)

    together([lambda number=number: writer(number) for number in range(WRITERS)])
    backend = opened(0)
    assert_said(backend, merger, said, vectors)
    backend.close()
    if database is not None:
        database.close()


def assert_said(backend, merger, said, vectors):
    """Every turn is there once, in the order of each writer, and the roots are those of a rebuild."""
    assert not list(MergedStore(backend, merger=merger).verify())
    chunks = stored(backend, "", "chunks").values()
    assert len(chunks) == sum(map(len, said.values()))
    for name, expected in said.items():
        points = [point for point in chunks if point.payload["document_id"] == name]
        points.sort(key=lambda point: point.payload["position"])
        found = [(int(p.payload["speaker"]), int(p.payload["page_content"])) for p in points]
        assert sorted(found) == sorted(expected)
        for number in range(WRITERS):
            own = [turn for writer, turn in found if writer == number]
            assert own == sorted(own)
        order = np.stack([vectors[number, turn] for number, turn in found])
        assert_document(backend, merger, name, order, [1 + turn % 5 for _, turn in found])


def test_the_same_turn_from_many_writers_is_stored_once(client):
    vectors = chunk_vectors(1, 12, DIMENSION)

    def writer(number):
        store = MergedStore(SharedBackend(client, seed=number), merger=MeanMerger())
        for place, vector in enumerate(vectors):
            store.append("chat", vector, turn_id=str(place))

    together([lambda number=number: writer(number) for number in range(8)])
    assert_document(client, MeanMerger(), "chat", vectors)


def test_turns_that_say_the_same_are_all_stored(client, nobody_dies):
    vector = chunk_vectors(1, 1, DIMENSION)[0]

    def writer(number):
        store = MergedStore(SharedBackend(client, seed=number), merger=MeanMerger())
        for _ in range(4):
            store.append("chat", vector)

    together([lambda number=number: writer(number) for number in range(6)])
    assert len(turns(client, "chat")) == 24


def test_ingestions_of_one_document_end_in_one_of_them(client):
    versions = [chunk_vectors(seed, 8 + 3 * seed, DIMENSION) for seed in range(6)]
    merger = NarrowMean()

    def writer(number):
        store = MergedStore(SharedBackend(client, seed=number), merger=merger)
        store.ingest("a", vectors=versions[number])

    for _ in range(4):
        together([lambda number=number: writer(number) for number in range(len(versions))])
        store = MergedStore(QdrantBackend(client, "documents"), merger=merger)
        assert not list(store.verify())
        length = len(turns(client, "a"))
        assert_document(client, merger, "a", next(v for v in versions if len(v) == length))


def test_everything_at_once_leaves_a_sound_store(client):
    merger = NarrowMean()
    vectors = chunk_vectors(3, 200, DIMENSION)

    def writer(number):
        store = MergedStore(SharedBackend(client, seed=number), merger=merger)
        choose = random.Random(number)
        for _ in range(12):
            name = f"d{choose.randrange(2)}"
            act = choose.choice(["append", "append", "append", "ingest", "delete", "replace", "remove"])
            try:
                if act == "append":
                    store.append(name, vectors[choose.randrange(200)])
                elif act == "ingest":
                    store.ingest(name, vectors=vectors[: choose.randrange(1, 30)])
                elif act == "delete":
                    store.delete(name)
                elif act == "replace":
                    store.replace(name, choose.randrange(8), vectors[choose.randrange(200)])
                else:
                    store.remove(name, choose.randrange(8))
            except ConflictError:
                pass  # it is being ingested
            except InputError as error:
                if not re.search("no document|position", str(error)):  # which the others removed
                    raise

    together([lambda number=number: writer(number) for number in range(8)])
    store = MergedStore(QdrantBackend(client, "documents"), merger=merger)
    assert not list(store.verify())


def test_a_reader_sees_the_old_root_or_the_new_one(client):
    merger = NarrowMean()
    vectors = chunk_vectors(5, 40, DIMENSION)
    allowed = []
    rolling = merger.rolling()
    for vector in vectors:
        rolling.append(vector)
        allowed.append(rolling.vector)
    writer = MergedStore(SharedBackend(client), merger=merger)
    writer.append("chat", vectors[0])
    seen = []
    done = threading.Event()

    def read():
        backend = QdrantBackend(client, "documents")
        backend.layout()
        while not done.is_set():
            time.sleep(0.001)
            (root,) = [scored.point for scored in backend.nearest("merged", vectors[0], 1, ROOTS)]
            seen.append(backend.fetch("merged", [root.id], vectors=True)[root.id].vector)

    def write():
        for vector in vectors[1:]:
            writer.append("chat", vector)
        done.set()

    together([read, write])
    distances = [min(np.abs(root - one).max() for one in allowed) for root in seen]
    assert len(seen) > 20
    assert max(distances) < 1e-5


def test_a_writer_that_is_always_beaten_gives_up(client, monkeypatch):
    monkeypatch.setattr(commits, "PATIENCE", 0.2)
    vectors = chunk_vectors(1, 3, DIMENSION)
    store = MergedStore(SharedBackend(client), merger=MeanMerger())
    store.append("chat", vectors[0])

    class Beaten(SharedBackend):
        def swap(self, swaps, **options):
            if swaps and swaps[0].point.payload.get("pending"):
                store.append("chat", vectors[1])
            return super().swap(swaps, **options)

    with pytest.raises(ConflictError, match="again and again"):
        MergedStore(Beaten(client), merger=MeanMerger()).append("chat", vectors[2])
    assert not list(store.verify())


def test_a_writer_that_fell_behind_undoes_nothing(client):
    """It stops between its claim and its writes, until the document has been completed, changed and cut."""
    merger = NarrowMean()
    vectors = chunk_vectors(1, 30, DIMENSION)
    other = MergedStore(SharedBackend(client), merger=merger)
    other.ingest("a", vectors=vectors[:20])

    class Late(SharedBackend):
        waiting = True

        def write(self, shelf, points, **options):
            if shelf == "chunks" and self.waiting:
                self.waiting = False
                meanwhile()
            super().write(shelf, points, **options)

    def cut():
        other.append("a", vectors[21])
        other.ingest("a", vectors=vectors[:7])

    def delete():
        assert other.delete("a")

    def remove():
        other.remove("a", 20)

    def grow():
        for vector in vectors[21:]:
            other.append("a", vector)

    def replace():
        other.replace("a", 20, vectors[25])

    for meanwhile, expected in (
        (replace, [*vectors[:20], vectors[25]]),
        (cut, vectors[:7]),
        (delete, None),
        (remove, vectors[:20]),
        (grow, vectors),
    ):
        other.ingest("a", vectors=vectors[:20])
        MergedStore(Late(client), merger=merger).append("a", vectors[20])
        assert not list(other.verify()), meanwhile
        if expected is None:
            assert not turns(client, "a")
        else:
            points = turns(client, "a")
            found = np.stack([p.vector for p in points])
            np.testing.assert_allclose(found, unit(np.stack(expected)), atol=1e-5)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("act", ["append", "replace", "remove"])
@pytest.mark.parametrize("cut", ["ingest", "delete"])
def test_points_that_others_removed_while_they_were_looked_for_are_not_missed(client, act, cut, begun):
    """Between reading the root and the points that it leads to; also of a change left behind."""
    merger = NarrowMean()
    vectors = chunk_vectors(1, 40, DIMENSION)
    other = MergedStore(SharedBackend(client), merger=merger)
    other.ingest("a", vectors=vectors[:25])

    class Dying(SharedBackend):
        def write(self, shelf, points, **options):
            raise StoreUnavailableError("gone")

    if begun:
        with pytest.raises(StoreUnavailableError):
            MergedStore(Dying(client), merger=merger).append("a", vectors[25])

    class Slow(SharedBackend):
        waiting = True

        def fetch(self, shelf, ids, **options):
            if shelf == "chunks" and options.get("vectors") and self.waiting:
                self.waiting = False
                other.ingest("a", vectors=vectors[30:33]) if cut == "ingest" else other.delete("a")
            return super().fetch(shelf, ids, **options)

    slow = MergedStore(Slow(client), merger=merger)
    if act == "append":
        slow.append("a", vectors[39])
        left = np.concatenate([vectors[30:33], vectors[39:]]) if cut == "ingest" else vectors[39:]
        assert_document(client, merger, "a", left)
    else:
        with pytest.raises(InputError, match=r"no document 'a'|position 20 does not exist"):
            slow.remove("a", 20) if act == "remove" else slow.replace("a", 20, vectors[39])
    assert not list(other.verify())


@pytest.mark.parametrize("before", [True, False])
def test_an_ingestion_that_was_taken_over_and_dies_undoes_nothing(client, monkeypatch, before):
    monkeypatch.setattr(ingestion, "ABANDONED", 0.05)
    merger = NarrowMean()
    old, new = chunk_vectors(1, 12, DIMENSION), chunk_vectors(2, 12, DIMENSION)
    half = np.concatenate([old[:6], chunk_vectors(3, 6, DIMENSION)])
    other = MergedStore(SharedBackend(client), merger=merger)
    if before:
        other.ingest("a", vectors=old)

    class Late(SharedBackend):
        def write(self, shelf, points, **options):
            if shelf == "chunks":
                other.ingest("a", vectors=half)
                super().write(shelf, points, **options)
                raise StoreUnavailableError("gone")
            super().write(shelf, points, **options)

    with pytest.raises(StoreUnavailableError):
        MergedStore(Late(client), merger=merger).ingest("a", vectors=new)
    assert not list(other.verify())
    assert_document(client, merger, "a", half)


def test_a_turn_that_another_writer_is_saying_at_the_moment_is_said_as_well(client, nobody_dies):
    vector = chunk_vectors(1, 1, DIMENSION)[0]
    other = MergedStore(SharedBackend(client), merger=MeanMerger())
    other.append("chat", vector)
    begun = threading.Event()

    class Slow(SharedBackend):
        def write(self, shelf, points, **options):
            begun.set()
            time.sleep(0.3)
            super().write(shelf, points, **options)

    def second():
        begun.wait()
        assert other.append("chat", vector).written

    together([lambda: MergedStore(Slow(client), merger=MeanMerger()).append("chat", vector), second])
    assert len(turns(client, "chat")) == 3


def test_a_turn_that_another_process_left_behind_is_not_said_twice(client):
    before, vector = chunk_vectors(1, 2, DIMENSION)

    class Dying(SharedBackend):
        def write(self, shelf, points, **options):
            raise StoreUnavailableError("gone")

    store = MergedStore(SharedBackend(client), merger=MeanMerger())
    store.append("chat", before)
    with pytest.raises(StoreUnavailableError):
        MergedStore(Dying(client), merger=MeanMerger()).append("chat", vector)
    assert store.append("chat", vector).chunks == 2
    assert len(turns(client, "chat")) == 2
    assert not list(store.verify())
