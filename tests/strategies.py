"""Chunk vectors, masses and ragged batches for Hypothesis, and the helpers of the tests that use them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from merger_plugins import CalibratedMerger, ContextWeights, MeanMerger

DIMENSION = 6
"""Small, and large enough that random vectors do not cancel out, where no direction is well defined."""

Array = NDArray[Any]


def chunk_vectors(seed: int, count: int, dimension: int = DIMENSION, spread: float = 1.0) -> Array:
    """(count, dimension) float32: one common direction, as embeddings have, and noise of length `spread`."""
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal(dimension)
    noise = rng.standard_normal((count, dimension)) * spread / np.sqrt(dimension)
    return (centre / np.linalg.norm(centre) + noise).astype(np.float32)


@st.composite
def sequences(draw: st.DrawFn, dimension: int = DIMENSION, min_size: int = 1, max_size: int = 25) -> Array:
    """Chunk vectors in reading order, of any length and scale; a part of them may be copies of others."""
    count = draw(st.integers(min_size, max_size))
    spread = draw(st.sampled_from([1.0, 0.3, 3.0]))
    vectors = chunk_vectors(draw(st.integers(0, 2**32 - 1)), count, dimension, spread)
    copies = draw(st.lists(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), max_size=3))
    for target, source in copies:
        vectors[target] = vectors[source]
    return vectors * np.float32(draw(st.sampled_from([1.0, 1e-4, 300.0])))


def masses_for(count: int) -> st.SearchStrategy[Array]:
    """(count,) positive masses, from a heading of one token to a chapter."""
    tokens = st.one_of(st.integers(1, 100), st.floats(0.5, 5_000, width=32))
    return st.lists(tokens, min_size=count, max_size=count).map(lambda m: np.array(m, np.float32))


@st.composite
def weighted_sequences(draw: st.DrawFn, min_size: int = 1, max_size: int = 25) -> tuple[Array, Array]:
    """Chunk vectors and their masses."""
    vectors = draw(sequences(min_size=min_size, max_size=max_size))
    return vectors, draw(masses_for(len(vectors)))


@st.composite
def ragged_batches(draw: st.DrawFn, max_size: int = 8) -> tuple[list[Array], list[Array | None]]:
    """Several sequences of different lengths; some come without masses."""
    pairs = draw(st.lists(weighted_sequences(), min_size=1, max_size=max_size))
    known = draw(st.lists(st.booleans(), min_size=len(pairs), max_size=len(pairs)))
    return (
        [vectors for vectors, _ in pairs],
        [masses if keep else None for (_, masses), keep in zip(pairs, known, strict=True)],
    )


@st.composite
def splits(draw: st.DrawFn, count: int) -> list[slice]:
    """Consecutive parts of `count` items, none of them empty."""
    cuts = sorted(draw(st.sets(st.integers(1, count - 1)))) if count > 1 else []
    return [slice(start, stop) for start, stop in zip([0, *cuts], [*cuts, count], strict=True)]


class NarrowMean(MeanMerger):
    """The mean with a tree of fan-out 3, which has several levels after a few chunks."""

    @property
    def fanout(self) -> int:
        return 3


class NarrowCalibrated(CalibratedMerger):
    """The calibrated merger with a tree of fan-out 3."""

    @property
    def fanout(self) -> int:
        return 3


class WindowedMean(MeanMerger):
    """A mean that takes four vectors at once, as a trained merger may."""

    def __init__(self) -> None:
        super().__init__()
        self.window = 4


def calibrated(kind: type[CalibratedMerger] = CalibratedMerger, *, seed: int = 0) -> CalibratedMerger:
    """A merger calibrated on documents whose directions have very different spreads."""
    rng = np.random.default_rng(seed)
    scale = np.geomspace(1, 0.1, DIMENSION)
    documents = [chunk_vectors(int(s), 40) * scale for s in rng.integers(0, 2**32, 100)]
    return kind(dimension=DIMENSION, statistics=kind(dimension=DIMENSION).calibrated(documents).statistics)


MEAN, NARROW_MEAN, WINDOWED_MEAN = MeanMerger(), NarrowMean(), WindowedMean()
CALIBRATED, NARROW_CALIBRATED = calibrated(), calibrated(NarrowCalibrated)
UNCALIBRATED = CalibratedMerger(dimension=DIMENSION)

MERGERS = {
    "mean": MEAN,
    "mean, fan-out 3": NARROW_MEAN,
    "mean, window 4": WINDOWED_MEAN,
    "calibrated": CALIBRATED,
    "calibrated, fan-out 3": NARROW_CALIBRATED,
    "uncalibrated": UNCALIBRATED,
}


def normalised(vectors: Array) -> Array:
    """Rows over their lengths, in float64; a row of zeros stays."""
    rows = np.array(vectors, np.float64)
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)


def whitened(merger: CalibratedMerger, vectors: Array) -> Array:
    """z_i = P (x_i - m), normalised, in float64."""
    centred = normalised(vectors) - merger.calibration.mean
    return normalised(np.stack([merger.calibration.whitening @ row for row in centred]))


def mapped_back(merger: CalibratedMerger, directions: Array) -> Array:
    """P s, normalised, in float64."""
    return normalised(directions @ merger.calibration.whitening.T)


def ridge_solution(points: Sequence[Array] | Array, shares: Array, penalty: float) -> Array:
    """The s that minimises Σ g (z·s - 1)² + λ|s|², from its normal equations, one point at a time."""
    dimension = len(points[0])
    left, right = penalty * np.eye(dimension), np.zeros(dimension)
    for point, share in zip(points, shares, strict=True):
        left += share * np.outer(point, point)
        right += share * np.asarray(point)
    return np.linalg.solve(left, right)


def naive_blend(
    leaves: Sequence[Array | None] | Array, root: Array, masses: Sequence[float], weights: ContextWeights
) -> list[Array | None]:
    """Each chunk plus its neighbours and the root; a place that is None is empty and stays None."""
    held = [mass for leaf, mass in zip(leaves, masses, strict=True) if leaf is not None]
    mean_mass = sum(held) / len(held)
    blended: list[Array | None] = []
    for i, leaf in enumerate(leaves):
        if leaf is None:
            blended.append(None)
            continue
        share = min((masses[i] / mean_mass) ** 0.5, 2.0)
        total = np.array(leaf, np.float64)
        for j, other in enumerate(leaves):
            if other is not None and abs(i - j) in (1, 2):
                total += share * weights.near / abs(i - j) * other
        blended.append(total + share * weights.root * root)
    return blended


def cosine(a: Array, b: Array) -> float:
    """The cosine of two vectors."""
    return float(np.dot(normalised(a), normalised(b)))
