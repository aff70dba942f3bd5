"""The closed-form merger: whitened by a collection's own statistics, ridge-pooled, mapped back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from merger_plugins._artefact import fingerprint_of, write_artefact
from merger_plugins._batching import Batch, lengths, unit
from merger_plugins._nodes import Nodes
from merger_plugins._types import Matrix, MatrixLike, Vector
from merger_plugins.errors import ArtefactError, DimensionError, InputError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.calibration import Background, Calibration, CalibrationStatistics
from merger_plugins.mergers.context import ContextWeights

if TYPE_CHECKING:
    import os

    from merger_plugins._artefact import Artefact

VERSION = 2
"""Of the formulas and their constants, part of every fingerprint: raise it when a result changes."""

_ROWS = 2_048

RIDGE_PER_CHUNK, RIDGE_LEAST, RIDGE_MOST = 1 / 12, 1.5, 15.0


def ridge(counts: NDArray[Any]) -> NDArray[np.float32]:
    """λ for sequences of this many chunks: 1.5 up to 18, growing to 15 at 180."""
    return np.clip(counts * RIDGE_PER_CHUNK, RIDGE_LEAST, RIDGE_MOST).astype(np.float32)


class CalibratedMerger(SequenceMerger):
    """Merges in closed form, with the mean m and the covariance of a collection's own chunk vectors.

    With P the whitening transform: z_i = P (x_i - m), normalised; the merged vector is P s, normalised, where
    s solves (Σ g_i z_i z_iᵀ + λ I) s = Σ g_i z_i, with g_i the mass of chunk i over the mean mass. That is
    ridge regression of the constant 1 on the chunks, also known as generalised max pooling (Murray and
    Perronnin 2014): what a document repeats counts about once. The second P is what lets a raw query vector
    search the result: q·P s = (P q)·s, a comparison in the whitened space.

    No training, no text, no labels. Nodes of the tree carry Σ m_i z_i, which adds up exactly; reading the
    root solves the equation over the nodes that cover the sequence, each standing for its chunks' mean.

    Args:
        background: what is known of the embedding model beforehand; None for an unknown one.
        statistics: of the collection's chunk vectors; None before any were seen. A copy is kept: adding to
            them later does not change the merger.
        dimension: d, where neither of the two tells it.
        embedder: name of the embedding model, for people to read.

    Raises:
        DimensionError: background and statistics of different dimensions.
        InputError: nothing tells the dimension, or it is below 1.
    """

    kind: ClassVar[str] = "calibrated"
    context_weights = ContextWeights(near=0.1, root=0.1)
    _lazy_carry = 2

    def __init__(
        self,
        *,
        background: Background | None = None,
        statistics: CalibrationStatistics | None = None,
        dimension: int | None = None,
        embedder: str | None = None,
    ) -> None:
        known = {
            len(background.second_moment) if background else None,
            statistics.dimension if statistics else None,
            dimension,
        } - {None}
        if len(known) > 1:
            raise DimensionError(
                f"background, statistics and dimension disagree: {sorted(d for d in known if d)}. They must "
                "belong to one embedding model."
            )
        self.dimension = known.pop() if known else None
        if not self.dimension or self.dimension < 1:
            raise InputError(
                f"The dimension is {self.dimension}; pass a background, statistics or a dimension above 0."
            )
        self.window = None
        self.embedder = embedder
        self.background = background if background and background.informed else None
        self.statistics = statistics.copy() if statistics and statistics.vectors else None
        self.calibration = Calibration.shrunk(
            self.statistics, self.background or Background.ignorant(self.dimension)
        )
        self._mean = self.calibration.mean.astype(np.float32)
        self._whitening = self.calibration.whitening.astype(np.float32)
        self._whitened_mean = (self.calibration.mean @ self.calibration.whitening).astype(np.float32)
        self.fingerprint = fingerprint_of(*self._contents())

    def __repr__(self) -> str:
        seen = self.statistics.vectors if self.statistics else 0
        return f"CalibratedMerger(dimension={self.dimension}, calibrated on {seen} vectors)"

    def calibrated(
        self, sample: MatrixLike | Iterable[MatrixLike] | CalibrationStatistics
    ) -> CalibratedMerger:
        """A merger with the statistics of this sample in place of those it had; see the base class.

        Args:
            sample: chunk vectors (n, d), an iterable of sequences (n_i, d), or `CalibrationStatistics`.
        """
        if not isinstance(sample, CalibrationStatistics):
            sample = CalibrationStatistics.of(sample, self.dimension)
        return CalibratedMerger(
            background=self.background, statistics=sample, dimension=self.dimension, embedder=self.embedder
        )

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write background, statistics and settings as a model folder; returns the folder."""
        return write_artefact(folder, *self._contents()).path

    @classmethod
    def load(cls, artefact: Artefact) -> CalibratedMerger:
        """Read what `save` wrote.

        Raises:
            ArtefactError: a file is damaged, or another version of this package computes it differently.
        """
        version = artefact.config.get("version")
        if version != VERSION:
            raise ArtefactError(
                f"{artefact.path} is a calibrated merger of version {version!r}, and this release computes "
                f"version {VERSION}, whose vectors differ. Use the release that made it, or calibrate again."
            )
        files = set(artefact.files)
        return cls(
            background=Background.from_bytes(artefact.read(_BACKGROUND)) if _BACKGROUND in files else None,
            statistics=CalibrationStatistics.from_bytes(artefact.read(_STATISTICS))
            if _STATISTICS in files
            else None,
            dimension=artefact.config.get("dimension"),
            embedder=artefact.config.get("embedder"),
        )

    def export(self, folder: str | os.PathLike[str]) -> Path:
        """Write a model folder with an ONNX graph, calibration inside; see the base class."""
        from merger_plugins.mergers.graphs import calibrated_graph, write_onnx_merger

        assert self.dimension is not None
        graph = calibrated_graph(self._mean, self._whitening)
        return write_onnx_merger(folder, graph, dimension=self.dimension, source=self)

    def _contents(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        config = {
            "kind": self.kind,
            "version": VERSION,
            "dimension": self.dimension,
            "embedder": self.embedder,
        }
        files = {}
        if self.background:
            files[_BACKGROUND] = self.background.to_bytes()
        if self.statistics:
            files[_STATISTICS] = self.statistics.to_bytes()
        return config, files

    def _merge_batch(self, batch: Batch) -> Matrix:
        counts = batch.mask.sum(axis=1, dtype=np.float32)
        relative = batch.masses * (counts / batch.masses.sum(axis=1))[:, None]
        roots = np.sqrt(relative)
        rows = batch.vectors if (roots == 1).all() else batch.vectors * roots[..., None]
        return self._out(_solve(rows, roots, ridge(counts)))

    def _leaves(self, vectors: Matrix) -> Matrix:
        leaves = np.empty((len(vectors), len(self._mean)), np.float32)
        for start in range(0, len(vectors), _ROWS):  # a block stays in the processor's cache
            block, out = vectors[start : start + _ROWS], leaves[start : start + _ROWS]
            np.matmul(block, self._whitening, out=out)
            out /= lengths(block)
            out -= self._whitened_mean
            out /= lengths(out)
        return leaves

    def _join(self, nodes: Nodes) -> Matrix:
        joined: Matrix = nodes.vectors.sum(axis=1)
        return joined

    def _read(self, frontier: Sequence[Nodes]) -> Vector:
        masses = np.concatenate([nodes.masses for nodes in frontier])
        full = masses > 0
        masses = masses[full]
        sums = np.concatenate([nodes.vectors for nodes in frontier])[full]
        count = int(sum(nodes.counts.sum() for nodes in frontier))
        mean_mass = masses.sum() / count
        roots = np.sqrt(masses / mean_mass)
        rows = sums / (mean_mass * roots)[:, None]
        # What the nodes' means leave out of Σ g z zᵀ, whose trace is the number of chunks, spread evenly.
        scatter = max(count - float(np.einsum("nd,nd->", rows, rows)), 0.0) / rows.shape[1]
        # Averaging regularises by itself: the coarser the nodes, the smaller λ, down to half of it.
        lam = ridge(np.array([count])) * np.float32((1 + len(rows) / count) / 2) + np.float32(scatter)
        solution: Vector = _solve(rows[None], roots[None], lam)[0]
        return solution

    def _out(self, directions: Matrix) -> Matrix:
        return unit(directions @ self._whitening)


_BACKGROUND, _STATISTICS = "background.safetensors", "statistics.safetensors"


_SMALL_PRODUCT, _SMALL_RESULT = 3 * 2**17, 2**10
"""Multiplications, and numbers in the result, up to which OpenBLAS need not lay factors out anew."""

_WORTH_IT = 8
"""Rows that must be taken at a time for `_gram` to be quicker than numpy by itself."""

_ITERATED = (96, 4_096)
"""Of sequences with so many rows conjugate gradients are quicker than factorising a matrix."""

_IN_CACHE = 640
"""Rows that a core keeps at hand from one iteration to the next: 1 MB at 384 dimensions."""

_PRECISE = 1e-7
"""The residual that iterations end at, relative to the right-hand side: half a unit of float32."""

_ITERATIONS = 170
"""With λ = n/12 up to 15 the condition number is at most 274, for which 162 are enough; 8 to 30 are usual."""


def _solve(rows: NDArray[np.float32], targets: NDArray[np.float32], lam: NDArray[np.float32]) -> Matrix:
    """Ridge regression, batched: the s that minimises |rows s - targets|² + λ|s|².

    Args:
        rows: (b, n, d); rows of zeros change nothing.
        targets: (b, n).
        lam: (b,).

    Returns:
        (b, d).
    """
    _, n, d = rows.shape
    if _ITERATED[0] <= n <= _ITERATED[1]:
        return _iterated(rows, targets, lam)
    transposed = rows.transpose(0, 2, 1)
    ridge_of = lam[:, None, None] * np.eye(min(n, d), dtype=np.float32)
    solution: Matrix
    if n <= d:
        solution = transposed @ np.linalg.solve(_gram(rows) + ridge_of, targets[..., None])
    else:
        normal = transposed @ rows + ridge_of
        solution = np.linalg.solve(normal, transposed @ targets[..., None])
        # Where chunks repeat, the normal equations lose three digits; one step of refinement restores them.
        residual = transposed @ (targets[..., None] - rows @ solution) - lam[:, None, None] * solution
        solution += np.linalg.solve(normal, residual)
    return solution.squeeze(-1)


def _gram(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """(b, n, d) -> (b, n, n) products of each sequence's rows with one another.

    Some rows at a time with all of them: where both factors are the same array numpy takes a routine for
    symmetric products, which needs twice the time, and so does one whose product is not small.
    """
    _, n, d = rows.shape
    transposed = rows.transpose(0, 2, 1)
    together = min(_SMALL_PRODUCT // d, _SMALL_RESULT) // n
    if together < _WORTH_IT or n == 1:
        symmetric: NDArray[np.float32] = rows @ transposed
        return symmetric
    gram = np.empty((len(rows), n, n), np.float32)
    parts = -(-n // min(together, n - 1))
    edges = [part * n // parts for part in range(parts + 1)]
    for start, stop in pairwise(edges):
        np.matmul(rows[:, start:stop], transposed, out=gram[:, start:stop])
    return gram


def _iterated(rows: NDArray[np.float32], targets: NDArray[np.float32], lam: NDArray[np.float32]) -> Matrix:
    """As `_solve`, by conjugate gradients (Hestenes and Stiefel 1952) for (R Rᵀ + λ I) a = t; s = Rᵀ a.

    R Rᵀ is never formed. Sequences take steps of sizes of their own, and one that has converged none, so
    that its batch-mates do not change it.
    """
    solution = np.empty((len(rows), rows.shape[2]), np.float32)
    together = max(_IN_CACHE // rows.shape[1], 1)
    for start in range(0, len(rows), together):
        part = slice(start, start + together)
        some, ridges = rows[part], lam[part, None, None]
        transposed = some.transpose(0, 2, 1)
        residual = targets[part, None]  # (b, 1, n)
        weights, direction = np.zeros_like(residual), residual
        squared = _squares(residual)
        enough = squared * np.float32(_PRECISE**2)
        for _ in range(_ITERATIONS):
            active = squared > enough
            if not active.any():
                break
            product = (direction @ some) @ transposed + ridges * direction
            curvature = np.einsum("bin,bin->b", direction, product)[:, None, None]
            step = _ratios(squared, curvature, active)
            weights = weights + step * direction
            residual = residual - step * product
            remaining = _squares(residual)
            direction = residual + _ratios(remaining, squared, active) * direction
            squared = remaining
        solution[part] = (weights @ some)[:, 0]
    return solution


def _squares(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """(b, 1, n) -> (b, 1, 1) squared lengths."""
    squares: NDArray[np.float32] = np.einsum("bin,bin->b", rows, rows)[:, None, None]
    return squares


def _ratios(
    above: NDArray[np.float32], below: NDArray[np.float32], active: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Quotients, 0 where nothing is to be done."""
    return np.divide(above, below, out=np.zeros_like(above), where=active)
