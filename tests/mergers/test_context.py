"""Contextual chunk vectors against loops over neighbours, written out in float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merger_plugins import TURN_WEIGHTS, ContextWeights
from merger_plugins.errors import InputError
from merger_plugins.mergers.calibrated import ridge
from merger_plugins.mergers.context import REACH, Renewal, blend
from tests.strategies import (
    CALIBRATED,
    DIMENSION,
    MEAN,
    chunk_vectors,
    cosine,
    mapped_back,
    naive_blend,
    normalised,
    ridge_solution,
    weighted_sequences,
    whitened,
)

pytestmark = pytest.mark.filterwarnings("error")

proportions = st.floats(0, 1)
weights = st.builds(ContextWeights, near=proportions, root=proportions)


@given(weighted_sequences(), weights)
def test_a_mean_blends_unit_vectors(sequence, proportions):
    vectors, masses = sequence
    masses = [float(mass) for mass in masses]
    root = normalised(masses @ normalised(vectors))
    expected = normalised(np.stack(naive_blend(normalised(vectors), root, masses, proportions)))
    contextual = MEAN.contextualize(vectors, masses=masses, weights=proportions)
    assert (contextual.shape, contextual.dtype) == (vectors.shape, np.float32)
    lengths = np.linalg.norm(np.stack(naive_blend(normalised(vectors), root, masses, proportions)), axis=1)
    firm = lengths > 0.1  # where a chunk and its neighbours nearly cancel, no direction is well defined
    assert np.allclose(contextual[firm], expected[firm], atol=1e-5)


@given(weighted_sequences(max_size=20), weights)
def test_a_calibrated_merger_blends_in_whitened_space_and_maps_back(sequence, proportions):
    vectors, masses = sequence
    leaves, masses = whitened(CALIBRATED, vectors), [float(mass) for mass in masses]
    penalty = float(ridge(np.array(len(vectors))))
    # Up to 20 chunks no node is handed up the tree, so the root is the ridge over all of them.
    root = normalised(ridge_solution(leaves, np.array(masses) / np.mean(masses), penalty))
    blended = np.stack(naive_blend(leaves, root, masses, proportions))
    contextual = CALIBRATED.contextualize(vectors, masses=masses, weights=proportions)
    firm = np.linalg.norm(blended, axis=1) > 0.1
    assert np.allclose(contextual[firm], mapped_back(CALIBRATED, blended)[firm], atol=1e-5)


def test_without_weights_of_its_own_a_call_takes_the_mergers():
    vectors = chunk_vectors(0, 6)
    for merger, near, root in ((MEAN, 0.1, 0.0), (CALIBRATED, 0.1, 0.1)):
        assert merger.context_weights == ContextWeights(near=near, root=root)
        explicit = merger.contextualize(vectors, weights=ContextWeights(near, root))
        assert np.array_equal(merger.contextualize(vectors), explicit)


def test_weights_of_zero_leave_each_chunk_as_its_own_merge():
    vectors = chunk_vectors(0, 6)
    alone = CALIBRATED.contextualize(vectors, weights=ContextWeights(near=0, root=0))
    assert np.allclose(alone, CALIBRATED.merge_many([[v] for v in vectors]), atol=1e-6)


def test_one_chunk_has_its_own_root_for_a_context():
    vector = chunk_vectors(0, 1)
    assert np.allclose(MEAN.contextualize(vector, weights=TURN_WEIGHTS), normalised(vector), atol=1e-6)


@pytest.mark.parametrize("place", range(7))
def test_a_chunk_reaches_its_neighbours_two_steps_away_and_no_further(place):
    vectors = chunk_vectors(0, 7)
    changed = vectors.copy()
    changed[place] = chunk_vectors(1, 1)[0]
    proportions = ContextWeights(near=0.3, root=0)
    before, after = (MEAN.contextualize(v, weights=proportions) for v in (vectors, changed))
    moved = [i for i in range(7) if not np.allclose(before[i], after[i], atol=1e-6)]
    assert moved == [i for i in range(7) if abs(i - place) <= REACH == 2]


def test_a_short_chunk_takes_less_and_a_long_one_at_the_most_twice_as_much():
    vectors = np.eye(DIMENSION)[[0, 1]]

    def taken(mass, other):
        first = MEAN.contextualize(vectors, masses=[mass, other], weights=ContextWeights(near=0.1, root=0))[0]
        return first[1] / first[0]

    assert taken(50, 50) == pytest.approx(0.1, abs=1e-6)
    assert taken(1, 99) == pytest.approx(0.1 * (1 / 50) ** 0.5, abs=1e-6)
    longest = blend(
        vectors.astype(np.float32),
        np.zeros(DIMENSION, np.float32),
        np.array([1_000, 1], np.float32),
        ContextWeights(near=0.1, root=0),
    )
    assert longest[0, 1] == pytest.approx(0.2, abs=1e-6)


def test_a_chunk_learns_of_its_document():
    subject, other = np.eye(DIMENSION)[:2]
    vectors = [subject, subject, subject, other, subject]
    plain, contextual = MEAN.merge_many([[v] for v in vectors]), MEAN.contextualize(vectors)
    assert cosine(contextual[3], subject) > cosine(plain[3], subject) + 0.1
    assert cosine(contextual[3], other) > 0.9


@pytest.mark.parametrize("name", ["near", "root"])
@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan, np.inf])
def test_weights_outside_zero_to_one_are_refused(name, value):
    with pytest.raises(InputError, match=f"{name} is {value}; .*between 0 and 1"):
        ContextWeights(**{name: value})


def test_turns_take_more_of_their_neighbours_than_paragraphs():
    assert TURN_WEIGHTS.near > ContextWeights().near
    assert TURN_WEIGHTS.root > ContextWeights().root


@pytest.mark.parametrize(
    ("angle", "factor", "near", "outdated"),
    [
        (0.0, 1.0, 0.1, False),
        (11.0, 1.0, 0.1, False),
        (12.0, 1.0, 0.1, True),
        (0.0, 1.19, 0.1, False),
        (0.0, 1 / 1.19, 0.1, False),
        (0.0, 1.21, 0.1, True),
        (0.0, 1 / 1.21, 0.1, True),
        (0.0, 1.0, 0.2, True),
    ],
)
def test_a_renewal_is_due_when_root_mass_or_weights_moved(angle, factor, near, outdated):
    def made(degrees, mean_mass, proportion):
        turn = np.radians(degrees)
        root = np.array([np.cos(turn), np.sin(turn)], np.float32)
        return Renewal(root, mean_mass, ContextWeights(near=proportion))

    assert made(0.0, 40.0, 0.1).outdated(made(angle, 40.0 * factor, near)) is outdated
