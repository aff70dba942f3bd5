"""Small closed forms that mergers are compared with, each as a `SequenceMerger`.

Formulas are over the unit chunk vectors x_i of a sequence and their masses g_i; all results are normalised.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from merger_plugins._artefact import fingerprint_of
from merger_plugins._batching import Batch, Ragged, as_masses, as_matrix, unit
from merger_plugins._nodes import Nodes
from merger_plugins._types import MassesLike, Matrix, MatrixLike, Vector, VectorLike
from merger_plugins.errors import InputError
from merger_plugins.mergers.base import SequenceMerger, Strategy
from merger_plugins.mergers.calibration import CalibrationStatistics

Pool = Callable[[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]], Matrix]
"""Unit vectors (b, n, d), mask and masses (b, n), both zero where padded -> (b, d) of any length."""

WHITENING_RIDGE = 0.003
"""What is added to every eigenvalue of the covariance, over the largest one."""


class RivalMerger(SequenceMerger):
    """A merger that takes part in measurements and is never stored.

    Args:
        name: what it is called; tells its fingerprint from others.
        sample: statistics that it holds, part of the fingerprint; the first one's length is its dimension.
    """

    def __init__(self, name: str, sample: Sequence[NDArray[np.float64]] = ()) -> None:
        self.name = name
        self.dimension = len(sample[0]) if sample else None
        self.window = None
        self.fingerprint = fingerprint_of(
            {"kind": "rival", "name": name}, {str(index): part.tobytes() for index, part in enumerate(sample)}
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Not possible: there is no model to write."""
        self._refuse(folder)

    def export(self, folder: str | os.PathLike[str]) -> Path:
        """Not possible: there is no model to write."""
        self._refuse(folder)

    def _refuse(self, folder: str | os.PathLike[str]) -> NoReturn:
        raise InputError(
            f"{self.name!r} is a rival of the benchmark, which no application loads: nothing was written to "
            f"{os.fspath(folder)}."
        )


class SummedMerger(RivalMerger):
    """Merges by a sum in a space of its own: exactly associative, as nodes of the tree carry the sums.

    Args:
        name: as `RivalMerger` takes it.
        lead: unit chunk vectors (n, d) -> (n, d) in that space, of any length.
        back: sums (n, d) -> (n, d) that a raw query can search, of any length.
        sample: as `RivalMerger` takes it.
    """

    def __init__(
        self,
        name: str,
        lead: Callable[[Matrix], Matrix],
        back: Callable[[Matrix], Matrix],
        sample: Sequence[NDArray[np.float64]] = (),
    ) -> None:
        super().__init__(name, sample)
        self._lead, self._back = lead, back

    def _merge_batch(self, batch: Batch) -> Matrix:
        return self._out((batch.masses[:, None] @ batch.vectors)[:, 0])

    def _leaves(self, vectors: Matrix) -> Matrix:
        return self._lead(unit(vectors))

    def _join(self, nodes: Nodes) -> Matrix:
        joined: Matrix = nodes.vectors.sum(axis=1)
        return joined

    def _read(self, frontier: Sequence[Nodes]) -> Vector:
        total: Vector = np.concatenate([nodes.vectors for nodes in frontier]).sum(axis=0)
        return total

    def _out(self, directions: Matrix) -> Matrix:
        return unit(self._back(directions))


class PooledMerger(RivalMerger):
    """Merges by a function of the unit chunk vectors and their masses.

    In the tree and in a chain, what was merged is merged again with its mass.

    Args:
        name: as `RivalMerger` takes it.
        pool: the function.
    """

    def __init__(self, name: str, pool: Pool) -> None:
        super().__init__(name)
        self._pool = pool

    def _merge_batch(self, batch: Batch) -> Matrix:
        rows = unit(batch.vectors.reshape(-1, batch.vectors.shape[-1])).reshape(batch.vectors.shape)
        return unit(self._pool(rows, batch.mask, batch.masses))

    def _ready(self, vectors: Matrix) -> Matrix:
        return vectors

    def _leaves(self, vectors: Matrix) -> Matrix:
        return unit(vectors)

    def _join(self, nodes: Nodes) -> Matrix:
        joined: Matrix = self._again(nodes) * nodes.masses.sum(axis=1, keepdims=True)
        return joined

    def _read(self, frontier: Sequence[Nodes]) -> Vector:
        nodes = Nodes.concatenated(frontier, frontier[0].vectors.shape[1])
        vector: Vector = self._again(Nodes(nodes.vectors[None], nodes.masses[None], nodes.counts[None]))[0]
        return vector

    def _again(self, nodes: Nodes) -> Matrix:
        """(b, k, d) groups of nodes -> (b, d) unit; empty nodes count for nothing."""
        batch = Batch(np.arange(len(nodes.vectors)), nodes.vectors, nodes.masses > 0, nodes.masses)
        return self._merge_batch(batch)

    def _own(self, leaves: Matrix) -> Matrix:
        own = np.zeros_like(leaves)
        full = leaves.any(axis=1)
        if full.any():
            own[full] = self.merge_many(list(leaves[full][:, None]))
        return own

    def _out(self, directions: Matrix) -> Matrix:
        return unit(directions)


class FunctionMerger(PooledMerger):
    """Merges by a function of one sequence: the shortest way to measure a formula of one's own.

    Args:
        name: as `RivalMerger` takes it.
        function: unit chunk vectors (n, d) and masses (n,), in reading order -> (d,) of any length.
    """

    def __init__(self, name: str, function: Callable[[Matrix, Vector], VectorLike]) -> None:
        super().__init__(name, self._each)
        self.function = function

    def _each(
        self, vectors: NDArray[np.float32], mask: NDArray[np.bool_], masses: NDArray[np.float32]
    ) -> Matrix:
        merged = np.empty((len(vectors), vectors.shape[2]), np.float32)
        for row, (sequence, there, mass) in enumerate(zip(vectors, mask, masses, strict=True)):
            found = np.asarray(self.function(sequence[there], mass[there]))
            if found.shape != merged[row].shape:
                raise InputError(
                    f"The function of {self.name!r} gives the shape {found.shape} for vectors of shape "
                    f"{sequence[there].shape}; one vector of shape {merged[row].shape} was expected."
                )
            merged[row] = found
        return merged


class _Around(SequenceMerger):
    """A merger inside another, which says what becomes of sequences before or while they are merged."""

    def __init__(self, merger: SequenceMerger, fingerprint: str) -> None:
        self.merger = merger
        self.dimension = merger.dimension
        self.window = None
        self.context_weights = merger.context_weights
        self._lazy_carry = merger._lazy_carry
        self.fingerprint = fingerprint

    @property
    def fanout(self) -> int:
        """As the merger's."""
        return self.merger.fanout

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the merger; what is around it is not part of that."""
        return self.merger.save(folder)

    def export(self, folder: str | os.PathLike[str]) -> Path:
        """Write the merger; what is around it is not part of that."""
        return self.merger.export(folder)

    def _merge_batch(self, batch: Batch) -> Matrix:
        rows = zip(batch.vectors, batch.masses, batch.mask, strict=True)
        return np.stack([self.merge(vectors[mask], masses=masses[mask]) for vectors, masses, mask in rows])

    def _leaves(self, vectors: Matrix) -> Matrix:
        return self.merger._leaves(vectors)

    def _join(self, nodes: Nodes) -> Matrix:
        return self.merger._join(nodes)

    def _read(self, frontier: Sequence[Nodes]) -> Vector:
        return self.merger._read(frontier)

    def _own(self, leaves: Matrix) -> Matrix:
        return self.merger._own(leaves)

    def _out(self, directions: Matrix) -> Matrix:
        return self.merger._out(directions)


class RolledMerger(_Around):
    """A merger whose every merge goes through the tree, or through a chain.

    Args:
        merger: makes the merges.
        strategy: ``"tree"``, ``"chain"`` or ``"flat"``, as `RollingMerge` takes it.
    """

    def __init__(self, merger: SequenceMerger, strategy: Strategy) -> None:
        self.strategy: Strategy = strategy
        super().__init__(
            merger,
            fingerprint_of({"kind": "rolled", "merger": merger.fingerprint, "strategy": strategy}, {}),
        )

    def __repr__(self) -> str:
        return f"RolledMerger({self.merger!r}, {self.strategy!r})"

    def merge(self, vectors: MatrixLike, *, masses: MassesLike | None = None) -> Vector:
        """As `SequenceMerger.merge`, by `RollingMerge`."""
        array = as_matrix(vectors, self.dimension)
        rolling = self.merger.rolling(strategy=self.strategy)
        rolling.extend(array, masses=as_masses(masses, len(array)))
        return rolling.vector

    def _merge_ragged(self, sequences: Ragged) -> Matrix:
        merged = np.empty((len(sequences.rows), sequences.vectors.shape[1]), np.float32)
        for row, start, length in zip(sequences.rows, sequences.starts, sequences.lengths, strict=True):
            part = slice(int(start), int(start + length))
            merged[row] = self.merge(sequences.vectors[part], masses=sequences.masses[part])
        return merged


class RisingMerger(_Around):
    """A merger to which chunk j counts j ** power times its mass, j from 1 on.

    A vector of n equal parts is nearer to its chunks the fewer they are, so FINESSE's Bottom-Up, which looks
    at one chunk in ever longer sequences, trails Top-Down; where new chunks enter with more, it trails less.

    Args:
        merger: makes the merges.
        power: 0 changes nothing.
    """

    def __init__(self, merger: SequenceMerger, power: float = 0.5) -> None:
        self.power = power
        super().__init__(
            merger, fingerprint_of({"kind": "rising", "merger": merger.fingerprint, "power": power}, {})
        )

    def __repr__(self) -> str:
        return f"RisingMerger({self.merger!r}, {self.power})"

    def merge(self, vectors: MatrixLike, *, masses: MassesLike | None = None) -> Vector:
        """As `SequenceMerger.merge`."""
        array = as_matrix(vectors, self.dimension)
        return self.merger.merge(array, masses=self._risen(as_masses(masses, len(array)), np.zeros(1, int)))

    def _merge_ragged(self, sequences: Ragged) -> Matrix:
        starts = np.repeat(sequences.starts, sequences.lengths)
        return self.merger._merge_ragged(replace(sequences, masses=self._risen(sequences.masses, starts)))

    def _risen(self, masses: Vector, starts: NDArray[np.intp]) -> Vector:
        """(N,) masses -> (N,), for sequences that begin at `starts`, (N,) or one for all."""
        places = np.arange(1, len(masses) + 1) - starts
        risen: Vector = (masses * places**self.power).astype(np.float32)
        return risen


def unweighted_mean() -> PooledMerger:
    """Σ x_i: every chunk counts alike, a heading as much as a page."""
    return PooledMerger("unweighted mean", lambda vectors, _mask, _masses: vectors.sum(axis=1))


def max_pooling() -> PooledMerger:
    """The largest entry of every dimension, masses ignored."""

    def pool(vectors: NDArray[np.float32], mask: NDArray[np.bool_], _masses: NDArray[np.float32]) -> Matrix:
        largest: Matrix = np.where(mask[..., None], vectors, -np.inf).max(axis=1)
        return largest

    return PooledMerger("max pooling", pool)


def first_and_mean() -> PooledMerger:
    """x_1 + the direction of Σ g_i x_i: the opening counts as much as all of it."""

    def pool(vectors: NDArray[np.float32], _mask: NDArray[np.bool_], masses: NDArray[np.float32]) -> Matrix:
        opening: Matrix = vectors[:, 0]
        return opening + unit((masses[:, None] @ vectors)[:, 0])

    return PooledMerger("first + mean", pool)


def centred_mean(sample: Iterable[MatrixLike]) -> SummedMerger:
    """Σ g_i x_i / Σ g_i - m, where m is the mean of the collection's chunk vectors.

    Args:
        sample: sequences (n_i, d) of the collection.
    """
    mean = CalibrationStatistics.of(sample).mean
    centre = mean.astype(np.float32)
    return SummedMerger("centred mean", lambda vectors: vectors - centre, lambda sums: sums, [mean])


def whitened_mean(sample: Iterable[MatrixLike]) -> SummedMerger:
    """P Σ g_i z_i, where z_i is the direction of P (x_i - m), and P = (S + 0.003 λ₁ I)^(-1/2).

    m and S are the plain mean and covariance of the collection's chunk vectors, λ₁ the largest eigenvalue of
    S. The second P lets a raw query search the result (whitening: Su et al. 2021).

    Args:
        sample: sequences (n_i, d) of the collection.

    Raises:
        InputError: the chunk vectors are all the same, so that there is nothing to whiten.
    """
    statistics = CalibrationStatistics.of(sample)
    mean = statistics.mean
    values, vectors = np.linalg.eigh(statistics.second_moment - np.outer(mean, mean))
    if values[-1] <= 1e-12:
        raise InputError(
            f"All {statistics.vectors} chunk vectors of the sample point in one direction, so they have no "
            "covariance to whiten by. Check that the embedder reads its input."
        )
    scales = (np.maximum(values, 0) + WHITENING_RIDGE * values[-1]) ** -0.5
    whitening = (vectors * (scales / scales.mean())) @ vectors.T
    centre, transform = mean.astype(np.float32), whitening.astype(np.float32)

    def lead(rows: Matrix) -> Matrix:
        return unit((rows - centre) @ transform)

    def back(sums: Matrix) -> Matrix:
        mapped: Matrix = sums @ transform
        return mapped

    return SummedMerger("whitened mean", lead, back, [mean, whitening])
