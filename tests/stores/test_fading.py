"""Roots whose turns fade with age, compared with a merge of faded masses in memory."""

from contextlib import suppress
from datetime import timedelta
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient

from merger_plugins import MeanMerger, fading_masses
from merger_plugins.chroma import ChromaStore
from merger_plugins.errors import InputError, StoreUnavailableError
from merger_plugins.qdrant import QdrantStore
from merger_plugins.stores import MergedStore
from tests.stores.support import (
    DIMENSION,
    MERGERS,
    CountingBackend,
    FailingBackend,
    assert_document,
    informed,
    merged,
    stored,
)
from tests.strategies import NarrowCalibrated, chunk_vectors


def root_of(source, name="chat"):
    return next(point for key, point in merged(source).items() if key[:2] == (name, "root"))


def faded_by_hand(merger, turns, moments, half_life):
    """The root of turns (vector, mass) or None, at the age that each has when the last is said."""
    filled = [place for place, turn in enumerate(turns) if turn is not None]
    now = max(moments[place] for place in filled)
    ages = [now - moments[place] for place in filled]
    masses = fading_masses([turns[place][1] for place in filled], ages, half_life)
    filler = turns[filled[0]]
    rolling = merger.rolling()
    by_place = dict(zip(filled, masses, strict=True))
    rolling.extend(
        np.stack([(turn or filler)[0] for turn in turns]),
        masses=[by_place.get(place, 1.0) for place in range(len(turns))],
    )
    for place in set(range(len(turns))) - set(filled):
        rolling.remove(place)
    return rolling.vector


@pytest.mark.parametrize("half_life", [1.5, 12, 300])
@pytest.mark.parametrize("name", MERGERS)
def test_a_root_fades_by_turns(client, name, half_life):
    merger = MERGERS[name]
    store = MergedStore(CountingBackend(client), merger=merger, half_life=half_life)
    turns = list(zip(chunk_vectors(7, 135, DIMENSION), [1.0 + n % 5 for n in range(135)], strict=True))
    for place, (vector, mass) in enumerate(turns):
        store.append("chat", vector, mass=mass)
        if place in (0, 1, 9, 10, 29, 30, 99, 128, 129, 130, 134):
            expected = faded_by_hand(merger, turns[: place + 1], range(place + 1), half_life)
            np.testing.assert_allclose(root_of(client).vector, expected, atol=1e-5)
    assert not list(store.verify())


def test_a_root_fades_with_time(client):
    merger = informed()
    store = MergedStore(CountingBackend(client), merger=merger, half_life=timedelta(days=7))
    random = Random(3)
    times = np.cumsum([random.choice([60, 3600, 400_000]) for _ in range(140)]) + 1.7e9
    times[50], times[51] = times[51], times[50]  # told out of order
    turns = [(vector, 2.0) for vector in chunk_vectors(8, 140, DIMENSION)]
    for place, (vector, mass) in enumerate(turns):
        store.append("chat", vector, mass=mass, time=float(times[place]))
        if place in (0, 30, 51, 99, 139):
            expected = faded_by_hand(merger, turns[: place + 1], times, 7 * 86400)
            np.testing.assert_allclose(root_of(client).vector, expected, atol=1e-5)
    assert not list(store.verify())


@pytest.mark.parametrize("kind", [QdrantStore, ChromaStore])
def test_a_root_fades_in_every_database_and_after_reopening(kind, tmp_path):
    merger, half_life = informed(NarrowCalibrated), timedelta(hours=2)
    turns = [(vector, 1.0 + place % 3) for place, vector in enumerate(chunk_vectors(9, 40, DIMENSION))]
    times = [1800.0 * place for place in range(40)]
    options = {"merger": merger, "contextual": True}
    with kind(tmp_path / "store", **options, half_life=half_life) as store:
        for (vector, mass), time in zip(turns[:25], times, strict=False):
            store.append("chat", vector, mass=mass, time=time)
    with kind(tmp_path / "store", **options) as store:
        for (vector, mass), time in zip(turns[25:], times[25:], strict=True):
            store.append("chat", vector, mass=mass, time=time)
        store.remove("chat", 12)
        turns[12] = None
        assert not list(store.verify())
        store.calibrate()
        assert not list(store.verify())
        (root,) = store._backend.fetch("merged", [store._state.ids.root("chat")], vectors=True).values()
        expected = faded_by_hand(store.merger, turns, times, half_life.total_seconds())
        np.testing.assert_allclose(root.vector, expected, atol=1e-5)


def test_a_turn_without_a_time_cannot_fade_with_it(client):
    store = MergedStore(CountingBackend(client), merger=MeanMerger(), half_life=timedelta(days=7))
    vector = chunk_vectors(1, 1, DIMENSION)[0]
    for time in (None, "soon"):
        with pytest.raises(InputError, match="fade with time"):
            store.append("chat", vector, time=time)
    assert not list(store.documents())
    assert not list(store.verify())
    store.append("chat", vector, time="2026-05-04")
    with pytest.raises(InputError, match="fade with time"):
        store.append("chat", vector)
    assert not list(store.verify())


@given(st.integers(0, 10**6))
@settings(max_examples=6, deadline=None)
def test_whatever_happens_a_root_is_that_of_a_rebuild(seed):
    random = Random(seed)
    merger = random.choice([MERGERS["narrow calibrated"], MERGERS["narrow mean"], MERGERS["windowed mean"]])
    half_life = random.choice([0.4, 5.0, 60.0])
    backend = FailingBackend(QdrantClient(":memory:"))
    store = MergedStore(backend, merger=merger, half_life=half_life, contextual=random.random() < 0.5)
    rows, turns = iter(chunk_vectors(seed, 300, DIMENSION)), []

    def tried(act, *arguments, **options):
        backend.changes_left = random.choice([None, None, random.randrange(6)])
        with suppress(StoreUnavailableError):
            act(*arguments, **options)
        backend.changes_left = None
        act(*arguments, **options)

    for step in range(100):
        act = random.choice(["append"] * 6 + ["extend", "replace", "remove"]) if step > 3 else "append"
        vector, mass = next(rows), random.choice([1.0, 4.0, 30.0])
        if act == "append":
            tried(store.append, "chat", vector, mass=mass, turn_id=str(step))
            turns.append((vector, mass))
        elif act == "extend":
            more = np.stack([vector, next(rows), next(rows)])
            tried(store.extend, "chat", vectors=more, masses=[mass] * 3, turn_id=str(step))
            turns += [(row, mass) for row in more]
        elif act == "replace":
            place = random.randrange(len(turns))
            tried(store.replace, "chat", place, vector, mass=mass)
            turns[place] = (vector, mass)
        elif sum(turn is not None for turn in turns) > 2:
            place = random.randrange(len(turns))
            tried(store.remove, "chat", place)
            turns[place] = None
    expected = faded_by_hand(merger, turns, range(len(turns)), half_life)
    np.testing.assert_allclose(root_of(backend).vector, expected, atol=1e-5)
    assert not list(store.verify())
    store.rebuild()
    np.testing.assert_allclose(root_of(backend).vector, expected, atol=1e-5)
    backend.delete("merged", [root_of(backend).id])
    assert store.repair() == []
    np.testing.assert_allclose(root_of(backend).vector, expected, atol=1e-5)
    store.close()


def test_a_conversation_that_lost_its_root_fades_again(client):
    backend = CountingBackend(client)
    store = MergedStore(backend, merger=MeanMerger(), half_life=3)
    vectors = chunk_vectors(1, 14, DIMENSION)
    for vector in vectors:
        store.append("chat", vector)
    store.ingest("text", vectors=vectors)
    text = root_of(client, "text").vector
    backend.delete("merged", [root_of(client).id, root_of(client, "text").id])
    assert store.repair() == []
    expected = faded_by_hand(MeanMerger(), [(vector, 1.0) for vector in vectors], range(14), 3)
    np.testing.assert_allclose(root_of(client).vector, expected, atol=1e-5)
    np.testing.assert_allclose(root_of(client, "text").vector, text, atol=1e-5)


def test_sections_and_documents_do_not_fade(client):
    merger = informed()
    store = MergedStore(CountingBackend(client), merger=merger, half_life=2)
    vectors = chunk_vectors(1, 120, DIMENSION)
    vectors[110:] += 4 * np.eye(DIMENSION)[3]
    store.ingest("text", vectors=vectors)
    for vector in vectors:
        store.append("chat", vector)
    assert_document(client, merger, "text", vectors)
    sections = {key[2:]: point for key, point in merged(client).items() if key[:2] == ("text", "section")}
    for key, point in sections.items():
        np.testing.assert_allclose(merged(client)["chat", "section", *key].vector, point.vector, atol=1e-5)
    assert float(root_of(client).vector @ root_of(client, "text").vector) < 0.9


def test_a_fading_conversation_costs_as_many_points_as_another(client):
    backend = CountingBackend(client)
    store = MergedStore(backend, merger=informed(), half_life=20)
    reads, writes = [], []
    for vector in chunk_vectors(1, 320, DIMENSION):
        backend.reset()
        store.append("chat", vector)
        reads.append(sum(backend.reads.values()))
        writes.append(sum(backend.written.values()) + 1)
    assert max(reads) <= 5 + 3 * 29
    assert max(writes) <= 5


def test_the_half_life_belongs_to_the_store(client):
    vectors = chunk_vectors(1, 12, DIMENSION)
    MergedStore(CountingBackend(client), merger=MeanMerger(), half_life=3).append("chat", vectors[0])
    again = MergedStore(CountingBackend(client), merger=MeanMerger())
    for vector in vectors[1:]:
        again.append("chat", vector)
    turns = [(vector, 1.0) for vector in vectors]
    expected = faded_by_hand(MeanMerger(), turns, range(12), 3)
    np.testing.assert_allclose(root_of(client).vector, expected, atol=1e-5)
    for other in (4, timedelta(seconds=3)):
        with pytest.raises(InputError, match="half-life of 3 turns"):
            MergedStore(CountingBackend(client), merger=MeanMerger(), half_life=other).inspect()


def test_who_made_the_store_decides_for_a_writer_that_began_before(client):
    class Slow(CountingBackend):
        """Another writer makes the store while this one's first turn is on its way."""

        def create(self, dimension, *, contextual):
            MergedStore(CountingBackend(client), merger=MeanMerger(), half_life=3).append("other", vectors[0])
            super().create(dimension, contextual=contextual)

    vectors = chunk_vectors(1, 14, DIMENSION)
    late = MergedStore(Slow(client), merger=MeanMerger())
    for vector in vectors:
        late.append("chat", vector)
    expected = faded_by_hand(MeanMerger(), [(vector, 1.0) for vector in vectors], range(14), 3)
    np.testing.assert_allclose(root_of(client).vector, expected, atol=1e-5)


def test_a_store_without_fading_refuses_one(client):
    store = MergedStore(CountingBackend(client), merger=MeanMerger())
    store.append("chat", chunk_vectors(1, 1, DIMENSION)[0])
    with pytest.raises(InputError, match="without fading"):
        MergedStore(CountingBackend(client), merger=MeanMerger(), half_life=4).search("x")


@pytest.mark.parametrize("half_life", [0, -2, float("inf"), float("nan"), "3", True, timedelta(0)])
def test_a_half_life_that_is_none(client, half_life):
    with pytest.raises(InputError, match="half_life"):
        MergedStore(CountingBackend(client), merger=MeanMerger(), half_life=half_life)


def test_verify_finds_a_wrong_faded_node(client):
    backend = CountingBackend(client)
    store = MergedStore(backend, merger=informed(), half_life=4)
    for vector in chunk_vectors(1, 20, DIMENSION):
        store.append("chat", vector)
    section = merged(client)["chat", "section", 1, 0]
    faded = {**section.payload["faded"], "mass": 2.0}
    backend.write("merged", [type(section)(section.id, {**section.payload, "faded": faded}, section.vector)])
    (problem,) = store.verify()
    assert (problem.kind, problem.level, problem.position) == ("wrong", 1, 0)
    assert store.repair() == []
    assert stored(client, "documents", "merged")[section.id].payload["faded"]["mass"] > 5
