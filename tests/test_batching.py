"""Checked input, and ragged sequences as padded batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merger_plugins import MergerError, _batching
from merger_plugins._batching import as_masses, as_matrix, as_vector, batches, in_runs, ragged, unit
from merger_plugins.errors import (
    DimensionError,
    EmptyInputError,
    InputError,
    NoMemoryError,
    NonFiniteError,
    ZeroVectorError,
)
from tests.strategies import chunk_vectors, normalised, ragged_batches

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize(
    "vectors",
    [
        [[1, 2], [3, 4]],
        ((1.0, 2.0), (3.0, 4.0)),
        np.array([[1, 2], [3, 4]], np.int64),
        np.array([[1, 2], [3, 4]], np.float16),
        np.array([[1, 2], [3, 4]], ">f8"),
        np.array([[1, 3], [2, 4]], np.float64).T,
        [np.array([1, 2]), np.array([3, 4])],
    ],
)
def test_whatever_numpy_reads_becomes_float32_rows(vectors):
    array = as_matrix(vectors)
    assert array.dtype == np.float32
    assert array.dtype.isnative
    assert array.tolist() == [[1, 2], [3, 4]]


def test_a_float32_array_is_not_copied_and_not_changed():
    vectors = chunk_vectors(0, 5)
    before = vectors.copy()
    assert np.shares_memory(as_matrix(vectors), vectors)
    unit(vectors)
    assert np.array_equal(vectors, before)


REFUSED = [
    ([], EmptyInputError, r"empty \(shape \(0,\)\)"),
    (np.zeros((0, 4)), EmptyInputError, r"empty \(shape \(0, 4\)\)"),
    (np.zeros((4, 0)), EmptyInputError, r"empty \(shape \(4, 0\)\)"),
    ([1.0, 2.0], DimensionError, r"shape \(2,\) arrived.*vectors\[None, :\]"),
    (np.ones((2, 3, 4)), DimensionError, r"\(n, d\).*\(2, 3, 4\)"),
    (3.0, DimensionError, r"shape \(\)"),
    ([[1.0, 2.0], [3.0]], DimensionError, "rows of one length.*list"),
    ("text", DimensionError, "numbers.*str"),
    (object(), DimensionError, "numbers.*object"),
    (np.ones((2, 5)), DimensionError, "dimension 5.*works in dimension 4"),
    ([[1, 1, 1, 1], [1, np.nan, 1, 1]], NonFiniteError, "row 1 of 2"),
    ([[1, 1, 1, -np.inf]], NonFiniteError, "row 0 of 1"),
    ([[1, 1, 1, 1e39]], NonFiniteError, "too large"),
    ([[1, 1, 1, 1e30]], NonFiniteError, "too large"),
    ([[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]], ZeroVectorError, "row 1 of 3"),
    ([[1e-30, 0, 0, 0]], ZeroVectorError, "row 0 of 1"),
    ([[0, 0, 0, 0], [1, 1, 1, np.nan]], NonFiniteError, "row 1 of 2"),
]


@pytest.mark.parametrize(("vectors", "error", "message"), REFUSED)
def test_vectors_that_cannot_be_used_are_refused_with_what_arrived(vectors, error, message):
    with pytest.raises(error, match=message) as caught:
        as_matrix(vectors, 4)
    assert isinstance(caught.value, MergerError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("scale", [1e-14, 1e18])
def test_lengths_far_from_one_are_accepted(scale):
    vectors = chunk_vectors(1, 3)
    assert np.allclose(unit(as_matrix(vectors * scale)), normalised(vectors), atol=1e-6)


def test_a_message_calls_the_vectors_by_the_name_given():
    with pytest.raises(ZeroVectorError, match=r"^pages row 0 of 1"):
        as_matrix([[0.0, 0.0]], what="pages")


@pytest.mark.parametrize(
    ("vector", "error", "message"),
    [
        ([[1.0, 2.0]], DimensionError, r"\(d,\).*\(1, 2\)"),
        (1.0, DimensionError, r"\(d,\).*\(\)"),
        ([[1.0, 2.0], [3.0]], DimensionError, "list"),
        ([], EmptyInputError, "empty"),
        ([1.0, 2.0, 3.0], DimensionError, "dimension 3.*dimension 2"),
        ([0.0, 0.0], ZeroVectorError, "length zero"),
        ([np.nan, 0.0], NonFiniteError, "NaN"),
    ],
)
def test_one_vector_that_cannot_be_used_is_refused(vector, error, message):
    with pytest.raises(error, match=message):
        as_vector(vector, 2)


def test_one_vector_is_returned_as_float32():
    vector = as_vector([3, 4], 2)
    assert (vector.dtype, vector.tolist()) == (np.float32, [3, 4])


def test_without_masses_all_are_one():
    masses = as_masses(None, 3)
    assert (masses.dtype, masses.tolist()) == (np.float32, [1, 1, 1])


@pytest.mark.parametrize(
    ("masses", "error", "message"),
    [
        ([1, 2], DimensionError, r"\(3,\).*\(2,\)"),
        ([[1], [2], [3]], DimensionError, r"\(3,\).*\(3, 1\)"),
        (7, DimensionError, r"\(3,\).*\(\)"),
        (["many", "few", "none"], DimensionError, "3 numbers"),
        ([[1, 2], [3]], DimensionError, "3 numbers"),
        ([1, np.nan, 1], NonFiniteError, "nan"),
        ([1, np.inf, 1], NonFiniteError, "inf"),
        ([1, 1e39, 1], NonFiniteError, "inf"),
        ([1, 0, 1], InputError, "hold 0;.*above 0"),
        ([1, -2.5, 1], InputError, r"hold -2\.5;.*above 0"),
    ],
)
def test_masses_that_cannot_be_used_are_refused(masses, error, message):
    with pytest.raises(error, match=message):
        as_masses(masses, 3)


def test_unit_keeps_rows_of_zeros_and_works_on_any_number_of_axes():
    vectors = chunk_vectors(2, 12).reshape(3, 4, -1)
    vectors[1, 2] = 0
    assert np.allclose(unit(vectors), normalised(vectors), atol=1e-6)
    assert not unit(vectors)[1, 2].any()


@given(ragged_batches())
def test_laying_sequences_end_to_end_keeps_them(batch):
    sequences, masses = batch
    laid = ragged(sequences, masses)
    assert sorted(laid.rows.tolist()) == list(range(len(sequences)))
    assert (np.diff(laid.lengths) >= 0).all()
    for row, start, length in zip(laid.rows, laid.starts, laid.lengths, strict=True):
        part, sequence, mass = slice(start, start + length), sequences[row], masses[row]
        assert np.array_equal(laid.vectors[part], sequence)
        assert np.array_equal(laid.masses[part], np.ones(len(sequence)) if mass is None else mass)


@pytest.mark.parametrize(
    ("sequences", "masses", "error", "message"),
    [
        ([np.ones((2, 4)), []], None, EmptyInputError, r"sequences\[1\] is empty"),
        ([np.ones((2, 4)), np.ones(4)], None, DimensionError, r"sequences\[1\]"),
        ([np.ones((2, 4)), "text"], None, DimensionError, r"sequences\[1\]"),
        ([np.ones((2, 4)), np.ones((2, 5), np.float32)], None, DimensionError, r"sequences\[1\].*5.*4"),
        ([np.ones((2, 4)), [[1, 1, 1, 1], [0, 0, 0, 0]]], None, ZeroVectorError, r"\[1\] row 1 of 2"),
        ([np.ones((3, 4)), np.ones((1, 4)), [[1, 1, 1, np.nan]]], None, NonFiniteError, r"\[2\] row 0 of 1"),
        ([[[np.inf, 1, 1, 1]], np.ones((3, 4))], None, NonFiniteError, r"\[0\] row 0 of 1"),
        ([np.ones((2, 4))], [[1, 1], [1]], DimensionError, "2 sequences arrived with 1 sequences"),
        ([np.ones((2, 4)), np.ones((1, 4))], [None, [1, 2]], DimensionError, r"\[1\].*\(1,\).*\(2,\)"),
        ([np.ones((2, 4)), np.ones((1, 4))], [[1, 0], None], InputError, r"\[0\].*above 0"),
    ],
)
def test_a_refusal_names_the_sequence(sequences, masses, error, message):
    with pytest.raises(error, match=message):
        ragged(sequences, masses)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.none() | st.integers(1, 40))
def test_batches_hold_every_sequence_once_and_pad_little(lengths, longest):
    starts = np.cumsum([0, *lengths])
    everything = chunk_vectors(3, int(starts[-1]), 5)
    weights = np.arange(1, starts[-1] + 1, dtype=np.float32)
    spans = [slice(starts[i], starts[i + 1]) for i in range(len(lengths))]
    laid = ragged([everything[span] for span in spans], [weights[span] for span in spans])
    seen = []
    for batch in batches(laid, longest):
        seen += batch.rows.tolist()
        padded = batch.mask.shape[1]
        assert batch.vectors.dtype == batch.masses.dtype == np.float32
        assert batch.vectors.shape == (len(batch.rows), padded, 5)
        assert not batch.vectors[~batch.mask].any()
        assert not batch.masses[~batch.mask].any()
        for row, vectors, mask, masses in zip(*vars(batch).values(), strict=True):
            count = lengths[row]
            assert padded - count <= count / 4 + 2
            assert mask.tolist() == [True] * count + [False] * (padded - count)
            assert np.array_equal(vectors[:count], everything[spans[row]])
            assert np.array_equal(masses[:count], weights[spans[row]])
    assert sorted(seen) == [i for i, length in enumerate(lengths) if longest is None or length <= longest]


def test_lengths_with_vectors_enough_are_not_padded_nor_copied(monkeypatch):
    monkeypatch.setattr(_batching, "ITEMS_UNPADDED", 20)
    lengths = [8, 9, 10, 8, 9, 10, 10, 9]
    laid = ragged([chunk_vectors(i, length) for i, length in enumerate(lengths)])
    shapes = [(batch.mask.shape, bool(batch.mask.all())) for batch in batches(laid)]
    assert shapes == [((8, 10), False)]
    laid = ragged([chunk_vectors(i, length) for i, length in enumerate(lengths + lengths)])
    for batch in batches(laid):
        assert batch.mask.all()
        assert np.shares_memory(batch.vectors, laid.vectors)


def test_a_batch_is_bounded_and_a_longer_sequence_comes_alone():
    lengths = [5] * 9 + [30, 31]
    laid = ragged([chunk_vectors(i, length) for i, length in enumerate(lengths)])
    sizes = [batch.mask.shape for batch in batches(laid, most=20)]
    assert sizes == [(4, 5), (4, 5), (1, 5), (1, 30), (1, 31)]


@given(st.integers(1, 60), st.integers(1, 80), st.integers(1, 80))
def test_runs_are_halved_until_they_fit_and_give_every_row_once(count, at_once, room):
    rows = np.arange(count, dtype=np.float32)[:, None]
    sizes, told = [], []

    def call(part):
        size = part.stop - part.start
        if size > room:
            raise NoMemoryError(f"{size} of {room}")
        sizes.append(size)
        return rows[part]

    assert np.array_equal(in_runs(count, at_once, call, told.append), rows)
    assert max(sizes) <= min(at_once, room)
    assert told == sorted(told, reverse=True)
    assert max(sizes) * 2 >= min(at_once, room, count)  # not smaller than they need be
    assert bool(told) == (min(at_once, count) > room)


@given(ragged_batches(), st.integers(1, 60))
def test_parts_hold_every_sequence_once_and_no_more_than_they_may(batch, most):
    whole = ragged(*batch)
    parts = list(whole.parts(most))
    for name in ("vectors", "masses", "lengths", "rows"):
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
    for part in parts:
        assert len(part.vectors) == len(part.masses) == part.lengths.sum()
        assert len(part.vectors) <= most or len(part.lengths) == 1
        assert np.shares_memory(part.vectors, whole.vectors)


def test_no_room_for_a_single_row_is_an_error():
    def call(part):
        raise NoMemoryError(f"no room for {part}")

    with pytest.raises(NoMemoryError, match=r"slice\(0, 1"):
        in_runs(5, 4, call, lambda _: None)
