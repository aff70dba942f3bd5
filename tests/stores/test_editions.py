"""Merged vectors that are replaced while the store is in use: nothing is mixed, lost or kept waiting."""

import itertools
import threading

import numpy as np
import pytest
from qdrant_client import QdrantClient

from merger_plugins import MeanMerger
from merger_plugins.errors import ConflictError, FingerprintError, InputError, StoreUnavailableError
from merger_plugins.qdrant import QdrantBackend
from merger_plugins.stores import MergedStore, state
from merger_plugins.stores.backend import Where
from merger_plugins.stores.records import META_ID
from merger_plugins.stores.settings import Settings
from tests.stores.support import (
    DIMENSION,
    CountingBackend,
    FailingBackend,
    assert_document,
    documents,
    informed,
    merged,
    stored,
)
from tests.stores.test_racing import SharedBackend, together
from tests.strategies import NarrowMean, chunk_vectors

GIVEN = documents(7, 3, 12, 25, 104)
CHAT = chunk_vectors(70, 14, DIMENSION)
QUERIES = chunk_vectors(71, 3, DIMENSION)
LEVELS = ("section", "document", "fused", "contextual")


class WatchedBackend(QdrantBackend):
    """Calls somebody after every request that changes the store, outside of which nothing happens."""

    exclusive = queued = False

    def __init__(self, client, collection="documents"):
        super().__init__(client, collection)
        self.watch = lambda: None

    def write(self, *args, **options):
        super().write(*args, **options)
        self.watch()

    def swap(self, *args, **options):
        done = super().swap(*args, **options)
        self.watch()
        return done

    def delete(self, *args, **options):
        super().delete(*args, **options)
        self.watch()


def fill(client, *, merger=None, contextual=False, backend=CountingBackend, collection="documents"):
    store = MergedStore(backend(client, collection), merger=merger or informed(), contextual=contextual)
    for document_id, vectors in GIVEN.items():
        store.ingest(document_id, vectors=vectors)
    for vector in CHAT:
        store.append("chat", vector)
    return store


def another(client, merger=None, backend=CountingBackend):
    return MergedStore(backend(client), merger=merger or informed())


def levels(contextual):
    return LEVELS if contextual else LEVELS[:-1]


def answers(store, level):
    """Places and scores of what a few queries find."""
    return [
        [(hit.document_id, hit.position, hit.stop, hit.score) for hit in store.search(query, 6, level)]
        for query in QUERIES
    ]


def same(first, second):
    return all(
        [hit[:3] for hit in one] == [hit[:3] for hit in other]
        and np.allclose([hit[3] for hit in one], [hit[3] for hit in other], atol=1e-5)
        for one, other in zip(first, second, strict=True)
    )


def settings(client):
    return Settings.of(stored(client, "documents", "merged")[META_ID])


def assert_clean(client, merger, given=GIVEN, chat=CHAT):
    """One edition, that of this merger, and nothing else."""
    now = settings(client)
    assert now.fingerprint == merger.fingerprint
    assert (now.rebuilding, now.switching, now.leftovers, now.context) == (None, False, False, None)
    for document_id, vectors in given.items():
        assert_document(client, merger, document_id, vectors)
    assert_document(client, merger, "chat", chat)
    points = merged(client).values()
    assert {point.payload["document_id"] for point in points} == {*given, "chat"}
    kinds = {point.payload["kind"] for point in stored(client, "documents", "merged").values()}
    assert kinds <= {"root", "section", "settings", "calibration"}
    assert list(MergedStore(QdrantBackend(client, "documents"), merger=merger).verify()) == []


@pytest.mark.parametrize("contextual", [False, True])
def test_searches_during_a_calibration_find_the_old_or_the_new_vectors_and_no_mixture(client, contextual):
    fill(client, contextual=contextual)
    stale = another(client)
    before = {level: answers(stale, level) for level in levels(contextual)}
    seen = []
    backend = WatchedBackend(client)
    store = MergedStore(backend, merger=informed())
    stages = itertools.count()

    def watch():
        fresh = another(client)
        stage = next(stages)
        for one in (stale, fresh, store):
            seen.extend((stage, level, answers(one, level)) for level in levels(contextual))

    backend.watch = watch
    calibrated = store.calibrate()
    backend.watch = lambda: None
    assert_clean(client, calibrated)
    after = {level: answers(store, level) for level in levels(contextual)}
    whole = QdrantClient(":memory:")
    fill(whole, merger=calibrated, contextual=contextual)
    for level in levels(contextual):
        assert same(after[level], answers(another(whole, calibrated), level))
        assert not same(before[level], after[level])
    old, new, raw = set(), set(), set()
    for stage, level, found in seen:
        if same(found, before[level]):
            old.add((stage, level))
        elif same(found, after[level]):
            new.add((stage, level))
        else:  # contextual vectors are replaced one by one: raw ones are compared meanwhile
            assert contextual, (stage, level)
            assert level in ("fused", "contextual"), (stage, level)
            raw.add((stage, level))
    assert max(old)[0] <= min(new)[0]
    assert bool(raw) == contextual
    for level in levels(contextual):
        assert {found for found in old if found[1] == level}
        assert {found for found in new if found[1] == level}
    whole.close()
    if contextual:
        raws = [found for stage, level, found in seen if level == "contextual" and (stage, level) in raw]
        assert all(same(found, answers(store, "chunk")) for found in raws)


@pytest.mark.parametrize("contextual", [False, True])
def test_what_is_written_during_a_calibration_is_in_the_new_edition(client, contextual):
    """Between any two changes that a calibration makes, somebody else appends, ingests, edits and deletes."""
    fill(client, contextual=contextual)
    backend = WatchedBackend(client)
    writer = another(client)
    given = {name: vectors.copy() for name, vectors in GIVEN.items()}
    chat = list(CHAT)
    added = iter(chunk_vectors(72, 1_000, DIMENSION))
    stages = itertools.count()

    def act():
        stage = next(stages)
        if settings(client).switching or stage > 60:
            return
        chat.append(next(added))
        writer.append("chat", chat[-1])
        if stage % 2:
            name = f"new {stage}"
            given[name] = np.stack([next(added) for _ in range(1 + stage % 13)])
            writer.ingest(name, vectors=given[name])
        if stage % 5 == 4:
            name = max(given)
            assert writer.delete(name)
            del given[name]
        given["d2"] = given["d2"][: 5 + stage % 20]
        writer.ingest("d2", vectors=given["d2"])
        given["d1"][stage % 12] = next(added)
        writer.replace("d1", stage % 12, given["d1"][stage % 12])

    backend.watch = act
    calibrated = MergedStore(backend, merger=informed()).calibrate()
    assert next(stages) > 5
    assert_clean(client, calibrated, given, np.stack(chat))
    if contextual:
        points = stored(client, "documents", "chunks").values()
        assert {point.payload["fingerprint"] for point in points} == {calibrated.fingerprint}


@pytest.mark.parametrize("backend", [CountingBackend, SharedBackend])
@pytest.mark.parametrize("contextual", [False, True])
def test_threads_write_and_search_while_the_store_is_calibrated_again_and_again(client, backend, contextual):
    store = fill(client, contextual=contextual, backend=backend)
    rows = chunk_vectors(73, 120, DIMENSION).reshape(4, 30, DIMENSION)
    done = threading.Event()

    def write(number):
        own = another(client, backend=backend)
        for turn, vector in enumerate(rows[number]):
            own.append(f"c{number}", vector)
            if not turn % 6:
                own.ingest(f"i{number}-{turn}", vectors=rows[number][: turn + 2])

    def search():
        own = another(client, backend=backend)
        while not done.is_set():
            for level in ("document", "section", "fused"):
                assert own.search(QUERIES[0], 3, level)

    def calibrate():
        try:
            for _ in range(3):
                store.calibrate()
        finally:
            done.set()

    together([*(lambda number=number: write(number) for number in range(4)), search, calibrate])
    calibrated = store.calibrate()
    given = GIVEN | {f"c{number}": rows[number] for number in range(4)}
    given |= {f"i{n}-{t}": rows[n][: t + 2] for n in range(4) for t in range(0, 30, 6)}
    chat = np.concatenate([CHAT])
    for name in given:
        points = [
            p for p in stored(client, "documents", "chunks").values() if p.payload["document_id"] == name
        ]
        assert len(points) == len(given[name])
    assert_clean(client, calibrated, given, chat)


@pytest.mark.parametrize("contextual", [False, True])
@pytest.mark.parametrize("finish", ["calibrate", "rebuild"])
def test_wherever_a_calibration_is_interrupted_a_repeat_completes_it(contextual, finish):
    counts = iter([*range(12), *range(12, 400, 7)])
    for changes in counts:
        client = QdrantClient(":memory:")
        store = fill(client, contextual=contextual, backend=FailingBackend)
        store._backend.changes_left = changes
        try:
            store.calibrate()
        except StoreUnavailableError:
            finished = False
        else:
            finished = True
        reader = another(client)
        for level in levels(contextual):
            assert all(answers(reader, level))
        switched = settings(client).fingerprint != informed().fingerprint
        if not settings(client).switching:
            reader.append("chat", CHAT[0])
            chat = np.concatenate([CHAT, CHAT[:1]])
            # contextual vectors that have not been replaced, and the document that was being done
            assert all(p.level == 0 or p.kind == "unfinished" for p in reader.verify() if contextual)
            assert contextual or list(reader.verify()) == []
        else:
            chat = CHAT
        getattr(reader, finish)()
        assert (finish == "calibrate" or switched) == bool(reader.inspect().calibration_vectors)
        assert_clean(client, reader.merger, chat=chat)
        client.close()
        if finished:
            break
    assert finished


def test_a_writer_waits_for_the_switch_and_says_what_to_do_when_it_does_not_come(client, monkeypatch):
    fill(client)
    writer = another(client)
    backend = WatchedBackend(client)

    def fail():
        if settings(client).switching:
            raise StoreUnavailableError("gone")

    backend.watch = fail
    with pytest.raises(StoreUnavailableError):
        MergedStore(backend, merger=informed()).calibrate()
    monkeypatch.setattr(state, "PATIENCE", 0.1)
    with pytest.raises(ConflictError, match="repeat it"):
        writer.append("chat", CHAT[0])
    assert len(writer.search(QUERIES[0], 3, "document")) == 3
    calibrated = another(client).calibrate()
    writer.append("chat", CHAT[0])
    assert_clean(client, calibrated, chat=np.concatenate([CHAT, CHAT[:1]]))


def test_stores_with_the_old_settings_go_on(client):
    store = fill(client, contextual=True)
    stale = [another(client) for _ in range(5)]
    for one in stale:
        assert len(one.search(QUERIES[0], 3, "document")) == 3
    calibrated = store.calibrate()
    expected = answers(store, "document")
    assert same(answers(stale[0], "document"), expected)
    assert len(list(stale[4].documents())) == len(GIVEN) + 1
    stale[1].append("chat", CHAT[0])
    assert stale[2].delete("d3")
    assert not stale[2].delete("d3")
    stale[3].ingest("more", vectors=CHAT)
    given = {name: vectors for name, vectors in GIVEN.items() if name != "d3"} | {"more": CHAT}
    assert_clean(client, calibrated, given, np.concatenate([CHAT, CHAT[:1]]))
    assert stale[3].merger.fingerprint == calibrated.fingerprint


def test_a_store_with_a_merger_that_has_no_part_in_it_is_refused(client):
    store = fill(client)
    stale = another(client)
    assert answers(stale, "document")
    MergedStore(CountingBackend(client), merger=MeanMerger()).rebuild()
    for act in (
        lambda: stale.search(QUERIES[0], 3, "document"),
        lambda: stale.append("chat", CHAT[0]),
        lambda: stale.ingest("d0", vectors=GIVEN["d0"]),
        lambda: store.replace("d0", 0, CHAT[0]),
    ):
        with pytest.raises(FingerprintError, match=r"rebuild\(\) or calibrate\(\)"):
            act()
    assert_clean(client, MeanMerger())


def test_mergers_that_come_back_get_editions_of_their_own(client):
    fill(client)
    editions = set()
    for merger in (NarrowMean(), informed(), NarrowMean(), informed()):
        another(client, merger).rebuild()
        assert_clean(client, merger)
        editions.add(settings(client).edition)
    assert len(editions) == 4


@pytest.mark.parametrize("contextual", [False, True])
def test_the_second_of_two_calibrations_wins_wherever_the_first_one_is(contextual):
    outcomes = set()
    for changes in itertools.count():
        client = QdrantClient(":memory:")
        fill(client, contextual=contextual)
        backend = WatchedBackend(client)
        left = itertools.count(changes, -1)

        def watch(client=client, backend=backend, left=left):
            if next(left) == 0:
                backend.watch = lambda: None
                another(client, MeanMerger()).rebuild(calibrated=False)

        backend.watch = watch
        try:
            MergedStore(backend, merger=informed()).calibrate()
            outcomes.add("switched first")
        except ConflictError as error:
            outcomes.add("gave up" if "began after this one" in str(error) else str(error))
        if next(left) >= 0:
            break  # it was done before
        another(client, MeanMerger()).search(QUERIES[0], 3, "document")
        another(client, MeanMerger()).rebuild(calibrated=False)
        assert_clean(client, MeanMerger())
        client.close()
    assert outcomes == {"gave up", "switched first"}


def test_a_document_that_is_being_ingested_stays_so(client):
    fill(client, backend=FailingBackend)
    failing = another(client, backend=FailingBackend)
    failing.search(QUERIES[0], 1)
    failing._backend.changes_left = 5
    with pytest.raises(StoreUnavailableError):
        failing.ingest("d2", vectors=CHAT)
    failing._backend.changes_left = 3
    with pytest.raises(StoreUnavailableError):
        failing.ingest("new", vectors=CHAT)
    store = another(client)
    calibrated = store.calibrate()
    assert {(p.document_id, p.kind) for p in store.verify()} == {("d2", "unfinished"), ("new", "unfinished")}
    for name in ("d2", "new"):
        store.ingest(name, vectors=CHAT)
    assert_clean(client, calibrated, GIVEN | {"d2": CHAT, "new": CHAT})


def test_a_change_that_was_left_behind_is_completed(client):
    fill(client)
    failing = another(client, backend=FailingBackend)
    failing.search(QUERIES[0], 1)
    for changes, name in ((1, "chat"), (1, "first")):
        failing._backend.changes_left = changes
        with pytest.raises(StoreUnavailableError):
            failing.append(name, CHAT[0])
    failing._backend.changes_left = 2
    with pytest.raises(StoreUnavailableError):
        failing.delete("d1")
    calibrated = another(client).calibrate()
    given = {name: vectors for name, vectors in GIVEN.items() if name != "d1"} | {"first": CHAT[:1]}
    assert_clean(client, calibrated, given, np.concatenate([CHAT, CHAT[:1]]))


class TestGrowth:
    def test_it_is_due_once_there_are_half_as_many_chunks_more(self, client):
        store = another(client)
        assert not store.calibration_due
        store.ingest("a", vectors=chunk_vectors(1, 100, DIMENSION))
        assert store.calibration_due  # there is none
        first = store.calibrate(if_grown=0.5)
        assert store.inspect().calibration_vectors == 100
        store.ingest("b", vectors=chunk_vectors(2, 49, DIMENSION))
        assert not store.calibration_due
        assert store.calibrate(if_grown=0.5) is first
        store.append("chat", CHAT[0])
        assert store.calibration_due
        assert store.calibrate(if_grown=0.6) is first
        second = store.calibrate(if_grown=0.5)
        assert second.fingerprint != first.fingerprint
        assert store.inspect().calibration_vectors == 150
        assert not another(client).calibration_due

    @pytest.mark.parametrize("if_grown", [-0.1, float("nan")])
    def test_no_part_is_negative(self, client, if_grown):
        with pytest.raises(InputError, match="if_grown"):
            fill(client).calibrate(if_grown=if_grown)


def test_in_the_background_the_store_stays_in_use(client):
    store = fill(client, contextual=True, backend=SharedBackend)
    future = store.calibrate_in_background()
    chat = list(CHAT)
    while not future.done():
        assert len(store.search(QUERIES[0], 3, "document")) == 3
        chat.append(CHAT[0])
        store.append("chat", chat[-1])
    assert store.merger.fingerprint == future.result().fingerprint
    assert_clean(client, future.result(), chat=np.stack(chat))
    assert store.calibrate_in_background(if_grown=0.5).result() is store.merger
    assert store._backend.count("merged", Where({"kind": "calibration"})) == 1
