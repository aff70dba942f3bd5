"""Appending and extending, against the tree made from scratch by recursion."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merger_plugins import RollingMerge
from merger_plugins.tree import LEAST_MASS, MOST_MASS, frontier
from tests.strategies import (
    CALIBRATED,
    MEAN,
    NARROW_CALIBRATED,
    NARROW_MEAN,
    chunk_vectors,
    splits,
    weighted_sequences,
)
from tests.tree.naive import TOLERANCE, assert_agree, every_merger, naive, rolled, strategies

pytestmark = pytest.mark.filterwarnings("error")


@given(st.integers(1, 3_000), st.integers(2, 12), st.integers(0, 3))
def test_the_frontier_covers_every_place_once(places, fanout, lazy):
    ranges = frontier(places, fanout, lazy=lazy)
    covered = [
        place
        for level, (start, stop) in reversed(list(enumerate(ranges)))
        for place in range(start * fanout**level, stop * fanout**level)
    ]
    assert covered == list(range(places))
    most = [fanout * (1 + lazy)] * 2 + [fanout] * len(ranges)
    assert all(stop - start < count for (start, stop), count in zip(ranges, most, strict=False))


@pytest.mark.parametrize(
    ("places", "lazy", "ranges"),
    [
        (0, 0, []),
        (9, 0, [(0, 9)]),
        (10, 0, [(10, 10), (0, 1)]),
        (123, 0, [(120, 123), (10, 12), (0, 1)]),
        (19, 1, [(0, 19)]),
        (20, 1, [(10, 20), (0, 1)]),
        (29, 2, [(0, 29)]),
        (30, 2, [(10, 30), (0, 1)]),
        (320, 2, [(300, 320), (10, 30), (0, 1)]),
        (1_220, 2, [(1_200, 1_220), (100, 120), (10, 10), (0, 1)]),
    ],
)
def test_a_lazy_level_keeps_its_nodes_until_more_are_complete(places, lazy, ranges):
    assert frontier(places, 10, lazy=lazy) == ranges


@every_merger
@given(weighted_sequences(max_size=50))
def test_a_rolling_merge_answers_as_the_definition(merger, sequence):
    vectors, masses = sequence
    assert_agree(rolled(merger, vectors, masses), naive(merger, vectors, masses))


@strategies
@pytest.mark.parametrize("merger", [NARROW_MEAN, NARROW_CALIBRATED], ids=["mean", "calibrated"])
@given(weighted_sequences(max_size=40))
def test_every_strategy_follows_its_definition(merger, strategy, sequence):
    vectors, masses = sequence
    rolling = rolled(merger, vectors, masses, strategy=strategy)
    expected = naive(merger, vectors, masses, strategy=strategy).vector()
    assert np.allclose(rolling.vector, expected, **TOLERANCE)


@every_merger
def test_many_chunks_through_several_levels(merger):
    vectors = chunk_vectors(0, 437)
    masses = np.random.default_rng(0).uniform(1, 100, 437)
    assert_agree(rolled(merger, vectors, masses), naive(merger, vectors, masses), levels=(0, 1, 2, 3))


@strategies
@pytest.mark.parametrize("history", [True, False])
@given(st.data())
def test_any_split_into_appends_and_extensions_gives_the_same(strategy, history, data):
    vectors, masses = data.draw(weighted_sequences(max_size=40))
    merger = data.draw(st.sampled_from([NARROW_MEAN, NARROW_CALIBRATED, CALIBRATED]))
    rolling = RollingMerge(merger, strategy=strategy, history=history)
    for part in data.draw(splits(len(vectors))):
        if part.stop - part.start == 1:
            rolling.append(vectors[part.start], mass=float(masses[part.start]))
        else:
            rolling.extend(vectors[part], masses=masses[part])
    whole = rolled(merger, vectors, masses, strategy=strategy)
    assert np.allclose(rolling.vector, whole.vector, **TOLERANCE)
    assert (len(rolling), rolling.places) == (len(whole), whole.places)


@every_merger
def test_a_section_of_chunks_is_their_merge_and_a_flat_root_is_the_merge_of_all(merger):
    vectors, masses = chunk_vectors(0, 34), np.arange(1.0, 35)
    width = merger.fanout
    parts = [slice(start, start + width) for start in range(0, 34, width)]
    expected = merger.merge_many([vectors[p] for p in parts], masses=[masses[p] for p in parts])
    assert np.allclose(rolled(merger, vectors, masses).sections(), expected, **TOLERANCE)
    if merger.window is None:
        flat = rolled(merger, vectors, masses, strategy="flat")
        assert np.allclose(flat.vector, merger.merge(vectors, masses=masses), **TOLERANCE)


@pytest.mark.parametrize("merger", [MEAN, NARROW_MEAN], ids=["fan-out 10", "fan-out 3"])
@given(weighted_sequences(max_size=60))
def test_the_tree_loses_nothing_of_a_mean(merger, sequence):
    vectors, masses = sequence
    assert np.allclose(
        rolled(merger, vectors, masses).vector, MEAN.merge(vectors, masses=masses), **TOLERANCE
    )


def test_a_chain_of_means_is_the_fold_of_merges():
    vectors, masses = chunk_vectors(0, 12), np.arange(1.0, 13)
    merged, mass = vectors[0], masses[0]
    for vector, weight in zip(vectors[1:], masses[1:], strict=True):
        merged, mass = MEAN.merge([merged, vector], masses=[mass, weight]), mass + weight
    assert np.allclose(rolled(MEAN, vectors, masses, strategy="chain").vector, merged, **TOLERANCE)


def test_masses_are_in_proportion_in_a_rolling_merge_too():
    vectors, masses = chunk_vectors(0, 45), np.arange(1.0, 46)
    expected = rolled(CALIBRATED, vectors, masses)
    for factor in (LEAST_MASS, 1e-6, 1e10, MOST_MASS / 45):
        assert np.allclose(rolled(CALIBRATED, vectors, masses * factor).vector, expected.vector, **TOLERANCE)
