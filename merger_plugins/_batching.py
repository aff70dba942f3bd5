"""Checked input, and ragged sequences as padded arrays and masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from merger_plugins._types import MassesLike, Matrix, MatrixLike, Vector, VectorLike
from merger_plugins.errors import (
    DimensionError,
    EmptyInputError,
    InputError,
    NoMemoryError,
    NonFiniteError,
    ZeroVectorError,
)

_FLOAT32 = np.dtype(np.float32)

_SMALLEST = 1e-30
"""A squared length below this is zero: float32 cannot normalise it."""

ITEMS_PER_BATCH = 16_384
"""Chunk vectors, padding included, that one batch holds at the most: 24 MB at 384 dimensions."""

ITEMS_UNPADDED = 256
"""Chunk vectors in sequences of one length that make a batch of their own; fewer may be padded."""


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
    array = as_floats(vectors, f"{what} must be an (n, d) array of numbers, with rows of one length")
    if array.ndim in (1, 2) and array.size == 0:
        raise EmptyInputError(f"{what} is empty (shape {array.shape}); at least one vector is needed.")
    if array.ndim != 2:
        hint = " For one vector pass vectors[None, :]." if array.ndim == 1 else ""
        raise DimensionError(f"{what} must have shape (n, d); an array of shape {array.shape} arrived.{hint}")
    if dimension is not None and array.shape[1] != dimension:
        raise DimensionError(
            f"{what} has dimension {array.shape[1]}, and this merger works in dimension {dimension}. "
            "Use the embedding model that the merger was made for, or calibrate a merger on these vectors."
        )
    _check_rows(array, lambda row: f"{what} row {row} of {len(array)}")
    return array


def as_floats(values: object, expected: str) -> NDArray[np.float32]:
    """Numbers as a float32 array; `expected` begins the message of the `DimensionError` for anything else."""
    if isinstance(values, np.ndarray) and values.dtype == np.float32:
        return values
    try:
        with np.errstate(over="ignore"):  # what overflows becomes infinity, which is refused by name
            array: NDArray[np.float32] = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise DimensionError(
            f"{expected}; a {type(values).__name__} arrived that numpy cannot read as one ({error})."
        ) from error
    return array


def _check_rows(array: Matrix, name: Callable[[int], str]) -> None:
    squared = np.einsum("nd,nd->n", array, array)
    if squared.min() > _SMALLEST and squared.max() < np.inf:
        return
    finite = np.isfinite(array).all(axis=1) & np.isfinite(squared)
    if not finite.all():
        raise NonFiniteError(
            f"{name(int(np.argmin(finite)))} holds NaN, infinity or a number too large to square in float32. "
            "Embed that text again, or leave it out."
        )
    raise ZeroVectorError(
        f"{name(int(np.argmin(squared)))} has length zero, so it has no direction. "
        "Leave it out: an embedding model gives a zero vector only for broken input."
    )


def as_vector(vector: VectorLike, dimension: int | None = None, *, what: str = "vector") -> Vector:
    """Check one vector and return it as (d,) float32; raises as `as_matrix`."""
    array = as_floats(vector, f"{what} must be a (d,) array of numbers")
    if array.ndim != 1:
        raise DimensionError(f"{what} must have shape (d,); an array of shape {array.shape} arrived.")
    row: Vector = as_matrix(array[None, :], dimension, what=what)[0]
    return row


def as_masses(masses: MassesLike | None, count: int) -> Vector:
    """Check the masses of `count` vectors and return them as (count,) float32; all 1 for None.

    Raises:
        DimensionError: no numbers, or another number of masses than of vectors.
        NonFiniteError: NaN or infinity.
        InputError: a mass of zero or below.
    """
    if masses is None:
        return np.ones(count, np.float32)
    array = as_floats(masses, f"masses must be an array of {count} numbers, one a vector")
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


def lengths(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """(..., d) -> (..., 1) the length of each row, 1 for a row of zeros: a divisor."""
    found: NDArray[np.float32] = np.sqrt(np.einsum("...d,...d->...", vectors, vectors))[..., None]
    found[found == 0] = 1
    return found


def unit(vectors: Matrix) -> Matrix:
    """Rows divided by their length; a row of length zero stays as it is."""
    normalised: Matrix = vectors / lengths(vectors)
    return normalised


@dataclass(frozen=True)
class Ragged:
    """Sequences of different lengths, end to end, short ones first.

    Attributes:
        vectors: (N, d) float32.
        masses: (N,) float32.
        lengths: (b,) how many vectors each sequence has, ascending.
        rows: (b,) where each sequence stood in the input.
    """

    vectors: Matrix
    masses: Vector
    lengths: NDArray[np.intp]
    rows: NDArray[np.intp]

    @property
    def starts(self) -> NDArray[np.intp]:
        """(b,) where each sequence begins."""
        starts: NDArray[np.intp] = np.cumsum(self.lengths) - self.lengths
        return starts

    @property
    def shape(self) -> tuple[int, int]:
        """(b, d) of their merges."""
        return len(self.lengths), self.vectors.shape[1]

    def parts(self, most: int) -> Iterator[Ragged]:
        """The same sequences in parts of at most so many vectors, or of one longer sequence; no copies."""
        ends = np.cumsum(self.lengths)
        start, begin = 0, 0
        while start < len(ends):
            stop = max(int(np.searchsorted(ends, begin + most, side="right")), start + 1)
            end = int(ends[stop - 1])
            vectors, masses = self.vectors[begin:end], self.masses[begin:end]
            yield Ragged(vectors, masses, self.lengths[start:stop], self.rows[start:stop])
            start, begin = stop, end


def ragged(
    sequences: Sequence[MatrixLike],
    masses: Sequence[MassesLike | None] | None = None,
    dimension: int | None = None,
) -> Ragged:
    """Check a list of sequences and their masses, and lay them end to end, short ones first.

    Raises:
        InputError: as `as_matrix` and `as_masses`, naming the sequence; or masses for another number of
            sequences, or sequences of different dimensions.
    """
    if masses is not None and len(masses) != len(sequences):
        raise DimensionError(f"masses for {len(masses)} sequences arrived with {len(sequences)} sequences.")
    arrays = []
    for index, sequence in enumerate(sequences):
        array = sequence
        if not isinstance(array, np.ndarray) or array.dtype != _FLOAT32:
            array = as_floats(sequence, f"sequences[{index}] must be an (n, d) array of numbers")
        shape = array.shape
        if len(shape) != 2 or 0 in shape or (dimension is not None and shape[1] != dimension):
            as_matrix(array, dimension, what=f"sequences[{index}]")  # says what is wrong with it
        dimension = shape[1]
        arrays.append(array)
    lengths = np.array([len(array) for array in arrays], np.intp)
    rows = np.argsort(lengths, kind="stable")
    order = rows.tolist()
    lengths = lengths[rows]
    vectors = np.concatenate([arrays[row] for row in order])

    def name(row: int) -> str:
        index = int(np.searchsorted(np.cumsum(lengths), row, side="right"))
        return f"sequences[{rows[index]}] row {row - int(lengths[:index].sum())} of {lengths[index]}"

    _check_rows(vectors, name)
    if masses is None:
        return Ragged(vectors, np.ones(len(vectors), np.float32), lengths, rows)
    weights = []
    for index, (mass, array) in enumerate(zip(masses, arrays, strict=True)):
        try:
            weights.append(as_masses(mass, len(array)))
        except InputError as error:
            raise type(error)(f"sequences[{index}]: {error}") from None
    return Ragged(vectors, np.concatenate([weights[row] for row in order]), lengths, rows)


def spanned(vectors: Matrix, masses: Vector, spans: NDArray[np.int64]) -> Ragged:
    """The rows start to stop of each of these spans, (b, 2), as a sequence each."""
    lengths = spans[:, 1] - spans[:, 0]
    order = np.argsort(lengths, kind="stable")
    lengths = lengths[order]
    ends = np.cumsum(lengths)
    rows = np.arange(ends[-1]) + np.repeat(spans[order, 0] - (ends - lengths), lengths)
    return Ragged(vectors[rows], masses[rows], lengths, order)


@dataclass(frozen=True)
class Batch:
    """Sequences of one length, or of similar length and padded.

    Attributes:
        rows: (b,) where each sequence stood in the input.
        vectors: (b, n, d) float32, zero where padded; not a copy where nothing is padded.
        mask: (b, n) bool, False where padded.
        masses: (b, n) float32, zero where padded.
    """

    rows: NDArray[np.intp]
    vectors: NDArray[np.float32]
    mask: NDArray[np.bool_]
    masses: NDArray[np.float32]


def batches(sequences: Ragged, longest: int | None = None, *, most: int = ITEMS_PER_BATCH) -> Iterator[Batch]:
    """Batches of one or similar lengths; each sequence of at most `longest` vectors is in exactly one.

    A batch holds at most `most` vectors, padding included, or one sequence where that alone is longer.
    Lengths that have `ITEMS_UNPADDED` vectors are not padded, and no sequence is by more than a quarter of
    its length.
    """
    lengths, starts = sequences.lengths, sequences.starts
    end = len(lengths) if longest is None else int(np.searchsorted(lengths, longest, side="right"))
    start = 0
    while start < end:
        least = int(lengths[start])
        stop = int(np.searchsorted(lengths[:end], least, side="right"))
        if (stop - start) * least < ITEMS_UNPADDED:
            stop = int(np.searchsorted(lengths[:end], least * 5 // 4, side="right"))
        if (stop - start) * lengths[stop - 1] > most:
            items = lengths[start:stop] * np.arange(1, stop - start + 1)
            stop = start + max(int(np.searchsorted(items, most, side="right")), 1)
        span = slice(int(starts[start]), int(starts[stop - 1] + lengths[stop - 1]))
        yield _padded(
            sequences.rows[start:stop], lengths[start:stop], sequences.vectors[span], sequences.masses[span]
        )
        start = stop


def in_runs(
    count: int, at_once: int, call: Callable[[slice], Matrix], on_halving: Callable[[int], None]
) -> Matrix:
    """The rows of `count` things, some at a time: half as many from where memory runs out.

    Args:
        count: at least 1.
        at_once: how many to begin with, at least 1.
        call: gives the rows of a slice of them, or raises `NoMemoryError`.
        on_halving: is told how many are taken at once from there on.

    Raises:
        NoMemoryError: there is no room for a single one.
    """
    parts: list[Matrix] = []
    start = 0
    while start < count:
        part = slice(start, min(start + at_once, count))
        try:
            parts.append(call(part))
        except NoMemoryError:
            if part.stop - start == 1:
                raise
            at_once = (part.stop - start) // 2
            on_halving(at_once)
        else:
            start = part.stop
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _padded(rows: NDArray[np.intp], lengths: NDArray[np.intp], vectors: Matrix, masses: Vector) -> Batch:
    shape = (len(rows), int(lengths[-1]))
    if lengths[0] == lengths[-1]:
        mask = np.ones(shape, np.bool_)
        return Batch(rows, vectors.reshape(*shape, -1), mask, masses.reshape(shape))
    mask = np.arange(shape[1]) < lengths[:, None]
    batch = Batch(rows, np.zeros((*shape, vectors.shape[1]), np.float32), mask, np.zeros(shape, np.float32))
    batch.vectors[mask], batch.masses[mask] = vectors, masses
    return batch
