"""Checked input, and ragged sequences as padded arrays and masks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from merger_plugins._types import MassesLike, Matrix, MatrixLike, Vector, VectorLike
from merger_plugins.errors import DimensionError, EmptyInputError, InputError, NonFiniteError, ZeroVectorError

ITEMS_PER_BATCH = 16_384
"""Chunk vectors, padding included, that one batch holds at the most: 24 MB at 384 dimensions."""


def as_matrix(vectors: MatrixLike, dimension: int | None = None, *, what: str = "vectors") -> Matrix:
    """Check chunk vectors and return them as a (n, d) float32 array (a view where it can be).

    Args:
        vectors: (n, d), n at least 1.
        dimension: the d that is expected; None for any.
        what: how a message calls them.

    Raises:
        EmptyInputError: n or d is 0.
        DimensionError: not two-dimensional, rows of unequal length, or another d.
        NonFiniteError: NaN or infinity.
        ZeroVectorError: a row of length zero.
    """
    try:
        array = np.asarray(vectors, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise DimensionError(
            f"{what} must be an (n, d) array of numbers, with rows of one length; "
            f"a {type(vectors).__name__} arrived that numpy cannot read as one ({error})."
        ) from error
    if array.ndim == 2 and array.size == 0 or array.ndim == 1 and array.size == 0:
        raise EmptyInputError(f"{what} is empty (shape {array.shape}); at least one vector is needed.")
    if array.ndim != 2:
        hint = " For one vector pass vectors[None, :]." if array.ndim == 1 else ""
        raise DimensionError(f"{what} must have shape (n, d); an array of shape {array.shape} arrived.{hint}")
    if dimension is not None and array.shape[1] != dimension:
        raise DimensionError(
            f"{what} has dimension {array.shape[1]}, and this merger works in dimension {dimension}. "
            "Use the embedding model that the merger was made for, or calibrate a merger on these vectors."
        )
    squared = np.einsum("nd,nd->n", array, array, dtype=np.float64)
    finite = np.isfinite(squared)
    if not finite.all():
        raise NonFiniteError(
            f"{what} row {int(np.argmin(finite))} of {len(array)} holds NaN, infinity or a number too large "
            "for float32. Embed that text again, or leave it out."
        )
    if not squared.all():
        raise ZeroVectorError(
            f"{what} row {int(np.argmin(squared))} of {len(array)} has length zero, so it has no direction. "
            "Leave it out: an embedding model gives a zero vector only for broken input."
        )
    return array


def as_vector(vector: VectorLike, dimension: int | None = None, *, what: str = "vector") -> Vector:
    """Check one vector and return it as (d,) float32; raises as `as_matrix`."""
    array = np.asarray(vector)
    if array.ndim != 1:
        raise DimensionError(f"{what} must have shape (d,); an array of shape {array.shape} arrived.")
    return as_matrix(array[None, :], dimension, what=what)[0]


def as_masses(masses: MassesLike | None, count: int) -> Vector:
    """Check the masses of `count` vectors and return them as (count,) float32; all 1 for None.

    Raises:
        DimensionError: another number of masses than of vectors.
        NonFiniteError: NaN or infinity.
        InputError: a mass of zero or below.
    """
    if masses is None:
        return np.ones(count, np.float32)
    array = np.asarray(masses, dtype=np.float32)
    if array.shape != (count,):
        raise DimensionError(f"masses must have shape ({count},), one a vector; {array.shape} arrived.")
    if not np.isfinite(array).all():
        raise NonFiniteError(f"masses hold {array[~np.isfinite(array)][0]}; each must be a positive number.")
    if (array <= 0).any():
        raise InputError(
            f"masses hold {array.min():g}; each must be above 0. A mass is a number of tokens: leave out "
            "vectors that stand for no text."
        )
    return array


def unit(vectors: Matrix) -> Matrix:
    """Rows divided by their length; a row of length zero stays as it is."""
    lengths = np.sqrt(np.einsum("...d,...d->...", vectors, vectors))[..., None]
    return np.divide(vectors, lengths, out=vectors.copy(), where=lengths > 0)


@dataclass(frozen=True)
class Batch:
    """Sequences of similar length, padded.

    Attributes:
        rows: (b,) where each sequence stood in the input.
        vectors: (b, n, d) float32, zero where padded.
        mask: (b, n) bool, False where padded.
        masses: (b, n) float32, zero where padded.
    """

    rows: NDArray[np.intp]
    vectors: NDArray[np.float32]
    mask: NDArray[np.bool_]
    masses: NDArray[np.float32]


def ragged(
    sequences: Sequence[MatrixLike],
    masses: Sequence[MassesLike | None] | None = None,
    dimension: int | None = None,
) -> tuple[list[Matrix], list[Vector]]:
    """Check a list of sequences and their masses, and return both as arrays.

    Raises:
        InputError: as `as_matrix` and `as_masses`, naming the sequence; or masses for another number of
            sequences, or sequences of different dimensions.
    """
    if masses is not None and len(masses) != len(sequences):
        raise DimensionError(f"masses for {len(masses)} sequences arrived with {len(sequences)} sequences.")
    checked, weights = [], []
    for index, sequence in enumerate(sequences):
        array = as_matrix(sequence, dimension, what=f"sequences[{index}]")
        dimension = array.shape[1]
        checked.append(array)
        weights.append(as_masses(masses[index] if masses is not None else None, len(array)))
    return checked, weights


def batches(sequences: Sequence[Matrix], masses: Sequence[Vector]) -> Iterator[Batch]:
    """Padded batches of similar length; each sequence is in exactly one.

    A batch holds at most `ITEMS_PER_BATCH` vectors, or one sequence where that alone is longer, and no
    sequence in it is padded by more than a quarter of its length plus two.
    """
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.intp)
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        shortest = lengths[order[start]]
        longest = shortest + shortest // 4 + 2
        stop = start + 1
        while (
            stop < len(order)
            and lengths[order[stop]] <= longest
            and lengths[order[stop]] * (stop + 1 - start) <= ITEMS_PER_BATCH
        ):
            stop += 1
        yield _padded(order[start:stop], sequences, masses)
        start = stop


def _padded(rows: NDArray[np.intp], sequences: Sequence[Matrix], masses: Sequence[Vector]) -> Batch:
    longest = len(sequences[rows[-1]])
    vectors = np.zeros((len(rows), longest, sequences[rows[0]].shape[1]), np.float32)
    mask = np.zeros((len(rows), longest), np.bool_)
    padded_masses = np.zeros((len(rows), longest), np.float32)
    for index, row in enumerate(rows):
        count = len(sequences[row])
        vectors[index, :count] = sequences[row]
        mask[index, :count] = True
        padded_masses[index, :count] = masses[row]
    return Batch(rows, vectors, mask, padded_masses)
