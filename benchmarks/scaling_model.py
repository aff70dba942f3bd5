"""One job on one and two processes, a model fitted to it, and what the model says of more machines.

The job: documents in a file of vectors are read, the merger is calibrated on them, they are read again and
merged into roots and sections of ten, and those are written. Processes share nothing but their statistics,
which add up; each has one thread for its matrices.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS
from benchmarks.scaling_data import DIMENSION, documents
from merger_plugins import CalibratedMerger, load_merger
from merger_plugins.mergers.calibration import CalibrationStatistics

FITTED = (50_000, 100_000, 200_000)
CHECKED = (400_000, 800_000)
"""Chunks: the model is fitted to the first and foretells the second."""

ROUNDS = 3
"""Of each size; the middle one counts."""

MACHINES = (1, 10, 1_000)
CHUNKS = (1_000_000, 100_000_000, 1_000_000_000)
BLOCK = 5_000
PARTS = 4
"""Of a job's blocks, whose statistics are gathered by one process each."""

CORES = 2
ASSUMED = {
    "network of a machine, Gbit/s": 10.0,
    "price of a machine of two cores, $ an hour": 0.10,
    "bytes a chunk beside its vector": 600,
}

ASSUMPTIONS = (
    "Machines are like the one measured: two cores, the same speed, their own disk or shard at hand.",
    "Documents are independent, so that machines share no work but statistics, 16 d² bytes each, added up by "
    "one of them, one after the other. That two processes of one machine lose to each other was measured; "
    "that two machines lose nothing is assumed.",
    "Documents are many and short beside a machine's part: a part is as long as the average one.",
    "The database has a shard a machine and grows with them; each shard is read and written at the speed "
    "measured on one machine by `benchmarks.backfill`, calibration and merging included.",
    "Every chunk crosses the network once, vector and payload, at the assumed rate, while others are read.",
    "Nothing fails. A lost machine costs its part once more.",
)


def job(scale: float) -> dict[str, Any]:
    """Measure, fit, check, and foretell."""
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # of the processes started below
    measured: dict[int, dict[int, float]] = {1: {}, 2: {}}
    parts: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.f32"
        counts = _written(path, int(CHECKED[-1] * scale))
        for workers in measured:
            context = get_context("spawn")
            with ProcessPoolExecutor(workers, mp_context=context) as pool:
                list(pool.map(_warm, range(8 * workers)))
                for chunks in (*FITTED, *CHECKED):
                    blocks = [block for block in _blocks(counts) if block[0] < int(chunks * scale)]
                    runs = [_run(pool, path, blocks) for _ in range(ROUNDS)]
                    seconds = sorted(runs, key=lambda run: run["whole"])[ROUNDS // 2]
                    size = sum(sum(lengths) for _, lengths in blocks)
                    measured[workers][size] = seconds["whole"]
                    if workers == 1:
                        parts[size] = seconds
    sizes = list(measured[1])
    fitted, checked = sizes[: len(FITTED)], sizes[len(FITTED) :]
    slope, fixed = np.polyfit(fitted, [measured[1][size] for size in fitted], 1)
    fixed = max(float(fixed), 0.0)
    speedup = float(np.median([(measured[1][size] - fixed) / (measured[2][size] - fixed) for size in fitted]))
    model = {
        "seconds, fixed": round(fixed, 3),
        "microseconds a chunk and process": round(1e6 * slope, 3),
        "two processes over one": round(speedup, 3),
    }

    def foretold(size: int, workers: int) -> float:
        return fixed + float(slope) * size / (speedup if workers == 2 else 1)

    return {
        "measured, seconds": {
            f"{workers} process{'es' if workers > 1 else ''}": {
                size: round(seconds, 3) for size, seconds in found.items()
            }
            for workers, found in measured.items()
        },
        "parts of the largest, one process, seconds": parts[sizes[-1]],
        "model": model,
        "fitted to": fitted,
        "checked at": {
            f"{size} chunks, {workers} process{'es' if workers > 1 else ''}": {
                "measured": round(measured[workers][size], 3),
                "foretold": round(foretold(size, workers), 3),
                "error": round(foretold(size, workers) / measured[workers][size] - 1, 3),
            }
            for size in checked
            for workers in (1, 2)
        },
        **foretelling(fixed, float(slope) / speedup),
    }


def foretelling(fixed: float, per_chunk: float) -> dict[str, Any]:
    """What more machines would take: the merge alone, and with a sharded Qdrant around it.

    Args:
        fixed: seconds of a job that no number of machines changes.
        per_chunk: seconds a chunk takes one machine.
    """
    filled = json.loads((RESULTS / "backfill.json").read_text(encoding="utf-8"))["figures"]
    database = 1 / filled["chunks_per_second"]
    wire = 8 * (4 * DIMENSION + ASSUMED["bytes a chunk beside its vector"])
    wire /= ASSUMED["network of a machine, Gbit/s"] * 1e9
    adding = _adding() + 8 * 16 * DIMENSION**2 / (ASSUMED["network of a machine, Gbit/s"] * 1e9)
    table = {}
    for chunks in CHUNKS:
        for machines in MACHINES:
            shared = fixed + adding * machines
            merging = shared + per_chunk * chunks / machines
            filling = shared + max(database, wire) * chunks / machines
            hours = machines * filling / 3_600
            table[f"{chunks:,} chunks, {machines:,} machine{'s' if machines > 1 else ''}"] = {
                "merging alone, seconds": round(merging, 1),
                "back-filling Qdrant, seconds": round(filling, 1),
                "adding statistics up, seconds": round(adding * machines, 2),
                "$": round(hours * ASSUMED["price of a machine of two cores, $ an hour"], 4),
            }
    return {
        "assumptions": list(ASSUMPTIONS),
        "assumed": ASSUMED,
        "from backfill.json, chunks a second": filled["chunks_per_second"],
        "foretold": table,
    }


def _adding() -> float:
    """Seconds that adding one machine's statistics takes, read from bytes."""
    sample = documents(2_000, 1, 40)
    total = CalibrationStatistics.of(sample)
    data = total.to_bytes()
    began = time.perf_counter()
    for _ in range(20):
        total += CalibrationStatistics.from_bytes(data)
    return (time.perf_counter() - began) / 20


def _written(path: Path, chunks: int) -> list[int]:
    """Write chunk vectors of documents end to end; how many each document has."""
    counts: list[int] = []
    with path.open("wb") as file:
        for seed in range(-(-chunks // BLOCK)):
            for sequence in documents(min(BLOCK, chunks), 1, 40, seed=seed):
                counts.append(len(sequence))
                sequence.tofile(file)
    return counts


def _blocks(counts: list[int]) -> Iterator[tuple[int, list[int]]]:
    """(first chunk, lengths of its documents) of blocks of about `BLOCK` chunks."""
    first, lengths = 0, []
    for count in counts:
        lengths.append(count)
        if sum(lengths) >= BLOCK:
            yield first, lengths
            first, lengths = first + sum(lengths), []
    if lengths:
        yield first, lengths


def _run(pool: ProcessPoolExecutor, path: Path, blocks: list[tuple[int, list[int]]]) -> dict[str, float]:
    began = time.perf_counter()
    total = CalibrationStatistics(DIMENSION)
    parts = [blocks[start::PARTS] for start in range(min(PARTS, len(blocks)))]
    for data in pool.map(_counted, [path] * len(parts), parts):
        total += CalibrationStatistics.from_bytes(data)
    counted = time.perf_counter()
    merger = load_merger().calibrated(total)
    with tempfile.TemporaryDirectory() as folder:
        saved = merger.save(Path(folder) / "merger")
        calibrated = time.perf_counter()
        for _ in pool.map(_merged, [path] * len(blocks), blocks, [saved] * len(blocks)):
            pass
    merged = time.perf_counter()
    return {
        "statistics": round(counted - began, 3),
        "calibrating": round(calibrated - counted, 3),
        "merging": round(merged - calibrated, 3),
        "whole": merged - began,
    }


_HELD: dict[Path, CalibratedMerger] = {}
"""The merger of the job that a process works for."""


def _warm(_: int) -> None:
    load_merger().merge_many(documents(1_000, 1, 40))


def _read(path: Path, block: tuple[int, list[int]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    first, lengths = block
    count = sum(lengths)
    vectors = np.fromfile(path, np.float32, count * DIMENSION, offset=4 * DIMENSION * first)
    return vectors.reshape(count, DIMENSION)


def _counted(path: Path, blocks: list[tuple[int, list[int]]]) -> bytes:
    statistics = CalibrationStatistics(DIMENSION)
    for block in blocks:
        statistics.update_many(_read(path, block), block[1])
    return statistics.to_bytes()


def _merged(path: Path, block: tuple[int, list[int]], saved: Path) -> None:
    if saved not in _HELD:
        merger = load_merger(saved)
        assert isinstance(merger, CalibratedMerger)
        _HELD.clear()
        _HELD[saved] = merger
    vectors = _read(path, block)
    sequences = []
    for sequence in np.split(vectors, np.cumsum(block[1])[:-1]):
        sequences.append(sequence)
        if len(sequence) >= _HELD[saved].fanout:
            sequences += np.split(sequence, range(_HELD[saved].fanout, len(sequence), _HELD[saved].fanout))
    merged = _HELD[saved].merge_many(sequences)
    with path.with_suffix(f".{os.getpid()}.merged").open("ab") as file:
        merged.tofile(file)
