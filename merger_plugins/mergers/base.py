"""The interface of every merger."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from merger_plugins._batching import (
    ITEMS_PER_BATCH,
    Batch,
    Ragged,
    as_masses,
    as_matrix,
    batches,
    ragged,
    unit,
)
from merger_plugins._nodes import Nodes
from merger_plugins._types import MassesLike, Matrix, MatrixLike, Vector
from merger_plugins.errors import EmptyInputError, NonFiniteError, ZeroVectorError
from merger_plugins.mergers.context import ContextWeights, blend

if TYPE_CHECKING:
    import os

    from merger_plugins.mergers.calibration import CalibrationStatistics
    from merger_plugins.tree import RollingMerge

_FIRST = np.zeros(1, np.intp)

Strategy = Literal["tree", "flat", "chain"]

FANOUT = 10
"""How many nodes of the tree make one of the level above, where a merger has no window of its own."""


class SequenceMerger(ABC):
    """Merges the chunk vectors of a document or conversation, in reading order, into one vector.

    What comes out is (d,) float32 of unit length, comparable by cosine with the raw query vectors of the
    embedding model that made the chunk vectors. The length of an input vector carries no meaning: it is
    normalised first. A mass says how much text a vector stands for, in tokens; only proportions matter, and
    without masses all vectors count alike. Results do not depend on padding, batch-mates or batch size.

    Attributes:
        dimension: d; None where the merger works in any.
        window: how many vectors one merge takes at the most; None for any number. `merge` accepts longer
            sequences all the same, and merges them through the tree.
        fingerprint: 16 hexadecimal digits that tell this merger, calibration included, from every other.
    """

    dimension: int | None
    window: int | None
    fingerprint: str
    context_weights: ContextWeights = ContextWeights()

    _lazy_carry: int = 0

    @property
    def fanout(self) -> int:
        """How many nodes of the tree make one of the level above."""
        return self.window or FANOUT

    def merge(self, vectors: MatrixLike, *, masses: MassesLike | None = None) -> Vector:
        """Merge one sequence.

        Args:
            vectors: (n, d) chunk vectors in reading order, any length above zero.
            masses: (n,) tokens each vector stands for.

        Returns:
            (d,) float32, unit length. For n = 1 the vector itself, calibrated where the merger is.

        Raises:
            InputError: empty, not finite, zero or of another dimension (see `merger_plugins.errors`).
        """
        array = as_matrix(vectors, self.dimension)
        mass = as_masses(masses, len(array))
        mass = mass / mass.max()
        if self.window is not None and len(array) > self.window:
            merged = self._merge_long(self._leaves(array), mass)[None]
        else:
            everywhere = np.ones((1, len(array)), np.bool_)
            merged = self._merge_batch(Batch(_FIRST, self._ready(array)[None], everywhere, mass[None]))
        vector: Vector = _not_zero(merged)[0]
        return vector

    def merge_many(
        self, sequences: Sequence[MatrixLike], *, masses: Sequence[MassesLike | None] | None = None
    ) -> Matrix:
        """Merge many sequences of different lengths in batches; row i is the merge of sequence i.

        Args:
            sequences: b arrays (n_i, d).
            masses: b arrays (n_i,), or None in place of any of them.

        Returns:
            (b, d) float32, unit rows.

        Raises:
            InputError: as `merge`, naming the sequence.
        """
        if not len(sequences):
            raise EmptyInputError("sequences is empty; at least one sequence is needed.")
        return self._merge_ragged(ragged(sequences, masses, self.dimension))

    def _merge_ragged(self, sequences: Ragged) -> Matrix:
        merged = np.empty(sequences.shape, np.float32)
        # In parts, whose leaves take the memory of those before: fresh pages cost as much as what fills them.
        for part in sequences.parts(self._items_per_batch()):
            self._merge_into(merged, replace(part, vectors=self._ready(part.vectors)))
        return _not_zero(merged)

    def _merge_ready(self, sequences: Ragged) -> Matrix:
        """As `merge_many`, of vectors that `_ready` gave."""
        merged = np.empty(sequences.shape, np.float32)
        self._merge_into(merged, sequences)
        return _not_zero(merged)

    def _merge_into(self, merged: Matrix, sequences: Ragged) -> None:
        # Only proportions of masses matter: with 1 as the largest, no sum leaves the range of float32.
        largest = np.maximum.reduceat(sequences.masses, sequences.starts)
        sequences = replace(sequences, masses=sequences.masses / np.repeat(largest, sequences.lengths))
        for batch in batches(sequences, self.window, most=self._items_per_batch()):
            merged[batch.rows] = self._merge_batch(batch)
        if self.window is not None:
            for index in np.flatnonzero(sequences.lengths > self.window):
                part = slice(sequences.starts[index], sequences.starts[index] + sequences.lengths[index])
                leaves = self._leaves(sequences.vectors[part])
                merged[sequences.rows[index]] = self._merge_long(leaves, sequences.masses[part])

    def _merge_long(self, leaves: Matrix, masses: Vector) -> Vector:
        from merger_plugins.tree import RollingMerge

        rolling = RollingMerge(self)
        rolling._extend_leaves(leaves, masses)
        return rolling.vector

    def contextualize(
        self,
        vectors: MatrixLike,
        *,
        masses: MassesLike | None = None,
        weights: ContextWeights | None = None,
    ) -> Matrix:
        """Merge each chunk vector with a little of its neighbours and of its root.

        One vector a chunk that knows its document; searched as before by a raw query vector.

        Args:
            vectors: (n, d) chunk vectors in reading order.
            masses: (n,) tokens each vector stands for.
            weights: how much of the neighbours and the root; this merger's `context_weights` for None.

        Returns:
            (n, d) float32, unit rows; row i belongs to chunk i.

        Raises:
            InputError: as `merge`.
        """
        array = as_matrix(vectors, self.dimension)
        rolling = self.rolling()
        rolling.extend(array, masses=masses)
        return rolling.contextual(weights)

    def rolling(self, state: bytes | None = None, *, strategy: Strategy = "tree") -> RollingMerge:
        """A merge that is kept up to date as chunks or turns arrive.

        Args:
            state: what `RollingMerge.state` gave earlier; None starts anew.
            strategy: ``"tree"``; ``"flat"`` and ``"chain"`` are there for comparison.

        Raises:
            StateError: the state is damaged, of another version, strategy or merger.
        """
        from merger_plugins.tree import RollingMerge

        if state is None:
            return RollingMerge(self, strategy=strategy)
        return RollingMerge.from_state(self, state, strategy=strategy)

    def calibrated(self, sample: MatrixLike | Iterable[MatrixLike] | CalibrationStatistics) -> SequenceMerger:
        """A `CalibratedMerger` that uses the statistics of one collection's chunk vectors.

        Args:
            sample: stored chunk vectors: (n, d), or better an iterable of sequences (n_i, d), one a document.
                It is read once, in a stream. Or `CalibrationStatistics` that were gathered already.

        Returns:
            A new merger with a new fingerprint; this one is unchanged.

        Raises:
            InputError: as `merge`.
        """
        from merger_plugins.mergers.calibrated import CalibratedMerger
        from merger_plugins.mergers.calibration import CalibrationStatistics

        if not isinstance(sample, CalibrationStatistics):
            sample = CalibrationStatistics.of(sample, self.dimension)
        return CalibratedMerger(statistics=sample)

    @abstractmethod
    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the merger as a model folder that `load_merger` reads; returns the folder."""

    @abstractmethod
    def export(self, folder: str | os.PathLike[str]) -> Path:
        """Write the merger as a model folder that holds an ONNX graph; returns the folder.

        The graph takes ``vectors`` (b, n, d) float32, ``mask`` (b, n) bool and ``masses`` (b, n) float32, and
        gives ``merged`` (b, d) float32. `load_merger` reads the folder as an `OnnxMerger`.

        Raises:
            MissingExtraError: the package ``onnx`` is not installed.
        """

    # What the tree needs of a merger. Vectors of nodes live in a space of the merger's own choice.

    @abstractmethod
    def _merge_batch(self, batch: Batch) -> Matrix:
        """(b, n, d) padded vectors, as `_ready` gives them -> (b, d) unit rows; n is at most `window`."""

    @abstractmethod
    def _leaves(self, vectors: Matrix) -> Matrix:
        """(n, d) chunk vectors -> (n, d) unit vectors in node space."""

    @abstractmethod
    def _join(self, nodes: Nodes) -> Matrix:
        """(b, k, d) groups of nodes -> (b, d) parents' vectors in node space; k is at most `fanout`."""

    @abstractmethod
    def _read(self, frontier: Sequence[Nodes]) -> Vector:
        """The nodes that cover a sequence, highest level first -> (d,) direction in node space."""

    @abstractmethod
    def _out(self, directions: Matrix) -> Matrix:
        """(n, d) directions in node space -> (n, d) unit vectors that a raw query can search."""

    def _items_per_batch(self) -> int:
        """How many vectors, padding included, `merge_many` gives `_merge_batch` at the most."""
        return ITEMS_PER_BATCH

    def _ready(self, vectors: Matrix) -> Matrix:
        """(n, d) chunk vectors -> (n, d) as `_merge_batch` takes them: leaves, where a merger says no other.

        A merger with a window may do no more than normalise them, as longer sequences pass `_leaves` after.
        """
        return self._leaves(vectors)

    def _own(self, leaves: Matrix) -> Matrix:
        """(n, d) unit leaves, zeros for an empty place -> (n, d) each chunk's own vector, unit or zeros."""
        return self._out(leaves)

    def _contextual(
        self, leaves: Matrix, root: Vector, relative_masses: Vector, weights: ContextWeights | None
    ) -> Matrix:
        """(n, d) unit leaves and the (d,) root's direction -> (n, d) contextual chunk vectors."""
        blended = blend(leaves, unit(root[None])[0], relative_masses, weights or self.context_weights)
        return self._out(blended)


def _not_zero(merged: Matrix) -> Matrix:
    lengths = np.einsum("bd,bd->b", merged, merged)
    if lengths.min() > 0.25:
        return merged
    if not np.isfinite(lengths).all():
        raise NonFiniteError(
            f"sequence {int(np.argmin(np.isfinite(lengths)))} merges to NaN or infinity, and its vectors "
            "have none. Look at the merger's model or formula."
        )
    raise ZeroVectorError(
        f"sequence {int(np.argmin(lengths))} merges to a vector of length zero: its vectors cancel out. "
        "Vectors of one embedding model never do; check where they came from."
    )
