"""Replacing and removing, against rebuilding with the same places, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merger_plugins import MergerError, RollingMerge
from merger_plugins.errors import DimensionError, EmptyInputError, InputError, NonFiniteError, ZeroVectorError
from merger_plugins.tree import LEAST_MASS, MOST_MASS
from tests.strategies import (
    CALIBRATED,
    DIMENSION,
    MEAN,
    NARROW_CALIBRATED,
    chunk_vectors,
    normalised,
    weighted_sequences,
)
from tests.tree.naive import TOLERANCE, assert_agree, every_merger, naive, rolled, strategies

pytestmark = pytest.mark.filterwarnings("error")


@every_merger
@given(st.data())
def test_replacing_and_removing_equal_rebuilding_with_the_same_places(merger, data):
    vectors, masses = data.draw(weighted_sequences(min_size=2, max_size=40))
    rolling = rolled(merger, vectors, masses)
    places = st.integers(0, len(vectors) - 1)
    fresh = chunk_vectors(data.draw(st.integers(0, 1_000)), len(vectors))
    for place in sorted(data.draw(st.sets(places, max_size=6))):
        vectors[place] = fresh[place]
        rolling.replace(place, fresh[place])
    for place in sorted(data.draw(st.sets(places, max_size=3))):
        vectors[place], masses[place] = fresh[place], 7.5
        rolling.replace(place, fresh[place], mass=7.5)
    removed = data.draw(st.sets(places, max_size=len(vectors) - 1))
    for place in removed:
        rolling.remove(place)
    if len(rolling):
        assert_agree(rolling, naive(merger, vectors, masses, empty=removed))


@strategies
def test_removed_chunks_count_for_nothing_and_their_places_can_be_filled_again(strategy):
    vectors = chunk_vectors(0, 31)
    rolling = rolled(NARROW_CALIBRATED, vectors, strategy=strategy)
    for place in (0, 1, 2, 17, 30):
        rolling.remove(place)
    assert (len(rolling), rolling.places, rolling.mass) == (26, 31, 26.0)
    gone = {0, 1, 2, 17, 30}
    expected = naive(NARROW_CALIBRATED, vectors, empty=gone, strategy=strategy)
    assert np.allclose(rolling.vector, expected.vector(), **TOLERANCE)
    assert not rolling.sections(1)[0].any()
    assert not rolling.contextual()[[0, 1, 2, 17, 30]].any()
    for place in gone:
        rolling.replace(place, vectors[place], mass=1)
    whole = rolled(NARROW_CALIBRATED, vectors, strategy=strategy)
    assert np.allclose(rolling.vector, whole.vector, **TOLERANCE)


@strategies
def test_an_emptied_merge_says_so_and_starts_again(strategy):
    rolling = rolled(MEAN, chunk_vectors(0, 12), strategy=strategy)
    for place in range(12):
        rolling.remove(place)
    assert (len(rolling), rolling.places, rolling.mass) == (0, 12, 0.0)
    for attempt in (lambda: rolling.vector, rolling.contextual, rolling.refresh_context):
        with pytest.raises(EmptyInputError, match="holds no chunk; append one"):
            attempt()
    assert not rolling.sections(1).any()
    for continued in (rolling, MEAN.rolling(rolling.state, strategy=strategy)):
        continued.append(chunk_vectors(1, 1)[0], mass=3)
        assert np.allclose(continued.vector, normalised(chunk_vectors(1, 1))[0], **TOLERANCE)
        assert (len(continued), continued.places, continued.mass) == (1, 13, 3.0)


@pytest.mark.parametrize("place", [-1, 5, 1_000])
def test_places_that_do_not_exist_are_refused_with_how_many_there_are(place):
    rolling = rolled(MEAN, chunk_vectors(0, 5))
    for attempt in (lambda: rolling.remove(place), lambda: rolling.replace(place, np.ones(DIMENSION))):
        with pytest.raises(InputError, match=f"place {place} does not exist; there are 5"):
            attempt()


def test_empty_places_cannot_be_removed_again_and_have_no_mass_to_keep():
    rolling = rolled(MEAN, chunk_vectors(0, 5))
    rolling.remove(2)
    with pytest.raises(InputError, match="place 2 is empty already"):
        rolling.remove(2)
    with pytest.raises(InputError, match=r"place 2 is empty.*pass mass="):
        rolling.replace(2, np.ones(DIMENSION))


@pytest.mark.parametrize(
    ("vector", "mass", "error"),
    [
        (np.ones(DIMENSION + 1), 1, DimensionError),
        (np.ones((1, DIMENSION)), 1, DimensionError),
        (np.zeros(DIMENSION), 1, ZeroVectorError),
        (np.full(DIMENSION, np.inf), 1, NonFiniteError),
        (np.ones(DIMENSION), 0, InputError),
        (np.ones(DIMENSION), np.nan, NonFiniteError),
        (np.ones(DIMENSION), LEAST_MASS / 2, InputError),
        (np.ones(DIMENSION), MOST_MASS * 2, InputError),
    ],
)
@strategies
def test_a_refused_chunk_changes_nothing(strategy, vector, mass, error):
    rolling = rolled(MEAN, chunk_vectors(0, 15), strategy=strategy)
    before = rolling.state
    for attempt in (
        lambda: rolling.append(vector, mass=mass),
        lambda: rolling.extend([np.ones(DIMENSION), vector], masses=[1, mass]),
        lambda: rolling.replace(3, vector, mass=mass),
    ):
        with pytest.raises(error) as caught:
            attempt()
        assert isinstance(caught.value, MergerError)
    assert rolling.state == before
    assert len(rolling) == 15


def test_a_mass_out_of_bounds_is_named_with_the_bounds():
    with pytest.raises(InputError, match=r"hold 1e\+20; .* 1e-15 to 1e\+15"):
        MEAN.rolling().append(np.ones(3), mass=1e20)


def test_the_first_chunk_decides_the_dimension_where_the_merger_does_not():
    rolling = rolled(MEAN, np.ones((1, 5)))
    with pytest.raises(DimensionError, match=r"dimension 4.*dimension 5"):
        rolling.append(np.ones(4))
    with pytest.raises(DimensionError, match=r"dimension 5.*dimension 6"):
        CALIBRATED.rolling().append(np.ones(5))


@strategies
def test_the_callers_arrays_are_neither_kept_nor_changed(strategy):
    vectors, masses = chunk_vectors(0, 7), np.arange(1, 8, dtype=np.float32)
    rolling = rolled(MEAN, vectors, masses, strategy=strategy)
    before = rolling.vector
    vectors[:], masses[:] = 9, 9
    assert np.array_equal(rolling.vector, before)
    rolling.vector[:] = 0
    rolling.sections(0)[:] = 0
    rolling.nodes(0, 0, 7).vectors[:] = 0
    assert np.array_equal(rolling.vector, before)


def test_an_unknown_strategy_is_refused():
    with pytest.raises(InputError, match=r"'heap'; choose 'tree', 'flat' or 'chain'"):
        RollingMerge(MEAN, strategy="heap")


@strategies
def test_chunks_that_cancel_out_are_refused_when_read(strategy):
    rolling = rolled(MEAN, [[1.0, 2.0], [-1.0, -2.0]], strategy=strategy)
    with pytest.raises(ZeroVectorError, match=r"2 chunks .*cancel out"):
        _ = rolling.vector
