"""The mean merger, and what every merger promises, against a mean written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merger_plugins import CalibratedMerger, MeanMerger, MergerError
from merger_plugins.errors import DimensionError, EmptyInputError, InputError, NonFiniteError, ZeroVectorError
from tests.strategies import (
    DIMENSION,
    MEAN,
    MERGERS,
    WINDOWED_MEAN,
    chunk_vectors,
    cosine,
    masses_for,
    normalised,
    ragged_batches,
    sequences,
    weighted_sequences,
)

pytestmark = pytest.mark.filterwarnings("error")

every_merger = pytest.mark.parametrize("merger", MERGERS.values(), ids=MERGERS.keys())


def naive_mean(vectors, masses):
    total = np.zeros(vectors.shape[1])
    for vector, mass in zip(normalised(vectors), masses, strict=True):
        total += float(mass) * vector
    return normalised(total)


@given(weighted_sequences())
def test_the_merge_is_the_mass_weighted_mean_of_the_unit_vectors(sequence):
    vectors, masses = sequence
    merged = MEAN.merge(vectors, masses=masses)
    assert (merged.shape, merged.dtype) == ((DIMENSION,), np.float32)
    assert np.allclose(merged, naive_mean(vectors, masses), atol=1e-5)


@given(sequences())
def test_without_masses_all_vectors_count_alike(vectors):
    assert np.allclose(MEAN.merge(vectors), naive_mean(vectors, np.ones(len(vectors))), atol=1e-5)


@given(weighted_sequences(), st.randoms(use_true_random=False))
def test_the_order_does_not_matter_to_a_mean(sequence, random):
    vectors, masses = sequence
    order = random.sample(range(len(vectors)), len(vectors))
    shuffled = MEAN.merge(vectors[order], masses=masses[order])
    assert np.allclose(shuffled, MEAN.merge(vectors, masses=masses), atol=1e-5)


@given(weighted_sequences(min_size=2), st.data())
def test_merging_merged_parts_with_their_masses_and_lengths_is_merging_the_whole(sequence, data):
    vectors, masses = sequence
    cut = data.draw(st.integers(1, len(vectors) - 1))
    parts = [slice(0, cut), slice(cut, None)]
    # A merged vector is of unit length; what its mass must carry is the length of the sum.
    lengths = [np.linalg.norm(masses[part] @ normalised(vectors[part])) for part in parts]
    merged = [MEAN.merge(vectors[part], masses=masses[part]) for part in parts]
    assert np.allclose(MEAN.merge(merged, masses=lengths), MEAN.merge(vectors, masses=masses), atol=1e-5)


def test_it_works_in_any_dimension():
    assert MEAN.dimension is None
    assert MEAN.merge([[5.0]]).tolist() == [1.0]
    assert MEAN.merge(chunk_vectors(0, 3, 700)).shape == (700,)


def test_all_means_share_a_fingerprint_that_no_calibrated_merger_has():
    assert MeanMerger().fingerprint == MEAN.fingerprint
    assert len(MEAN.fingerprint) == 16
    assert MEAN.fingerprint != CalibratedMerger(dimension=DIMENSION).fingerprint


def test_calibrating_a_mean_gives_a_calibrated_merger_of_the_samples_dimension():
    sample = chunk_vectors(0, 50, 9)
    merger = MEAN.calibrated(sample)
    assert isinstance(merger, CalibratedMerger)
    assert merger.dimension == 9
    assert merger.fingerprint == CalibratedMerger(dimension=9).calibrated(sample).fingerprint
    assert MEAN.dimension is None


def test_a_graph_of_a_mean_needs_a_dimension(tmp_path):
    with pytest.raises(InputError, match="dimension=, such as 384"):
        MEAN.export(tmp_path / "mean")


# What follows holds for every merger.


@every_merger
@given(weighted_sequences())
def test_what_comes_out_has_unit_length(merger, sequence):
    vectors, masses = sequence
    merged = merger.merge(vectors, masses=masses)
    assert merged.dtype == np.float32
    assert abs(np.linalg.norm(merged) - 1) < 1e-5


@every_merger
@given(weighted_sequences(), st.data())
def test_the_lengths_of_the_inputs_carry_no_meaning(merger, sequence, data):
    vectors, masses = sequence
    factor = st.floats(-8, 8).map(lambda exponent: 10**exponent)
    factors = data.draw(st.lists(factor, min_size=len(vectors), max_size=len(vectors)))
    scaled = vectors.astype(np.float64) * np.array(factors)[:, None]
    assert np.allclose(merger.merge(scaled, masses=masses), merger.merge(vectors, masses=masses), atol=1e-5)


@every_merger
@given(weighted_sequences(), st.sampled_from([1e-30, 1e-3, 7.0, 1e12, 1e30]))
def test_only_proportions_of_masses_matter(merger, sequence, factor):
    vectors, masses = sequence
    scaled = masses.astype(np.float64) * factor
    assert np.allclose(merger.merge(vectors, masses=scaled), merger.merge(vectors, masses=masses), atol=1e-5)


@every_merger
@given(sequences(), st.floats(0.125, 1_000, width=32))
def test_equal_masses_are_no_masses(merger, vectors, mass):
    equal = merger.merge(vectors, masses=[mass] * len(vectors))
    assert np.allclose(equal, merger.merge(vectors), atol=1e-5)


@every_merger
@given(weighted_sequences(), st.data())
def test_a_vector_given_twice_counts_as_one_of_twice_the_mass_to_a_mean_and_not_at_all_worse(
    merger, sequence, data
):
    vectors, masses = sequence
    place = data.draw(st.integers(0, len(vectors) - 1))
    twice = merger.merge([*vectors, vectors[place]], masses=[*masses, masses[place]])
    heavier = masses.copy()
    heavier[place] *= 2
    if isinstance(merger, MeanMerger):
        assert np.allclose(twice, merger.merge(vectors, masses=heavier), atol=1e-5)
    # To a ridge the number of chunks matters too, as λ stays while they grow; the direction hardly moves.
    assert cosine(twice, merger.merge(vectors, masses=heavier)) > 0.98


@every_merger
@given(ragged_batches())
def test_a_result_depends_neither_on_batch_mates_nor_on_padding(merger, batch):
    vectors, masses = batch
    together = merger.merge_many(vectors, masses=masses)
    assert (together.shape, together.dtype) == ((len(vectors), DIMENSION), np.float32)
    for row, one, mass in zip(together, vectors, masses, strict=True):
        assert np.allclose(row, merger.merge(one, masses=mass), atol=1e-5)


@every_merger
def test_a_long_batch_mate_changes_nothing(merger):
    # With the mate, the calibrated merger solves in the other form: n > d of them instead of n <= d.
    short, long = chunk_vectors(0, DIMENSION), chunk_vectors(1, DIMENSION + 2)
    masses = [np.arange(1.0, DIMENSION + 1), None]
    together = merger.merge_many([short, long], masses=masses)
    assert np.allclose(together[0], merger.merge(short, masses=masses[0]), atol=1e-6)


@every_merger
def test_rows_keep_the_order_of_the_sequences(merger):
    lengths = [7, 1, 300, 2, 40, 1, 7]
    parts = [chunk_vectors(i, length) for i, length in enumerate(lengths)]
    together = merger.merge_many(parts)
    assert np.allclose(together, [merger.merge(part) for part in parts], atol=1e-5)


@every_merger
def test_inputs_stay_as_they_are(merger):
    vectors, masses = chunk_vectors(0, 9), np.arange(1, 10, dtype=np.float32)
    copies = vectors.copy(), masses.copy()
    for array in (vectors, masses):
        array.flags.writeable = False
    merger.merge(vectors, masses=masses)
    merger.merge_many([vectors, vectors], masses=[masses, None])
    merger.contextualize(vectors, masses=masses)
    assert np.array_equal(vectors, copies[0])
    assert np.array_equal(masses, copies[1])


@every_merger
@pytest.mark.parametrize(
    ("vectors", "masses", "error", "message"),
    [
        ([], None, EmptyInputError, "at least one"),
        (np.ones(DIMENSION), None, DimensionError, r"\[None, :\]"),
        (np.full((2, DIMENSION), np.nan), None, NonFiniteError, "row 0 of 2"),
        (np.zeros((2, DIMENSION)), None, ZeroVectorError, "row 0 of 2"),
        (np.ones((2, DIMENSION)), [1, 2, 3], DimensionError, r"\(2,\).*\(3,\)"),
        (np.ones((2, DIMENSION)), [1, 0], InputError, "above 0"),
    ],
)
def test_what_cannot_be_merged_is_refused_everywhere(merger, vectors, masses, error, message):
    for attempt in (
        lambda: merger.merge(vectors, masses=masses),
        lambda: merger.merge_many([vectors], masses=[masses]),
        lambda: merger.contextualize(vectors, masses=masses),
        lambda: merger.rolling().extend(vectors, masses=masses),
    ):
        with pytest.raises(error) as caught:
            attempt()
        assert isinstance(caught.value, MergerError)
    with pytest.raises(error, match=message):
        merger.merge(vectors, masses=masses)


@every_merger
def test_no_sequences_are_refused(merger):
    with pytest.raises(EmptyInputError, match="at least one sequence"):
        merger.merge_many([])


def test_sequences_of_two_dimensions_do_not_merge_in_one_call():
    with pytest.raises(DimensionError, match=r"sequences\[1\].*5.*6"):
        MEAN.merge_many([np.ones((2, 6)), np.ones((2, 5))])


def test_vectors_that_cancel_out_are_refused_with_the_number_of_the_sequence():
    opposite = np.array([[1.0, 2.0], [-1.0, -2.0]])
    with pytest.raises(ZeroVectorError, match=r"sequence 1 .*cancel out"):
        MEAN.merge_many([[[1.0, 0.0]], opposite])


@given(st.data())
def test_what_does_not_fit_the_window_is_merged_through_the_tree(data):
    vectors = data.draw(sequences(min_size=5, max_size=40))
    masses = data.draw(masses_for(len(vectors)))
    rolling = WINDOWED_MEAN.rolling()
    rolling.extend(vectors, masses=masses)
    merged = WINDOWED_MEAN.merge_many([vectors[:3], vectors], masses=[masses[:3], masses])
    assert np.allclose(merged[1], rolling.vector, atol=1e-5)
    assert np.allclose(merged[0], WINDOWED_MEAN.merge(vectors[:3], masses=masses[:3]), atol=1e-5)
    assert WINDOWED_MEAN.fanout == 4
