"""Contextual turn vectors: neighbours, and the root of the sitting, worked out here by hand."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient

from merger_plugins import TURN_WEIGHTS, MeanMerger
from merger_plugins.errors import InputError, StoreUnavailableError
from merger_plugins.stores import MergedStore
from merger_plugins.stores.ages import seconds
from merger_plugins.stores.sittings import LONGEST
from tests.stores.support import (
    DIMENSION,
    CountingBackend,
    FailingBackend,
    informed,
    merged,
    stored,
)
from tests.strategies import NarrowCalibrated, WindowedMean, chunk_vectors

MERGERS = {
    "mean": MeanMerger(),
    "windowed mean": WindowedMean(),
    "calibrated": informed(),
    "narrow calibrated": informed(NarrowCalibrated),
}
HOUR = 3600.0


def sittings_by_hand(times, pause=HOUR):
    """The sitting of each turn appended in this order, None for a turn without a time."""
    starts, known = [], None
    for place, time in enumerate(times):
        paused = None not in (time, known) and abs(time - known) > pause
        new = not starts or paused or place - starts[-1] >= 30
        starts.append(place if new else starts[-1])
        known = known if time is None else time
    return starts


def counted_by_hand(places, start):
    steps = [1, 2, 3, 4, 6, 9, 13, 20, 30]
    length = max(places) - start + 1
    most = [step for step in steps if step <= length][-1]
    return [place for place in places if place - start < most] or places


def contextual_by_hand(merger, turns, starts):
    """(n, d): `turns` are (vector, mass) or None, a row of zeros for None."""
    filled = [place for place, turn in enumerate(turns) if turn is not None]
    leaves = np.zeros((len(turns), DIMENSION))
    leaves[filled] = merger._leaves(unit(np.stack([turns[place][0] for place in filled])).astype(np.float32))
    made = np.zeros((len(turns), DIMENSION), np.float32)
    for place in filled:
        members = [other for other in filled if starts[other] == starts[place]]
        members = counted_by_hand(members, starts[place])
        rolling = merger.rolling()
        rolling.extend(np.stack([turns[m][0] for m in members]), masses=[turns[m][1] for m in members])
        root = unit(rolling._root_direction())
        near = sum(
            leaves[place + step] / abs(step) for step in (-2, -1, 1, 2) if 0 <= place + step < len(turns)
        )
        mean = np.mean([turns[m][1] for m in members])
        share = np.sqrt(min(turns[place][1] / mean, 4))
        row = leaves[place] + share * (TURN_WEIGHTS.near * near + TURN_WEIGHTS.root * root)
        made[place] = merger._out(row[None].astype(np.float32))[0]
    return made


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def points_of(source, name="chat"):
    points = stored(source, "documents", "chunks").values()
    return {p.payload["position"]: p for p in points if p.payload["document_id"] == name}


def assert_in_context(source, merger, turns, starts, name="chat"):
    points = points_of(source, name)
    assert sorted(points) == [place for place, turn in enumerate(turns) if turn is not None]
    expected = contextual_by_hand(merger, turns, starts)
    for place, point in points.items():
        assert point.payload["sitting"] == starts[place]
        np.testing.assert_allclose(point.contextual, expected[place], atol=1e-5)


@pytest.mark.parametrize("name", MERGERS)
def test_turns_know_their_neighbours_and_their_sitting_after_every_append(client, name):
    merger = MERGERS[name]
    store = MergedStore(CountingBackend(client), merger=merger, contextual=True)
    pauses = {5: 9000, 6: 9000, 8: 9000, 21: 9000}  # and one that is cut for its length
    times = np.cumsum([pauses.get(place, 60) for place in range(75)]).tolist()
    turns = list(zip(chunk_vectors(4, 75, DIMENSION), [1.0 + n % 7 for n in range(75)], strict=True))
    starts = sittings_by_hand(times)
    assert sorted(set(starts)) == [0, 5, 6, 8, 21, 51]
    for place, (vector, mass) in enumerate(turns):
        store.append("chat", vector, mass=mass, time=times[place])
        if place in (0, 1, 5, 19, 31, 40, 59, 60, 61, 74):
            assert_in_context(client, merger, turns[: place + 1], starts)
    assert not list(store.verify())


def test_without_times_a_conversation_is_cut_by_length(client):
    store = MergedStore(CountingBackend(client), merger=informed(), contextual=True)
    turns = [(vector, 1.0) for vector in chunk_vectors(1, 65, DIMENSION)]
    for vector, _ in turns:
        store.append("chat", vector)
    assert_in_context(client, informed(), turns, [place // LONGEST * LONGEST for place in range(65)])


def test_more_turns_at_once_than_a_sitting_holds(client):
    store = MergedStore(CountingBackend(client), merger=informed(), contextual=True)
    vectors = chunk_vectors(1, 80, DIMENSION)
    store.append("chat", vectors[0])
    store.extend("chat", vectors=vectors[1:])
    starts = [place // LONGEST * LONGEST for place in range(80)]
    assert_in_context(client, informed(), [(vector, 1.0) for vector in vectors], starts)
    assert not list(store.verify())


@pytest.mark.parametrize(
    ("times", "starts"),
    [
        ([0, 3600, 7201], [0, 0, 2]),
        ([10_000, 0, 10], [0, 1, 1]),  # an older sitting that was appended later
        ([0, None, 3000, None, 7000], [0, 0, 0, 0, 4]),
        (["2026-05-04T12:00:00", "2026-05-04T14:30:00+02:00", "2026-05-04T15:00Z"], [0, 0, 2]),
        (["yesterday", "today"], [0, 0]),
    ],
)
def test_a_pause_begins_a_sitting(client, times, starts):
    store = MergedStore(CountingBackend(client), merger=MeanMerger(), contextual=True)
    for vector, time in zip(chunk_vectors(1, len(times), DIMENSION), times, strict=True):
        store.append("chat", vector, time=time)
    assert [points_of(client)[place].payload["sitting"] for place in range(len(times))] == starts


@pytest.mark.parametrize(
    ("pause", "starts"), [(timedelta(hours=3), [0, 0]), (60, [0, 1]), (float("inf"), [0, 0])]
)
def test_how_long_a_pause_is_can_be_chosen(client, pause, starts):
    store = MergedStore(CountingBackend(client), merger=MeanMerger(), contextual=True, pause=pause)
    when = datetime(2026, 5, 4, 12, tzinfo=UTC)
    for hours, vector in enumerate(chunk_vectors(1, 2, DIMENSION)):
        store.append("chat", vector, time=when + timedelta(hours=2 * hours))
    assert [points_of(client)[place].payload["sitting"] for place in range(2)] == starts


@pytest.mark.parametrize("pause", [0, -1, "long", True, float("nan")])
def test_a_pause_that_is_none(client, pause):
    with pytest.raises(InputError, match="pause"):
        MergedStore(CountingBackend(client), merger=MeanMerger(), pause=pause)


def test_times():
    assert seconds("1970-01-01T01:00:00+01:00") == 0
    assert seconds("1970-01-02") == 86400
    assert seconds(5) == 5.0
    assert seconds(1_777_896_000_123) == 1_777_896_000.123
    assert seconds("soon") is seconds(None) is seconds(True) is None


@given(st.integers(0, 10**6))
@settings(max_examples=6, deadline=None)
def test_edits_leave_what_a_rebuild_would_make(seed):
    random = Random(seed)
    merger = random.choice([MERGERS["calibrated"], MERGERS["windowed mean"]])
    backend = FailingBackend(QdrantClient(":memory:"))
    store = MergedStore(backend, merger=merger, contextual=True)
    turns, times, starts = [], [], []
    rows = iter(chunk_vectors(seed, 200, DIMENSION))

    def tried(act, *arguments, **options):
        backend.changes_left = random.choice([None, None, random.randrange(40)])
        with suppress(StoreUnavailableError):
            act(*arguments, **options)
        backend.changes_left = None
        act(*arguments, **options)

    for step in range(90):
        act = random.choice(["append"] * 8 + ["replace", "remove"]) if step > 3 else "append"
        vector, mass = next(rows), random.choice([1.0, 4.0, 30.0])
        if act == "append":
            times.append((times[-1] if times else 0) + random.choice([10] * 12 + [10_000]))
            tried(store.append, "chat", vector, mass=mass, time=times[-1], turn_id=str(step))
            turns.append((vector, mass))
            starts = sittings_by_hand(times)
            continue
        place = random.randrange(len(turns))
        if act == "remove" and sum(turn is not None for turn in turns) > 1:
            for gone in range(place, min(place + random.choice([1, 1, 3]), len(turns) - 1)):
                tried(store.remove, "chat", gone)
                turns[gone] = None
        elif turns[place] is not None:
            tried(store.replace, "chat", place, vector, mass=mass)
            turns[place] = (vector, mass)
    assert_in_context(backend, merger, turns, starts)
    assert not list(store.verify())
    before = {place: point.contextual for place, point in points_of(backend).items()}
    store.rebuild()
    for place, point in points_of(backend).items():
        np.testing.assert_allclose(point.contextual, before[place], atol=1e-5)
    store.close()


def test_a_turn_put_into_an_empty_place_joins_the_sitting_there(client):
    store = MergedStore(CountingBackend(client), merger=informed(), contextual=True)
    times = [*range(5), *range(9000, 9005), *range(20_000, 20_005)]
    vectors = chunk_vectors(1, 15, DIMENSION)
    for vector, time in zip(vectors, times, strict=True):
        store.append("chat", vector, time=time)
    for place in (0, 4, 5, 6, 7, 8, 9, 10):
        store.remove("chat", place)
    joined = {0: 0, 10: 10, 4: 0, 7: 0}
    for place in joined:
        store.replace("chat", place, vectors[place], mass=1)
    assert {place: points_of(client)[place].payload["sitting"] for place in joined} == joined
    assert not list(store.verify())


def test_an_edit_writes_its_sitting_and_its_neighbours_alone(client):
    backend = CountingBackend(client)
    store = MergedStore(backend, merger=informed(), contextual=True)
    vectors = chunk_vectors(1, 300, DIMENSION)
    for place, vector in enumerate(vectors):
        store.append("chat", vector, time=place // 10 * 10_000)
    for act in (lambda: store.replace("chat", 150, vectors[0]), lambda: store.remove("chat", 150)):
        backend.reset()
        act()
        assert backend.written["chunks"] <= 10 + 2
        assert backend.reads["chunks"] <= 2 * 31 + 1 + 29 + 10


def test_verify_finds_a_wrong_contextual_vector_and_repair_mends_it(client):
    backend = CountingBackend(client)
    store = MergedStore(backend, merger=informed(), contextual=True)
    for place, vector in enumerate(chunk_vectors(1, 40, DIMENSION)):
        store.append("chat", vector, time=place * 600)
    before = points_of(client)
    wrong = before[33]
    wrong = type(wrong)(wrong.id, wrong.payload, wrong.vector, -wrong.contextual)
    backend.write("chunks", [wrong])
    (problem,) = store.verify()
    assert (problem.kind, problem.level, problem.position) == ("wrong", 0, 33)
    assert "contextual vector is off" in problem.detail
    assert store.repair() == []
    np.testing.assert_allclose(points_of(client)[33].contextual, before[33].contextual, atol=1e-5)


def test_a_conversation_that_lost_its_root_keeps_its_sittings(client):
    backend = CountingBackend(client)
    store = MergedStore(backend, merger=informed(), contextual=True)
    turns = [(vector, 1.0) for vector in chunk_vectors(1, 14, DIMENSION)]
    times = [0, 1, 2, 3, 9000, 9001, 9002, 9003, 9004, 30_000, 30_001, 30_002, 30_003, 60_000]
    for (vector, _), time in zip(turns[:-1], times, strict=False):
        store.append("chat", vector, time=time)
    backend.delete("merged", [merged(client)["chat", "root", 2, 0].id])
    assert store.repair() == []
    store.append("chat", turns[-1][0], time=times[-1])
    assert_in_context(client, informed(), turns, sittings_by_hand(times))
