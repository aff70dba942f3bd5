"""Statistics of one collection's chunk vectors, gathered in one pass and shrunk where they are few."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from merger_plugins._artefact import dump_tensors, load_tensors
from merger_plugins._batching import as_floats, as_matrix, unit
from merger_plugins._types import MatrixLike
from merger_plugins.errors import ArtefactError, DimensionError, EmptyInputError

Float64 = NDArray[np.float64]

_BLOCK = 8_192
_NO_VECTORS = "These statistics hold no vectors; add the collection's with update()."


class CalibrationStatistics:
    """Sums over chunk vectors from which a calibration is made: one pass, constant memory, mergeable.

    Holds the number of vectors and of sequences, the sum, the sum of outer products, and the outer product of
    each sequence's sum over its length: (d,) and (d, d) float64 however many vectors were seen. Adding two
    statistics gives those of both collections, so that parts can be gathered on different machines.
    """

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.vectors = 0
        self.sequences = 0
        self._sum = np.zeros(dimension)
        self._outer = np.zeros((dimension, dimension))
        self._between = np.zeros((dimension, dimension))

    @classmethod
    def of(cls, sample: MatrixLike | Iterable[MatrixLike], dimension: int | None = None) -> Self:
        """Gather the statistics of a sample, read once.

        Args:
            sample: (n, d) vectors of which nothing is known but that they belong to the collection, or an
                iterable of sequences (n_i, d), one a document, which is better: the spread inside documents
                serves a merger better than that of the whole.
            dimension: the d that is expected; None for any.

        Raises:
            InputError: an empty sample, or vectors that `SequenceMerger.merge` would refuse.
        """
        if isinstance(sample, np.ndarray):
            if sample.ndim == 2:
                statistics = cls(as_matrix(sample[:1], dimension, what="sample").shape[1])
                for start in range(0, len(sample), _BLOCK):
                    statistics.update(sample[start : start + _BLOCK], one_sequence=False)
                return statistics
            raise DimensionError(f"sample must have shape (n, d); an array of shape {sample.shape} arrived.")
        gathered: Self | None = None

        def add(block: MatrixLike, *, one_sequence: bool) -> None:
            nonlocal gathered
            if gathered is None:
                gathered = cls(as_matrix(block, dimension, what="sample").shape[1])
            gathered.update(block, one_sequence=one_sequence)

        loose: list[NDArray[np.float32]] = []
        for item in sample:
            array = as_floats(item, "sample must hold (n_i, d) sequences, or (d,) vectors, of numbers")
            if array.ndim == 1:
                loose.append(array)
            else:
                add(array, one_sequence=True)
            if len(loose) == _BLOCK:
                add(loose, one_sequence=False)
                loose = []
        if loose:
            add(loose, one_sequence=False)
        if gathered is None:
            raise EmptyInputError("sample is empty; pass the chunk vectors that the collection holds.")
        return gathered

    def update(self, vectors: MatrixLike, *, one_sequence: bool = True) -> None:
        """Add vectors.

        Args:
            vectors: (n, d), any length above zero.
            one_sequence: whether they are the chunks of one document; otherwise each stands alone.

        Raises:
            InputError: as `SequenceMerger.merge`.
        """
        array = unit(as_matrix(vectors, self.dimension, what="sample"))
        total = array.sum(axis=0, dtype=np.float64)
        outer = np.zeros_like(self._outer)
        for start in range(0, len(array), _BLOCK):
            # In float32, rounding would pass for spread where a collection has little of it.
            block = array[start : start + _BLOCK].astype(np.float64)
            outer += block.T @ block
        self._sum += total
        self._outer += outer
        self._between += np.outer(total, total) / len(array) if one_sequence else outer
        self.vectors += len(array)
        self.sequences += 1 if one_sequence else len(array)

    def update_many(self, vectors: MatrixLike, lengths: ArrayLike) -> None:
        """Add many sequences at once, much faster than one by one where they are short.

        Args:
            vectors: (n, d), the sequences one after another.
            lengths: (s,) how many vectors each has, each above zero; n in all.

        Raises:
            InputError: as `SequenceMerger.merge`, or lengths that do not fit.
        """
        array = unit(as_matrix(vectors, self.dimension, what="sample"))
        counts = np.asarray(lengths, np.int64)
        if counts.ndim != 1 or not len(counts) or counts.min() < 1 or counts.sum() != len(array):
            raise DimensionError(
                f"lengths must be numbers from 1 on that add up to the {len(array)} vectors; they add up to "
                f"{int(counts.sum())}."
            )
        starts = np.cumsum(counts) - counts
        totals = np.add.reduceat(array, starts, axis=0, dtype=np.float64)
        self._sum += totals.sum(axis=0)
        totals /= np.sqrt(counts)[:, None]
        for rows, sums in ((array, self._outer), (totals, self._between)):
            for start in range(0, len(rows), _BLOCK):
                # In float32, rounding would pass for spread where a collection has little of it.
                block = rows[start : start + _BLOCK].astype(np.float64)
                sums += block.T @ block
        self.vectors += len(array)
        self.sequences += len(counts)

    def add_part(self, vectors: MatrixLike) -> Float64:
        """Add vectors of a sequence that comes in parts, to be completed with `end_sequence`.

        Args:
            vectors: (n, d), any length above zero.

        Returns:
            (d,) the sum of the unit vectors.

        Raises:
            InputError: as `SequenceMerger.merge`.
        """
        array = unit(as_matrix(vectors, self.dimension, what="sample"))
        for start in range(0, len(array), _BLOCK):
            # In float32, rounding would pass for spread where a collection has little of it.
            block = array[start : start + _BLOCK].astype(np.float64)
            self._outer += block.T @ block
        total: Float64 = array.sum(axis=0, dtype=np.float64)
        self._sum += total
        self.vectors += len(array)
        return total

    def end_sequence(self, total: Float64, count: int) -> None:
        """Complete a sequence of `count` vectors, whose parts' sums make this (d,) total."""
        self._between += np.outer(total, total) / count
        self.sequences += 1

    def __add__(self, other: Self) -> Self:
        if other.dimension != self.dimension:
            raise DimensionError(
                f"Statistics of dimension {self.dimension} and {other.dimension} cannot be added."
            )
        both = type(self)(self.dimension)
        for part in (self, other):
            both.vectors += part.vectors
            both.sequences += part.sequences
            both._sum += part._sum
            both._outer += part._outer
            both._between += part._between
        return both

    def copy(self) -> Self:
        """The same statistics, to which adding leaves these as they are."""
        return type(self)(self.dimension) + self

    @property
    def mean(self) -> Float64:
        """(d,) the mean of the unit vectors; raises `EmptyInputError` where none was added."""
        if not self.vectors:
            raise EmptyInputError(_NO_VECTORS)
        mean: Float64 = self._sum / self.vectors
        return mean

    @property
    def second_moment(self) -> Float64:
        """(d, d) the mean outer product of the unit vectors; raises as `mean`."""
        if not self.vectors:
            raise EmptyInputError(_NO_VECTORS)
        moment: Float64 = self._outer / self.vectors
        return moment

    @property
    def covariance(self) -> Float64:
        """(d, d): pooled inside sequences as far as they have several vectors, else of the whole.

        The spread inside documents is what hides a document's subject from a query, so it is what whitening
        should even out (within-class covariance normalisation, Hatch et al. 2006). A sample of s sequences
        and n vectors leaves n - s degrees of freedom for it; the whole covariance fills in for the rest.
        """
        mean = self.mean
        whole = self.second_moment - np.outer(mean, mean)
        inside = self.vectors - self.sequences
        if not inside:
            return whole
        share = inside / self.vectors
        covariance: Float64 = share * (self._outer - self._between) / inside + (1 - share) * whole
        return covariance

    def to_bytes(self) -> bytes:
        """The statistics as a safetensors file."""
        return dump_tensors(
            {
                "counts": np.array([self.vectors, self.sequences], np.int64),
                "sum": self._sum,
                "outer": self._outer,
                "between": self._between,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            ArtefactError: it is damaged.
        """
        tensors = load_tensors(data)
        try:
            statistics = cls(len(tensors["sum"]))
            statistics.vectors, statistics.sequences = (int(count) for count in tensors["counts"])
            statistics._sum, statistics._outer, statistics._between = (
                tensors[name] for name in ("sum", "outer", "between")
            )
        except (KeyError, ValueError, TypeError) as error:
            raise ArtefactError(f"These are no calibration statistics: {error}.") from error
        square = (statistics.dimension, statistics.dimension)
        if (statistics._outer.shape, statistics._between.shape) != (square, square):
            raise ArtefactError(
                f"These are no calibration statistics: sums of outer products of shapes "
                f"{statistics._outer.shape} and {statistics._between.shape}, where {square} was expected."
            )
        return statistics


class MixedStatistics:
    """Gathers `CalibrationStatistics` of sequences whose vectors come mixed, as long as these are few.

    Args:
        dimension: d.
        most: how many sequences to hold the sums of, (most, d) float64.

    Attributes:
        vectors: how many were added.
        whole: whether the sums of all sequences could be held.
    """

    def __init__(self, dimension: int, most: int) -> None:
        self.dimension = dimension
        self.vectors = 0
        self.whole = True
        self._rows: dict[str, int] = {}
        self._totals = np.zeros((most, dimension))
        self._counts = np.zeros(most, np.int64)
        self._outer = np.zeros((dimension, dimension))

    def add(self, vectors: MatrixLike, names: Sequence[str]) -> None:
        """Add vectors.

        Args:
            vectors: (n, d), any length above zero.
            names: the sequence of each.

        Raises:
            InputError: as `SequenceMerger.merge`.
        """
        if not self.whole or not len(names):
            return
        rows = np.array([self._rows.setdefault(name, len(self._rows)) for name in names])
        if len(self._rows) > len(self._counts):
            self.whole, self._totals, self._rows = False, self._totals[:0].copy(), {}
            return
        order = np.argsort(rows, kind="stable")
        rows = rows[order]
        # In float32, rounding would pass for spread where a collection has little of it.
        array = unit(as_matrix(vectors, self.dimension, what="sample"))[order].astype(np.float64)
        starts = np.flatnonzero(np.diff(rows, prepend=-1))
        self._totals[rows[starts]] += np.add.reduceat(array, starts, axis=0)
        self._counts[rows[starts]] += np.diff(starts, append=len(rows))
        self._outer += array.T @ array
        self.vectors += len(array)

    def statistics(self) -> CalibrationStatistics:
        """What was gathered; where not `whole`, of no use."""
        count = len(self._rows)
        totals = self._totals[:count]
        made = CalibrationStatistics(self.dimension)
        made.vectors, made.sequences = self.vectors, count
        made._sum += totals.sum(axis=0)
        made._outer += self._outer
        for start in range(0, count, _BLOCK):
            block = totals[start : start + _BLOCK]
            block = block / np.sqrt(self._counts[start : start + len(block)])[:, None]
            made._between += block.T @ block
        return made


@dataclass(frozen=True)
class Background:
    """What is known of an embedding model's chunk vectors before any collection was seen.

    Attributes:
        second_moment: (d, d) float64, the mean outer product of unit chunk vectors of many subjects.
        informed: False where nothing is known: a scaled identity.
    """

    second_moment: Float64
    informed: bool = True

    @classmethod
    def ignorant(cls, dimension: int) -> Self:
        """The background of an embedding model of which nothing is known."""
        return cls(np.eye(dimension) / dimension, informed=False)

    def to_bytes(self) -> bytes:
        """The background as a safetensors file, in float32."""
        return dump_tensors({"second_moment": self.second_moment.astype(np.float32)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            ArtefactError: it is damaged.
        """
        tensors = load_tensors(data)
        if set(tensors) != {"second_moment"} or tensors["second_moment"].ndim != 2:
            raise ArtefactError(f"This is no background: it holds {sorted(tensors)}, not a second moment.")
        return cls(tensors["second_moment"].astype(np.float64))


SHRINKAGE, WORTH_LEAST, WORTH_MOST = 30, 30.0, 2_000.0
"""The background counts for 30 times what Ledoit and Wolf's estimate gives it, within these bounds: that
minimises the error of the largest eigenvalues, and whitening divides by the smallest."""

MEAN_WORTH = 3_000
"""As many vectors as a mean of zero counts for: half-way centring, balanced in the covariance, ranks best."""

POWER_LEAST, POWER_GAIN, POWER_HALF = 0.48, 0.06, 3_000
"""P is the covariance to the power -p; p grows from 0.48 to 0.54 with the vectors, half of it at 3,000."""

RIDGE_LARGE, RIDGE_GAIN, RIDGE_HALF = 0.003, 0.012, 200
"""What is added to every eigenvalue, over the largest: 0.015 for few vectors, down to 0.003 for many."""


@dataclass(frozen=True)
class Calibration:
    """A mean and a whitening transform, both shrunk as far as the vectors they come from are few.

    Attributes:
        mean: (d,) float64, m in the formulas.
        whitening: (d, d) float64, symmetric, P in the formulas.
        vectors: how many chunk vectors they come from.
    """

    mean: Float64
    whitening: Float64
    vectors: int

    @classmethod
    def shrunk(cls, statistics: CalibrationStatistics | None, background: Background) -> Self:
        """The calibration of a collection of n vectors.

        The mean is shrunk towards zero, m = n / (n + 3000) times the collection's, and the covariance is
        taken about m, so that what m leaves of the mean is evened out like any other direction. It is
        S = (1 - w) C + w B with w = b / (b + n), B the background's second moment, or an identity of C's
        trace where the model is unknown, and b as many vectors as B is worth here (`background_worth`).
        P = (S + r λ₁ I)^-p with λ₁ its largest eigenvalue; p is about a half, and r is 0.003 for a large
        collection and nears 0.015 for a small one: directions in which few vectors spread little are
        evened out less.
        """
        count = statistics.vectors if statistics else 0
        mean = np.zeros(len(background.second_moment))
        covariance = background.second_moment
        if statistics:
            mean = statistics.mean * count / (count + MEAN_WORTH)
            offset = statistics.mean - mean
            own = statistics.covariance + np.outer(offset, offset)
            if not background.informed:
                covariance = covariance * float(np.trace(own))
            worth = background_worth(statistics, background)
            weight = worth / (worth + count)
            covariance = (1 - weight) * own + weight * covariance
        values, vectors = np.linalg.eigh(covariance)
        power = POWER_LEAST + POWER_GAIN * count / (count + POWER_HALF)
        ridge = RIDGE_LARGE + RIDGE_GAIN * RIDGE_HALF / (count + RIDGE_HALF)
        scales = (np.maximum(values, 0) + ridge * values[-1]) ** -power
        whitening = (vectors * (scales / scales.mean())) @ vectors.T
        return cls(mean, whitening, count)


def background_worth(statistics: CalibrationStatistics, background: Background) -> float:
    """As many vectors as the background counts for beside those of a collection, whose number is n.

    Linear shrinkage of the second moment M towards B has the least expected squared error where B counts for
    E|x xᵀ - M|² / |Σ - B|² vectors, Σ what M estimates (Ledoit and Wolf 2004). For unit vectors the numerator
    is 1 - |M|², and |M - B|² exceeds the denominator by 1 / n of it. So a background that fits counts for
    much, and one of another language or kind of text, where it would mislead, for little.
    """
    moment = statistics.second_moment
    noise = max(1.0 - float(np.sum(moment**2)), 0.0)
    distance = float(np.sum((moment - background.second_moment) ** 2)) - noise / statistics.vectors
    if distance <= 0:
        return WORTH_MOST
    return float(np.clip(SHRINKAGE * noise / distance, WORTH_LEAST, WORTH_MOST))
