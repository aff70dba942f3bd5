"""Synthetic chunk vectors, and how `benchmarks.scaling` measures time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np

from benchmarks.common import Floats
from merger_plugins import CalibratedMerger, load_merger

SEED = 7
DIMENSION = 384
COMMON, OWN, CHUNK = 1.0, 2.0, 3.0
"""Sizes of what all chunks have in common, those of one document, and nobody else's."""


def documents(
    vectors: int, shortest: int, longest: int, *, dimension: int = DIMENSION, seed: int = SEED
) -> list[Floats]:
    """Documents of `shortest` to `longest` unit chunk vectors (n, dimension), of `vectors` or a few more."""
    rng = np.random.default_rng(seed)
    common = COMMON * rng.standard_normal(dimension, dtype=np.float32)
    made: list[Floats] = []
    left = vectors
    while left > 0:
        count = int(rng.integers(shortest, longest + 1))
        chunks = CHUNK * rng.standard_normal((count, dimension), dtype=np.float32)
        chunks += common + OWN * rng.standard_normal(dimension, dtype=np.float32)
        chunks /= np.linalg.norm(chunks, axis=1, keepdims=True)
        made.append(chunks)
        left -= count
    return made


def calibrated(sample: list[Floats]) -> CalibratedMerger:
    """The bundled merger calibrated on these documents; one of nothing known for other dimensions."""
    dimension = sample[0].shape[1]
    merger = load_merger() if dimension == DIMENSION else CalibratedMerger(dimension=dimension)
    assert isinstance(merger, CalibratedMerger)
    return merger.calibrated(sample)


def medians(works: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """Median seconds of each, run in turn `rounds` times after a round that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            if turn:
                taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def least(work: Callable[[], object], *, rounds: int) -> float:
    """Seconds of the quickest of `rounds` runs."""
    return min(medians({"": work}, rounds=1)[""] for _ in range(rounds))
