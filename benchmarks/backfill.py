"""Back-fill beside reading the same points without merging.

Run ``python -m benchmarks.backfill``. Synthetic chunks, about 20 a document, scattered over the order of ids,
written as LangChain writes. ``--engine edge`` is the real Qdrant engine in the process; ``--engine local``
the client's embedded folder, which holds every point in memory and commits each written point by itself;
``--engine chroma-server`` a Chroma server on loopback, whose own work is in no figure but the clock's. Each
measurement runs in a process of its own, so that peak memory is its own; processor time stands beside the
clock's, which other work on the machine moves. A back-fill has a second process, whose processor time and
peak memory stand by themselves. `read_resting` is reading with Python's garbage collector kept back, as a
back-fill keeps it. Writes benchmarks/results/backfill.json; backfill-million.json for a million chunks,
backfill-local.json and backfill-chroma-server.json for other engines.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import write_result
from benchmarks.engines import DIMENSION, ENGINES, Chunk
from merger_plugins.stores import BackfillProgress, MergedStore
from merger_plugins.stores.backend import Where
from merger_plugins.stores.gathering import seldom_collected

SEED = 20
TEXT = "About as many words as a chunk of fifty tokens has, so that payloads weigh what they weigh. " * 3


def chunks_of(count: int) -> Iterator[Chunk]:
    """The application's chunks, document by document."""
    rng = np.random.default_rng(SEED)
    lengths: list[int] = []
    while sum(lengths) < count:
        lengths.append(int(rng.integers(1, 40)))
    lengths[-1] -= sum(lengths) - count
    centre = rng.standard_normal(DIMENSION)
    for document, length in enumerate(lengths):
        vectors = centre + 2 * rng.standard_normal(DIMENSION) + 3 * rng.standard_normal((length, DIMENSION))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        for place, vector in enumerate(vectors.astype(np.float32)):
            yield Chunk(
                str(uuid.UUID(bytes=rng.bytes(16), version=4)),
                f"{TEXT}{document}/{place}",
                {"source": f"folder/{document}.txt", "start_index": 280 * place},
                vector,
            )


def measured(engine: str, part: str, place: str) -> dict[str, Any]:
    """One measurement, in this process: seconds after the database was opened, and megabytes at the most."""
    backend = ENGINES[engine].backend(place)
    backend.spent = {"points_written": 0, "writing_s": 0.0, "writing_cpu_s": 0.0}
    result: dict[str, Any] = {"after_opening_mb": _peak()}
    began, worked = time.perf_counter(), time.process_time()
    workers: dict[int, int] = {}
    if part in ("read", "resting"):
        with nullcontext() if part == "read" else seldom_collected():
            result["points"] = sum(1 for _ in backend.scan("chunks", Where(), vectors=True))
    elif part == "backfill":
        ends: dict[str, list[float]] = {}

        def progress(step: BackfillProgress) -> None:
            now = time.perf_counter() - began, time.process_time() - worked
            ends[step.stage] = [round(seconds, 2) for seconds in now]
            workers.update((child, peak) for child in _children() if (peak := _peak(child)))

        done = MergedStore(backend).backfill(progress=progress)
        result |= {"documents": done.documents, "merged": done.merged, "stage_ends": ends}
        result |= {key: round(value, 2) for key, value in backend.spent.items()}
    result |= {"seconds": round(time.perf_counter() - began, 2), "peak_mb": _peak()}
    result["cpu_s"] = round(time.process_time() - worked, 2)
    if workers:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        result["worker_cpu_s"] = round(used.ru_utime + used.ru_stime, 2)
        result["worker_peak_mb"] = max(workers.values())
    return result


def _peak(process: int | str = "self") -> int:
    """Of one program, 0 if it is gone; `ru_maxrss` would count what the process held that started it."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024)
    return 0


def _children() -> list[int]:
    """Processes that this one started and that run."""
    tasks = Path("/proc/self/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def in_a_process(engine: str, part: str, place: str) -> dict[str, Any]:
    """The same in another process."""
    options = ["--engine", engine, "--part", part, "--data", place]
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.backfill", *options], capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise SystemExit(run.stderr)
    made: dict[str, Any] = json.loads(run.stdout)
    print(part, made, file=sys.stderr, flush=True)
    return made


def compared(
    chunks: int,
    reads: Sequence[dict[str, Any]],
    resting: dict[str, Any],
    fills: Sequence[dict[str, Any]],
    again: dict[str, Any],
) -> dict[str, float]:
    """Back-filling over reading: by the clock the quickest of each, by processor time the medians.

    Memory of both processes together, as if each were at its most at the same moment.
    """

    def least(runs: Sequence[dict[str, Any]]) -> float:
        return min(run["seconds"] for run in runs)

    def middle(runs: Sequence[dict[str, Any]], *keys: str) -> float:
        return statistics.median(sum(run.get(key, 0) for key in keys) for run in runs)

    def most(runs: Sequence[dict[str, Any]]) -> int:
        return max(run["peak_mb"] + run.get("worker_peak_mb", 0) for run in runs)

    def grown(runs: Sequence[dict[str, Any]]) -> int:
        return max(run["peak_mb"] - run["after_opening_mb"] for run in runs)

    reading = middle(reads, "cpu_s")

    return {
        "chunks_per_second": round(chunks / least(fills)),
        "time_over_read": round(least(fills) / least(reads), 2),
        "time_over_resting_read": round(least(fills) / resting["seconds"], 2),
        "again_over_read": round(again["seconds"] / least(reads), 2),
        "cpu_over_read": round(middle(fills, "cpu_s") / reading, 2),
        "cpu_of_both_over_read": round(middle(fills, "cpu_s", "worker_cpu_s") / reading, 2),
        "peak_mb": most((*fills, again)),
        "peak_of_reading_mb": most(reads),
        "over_opening_mb": grown(fills),
        "over_opening_of_reading_mb": grown(reads),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chunks", type=int, default=200_000)
    parser.add_argument("--engine", choices=sorted(ENGINES), default="edge")
    parser.add_argument("--rounds", type=int, default=3, help="how often to read, and to back-fill, in turn")
    parser.add_argument(
        "--part", choices=["read", "resting", "backfill"], help="one measurement of a place in --data"
    )
    parser.add_argument("--data", help="folder of the collection; made where it does not exist")
    parser.add_argument("--dry", action="store_true", help="print, and write no result file")
    arguments = parser.parse_args()
    name, engine = arguments.engine, ENGINES[arguments.engine]
    if arguments.part:
        print(json.dumps(measured(name, arguments.part, arguments.data)))
        return
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(arguments.data or Path(parent) / "data")
        new = not folder.exists()
        with engine.running(folder) as place:
            if new:
                began = time.perf_counter()
                engine.make(place, chunks_of(arguments.chunks))
                print(f"made in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
            reads, fills = [], []
            for _ in range(arguments.rounds):
                engine.forget_merged(place)
                reads.append(in_a_process(name, "read", place))
                fills.append(in_a_process(name, "backfill", place))
            again = in_a_process(name, "backfill", place)
            resting = in_a_process(name, "resting", place)
    figures = {
        "chunks": arguments.chunks,
        "dimension": DIMENSION,
        "engine": name,
        "versions": {package: version(package) for package in engine.packages},
        "blas_threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "reads": reads,
        "read_resting": resting,
        "backfills": fills,
        "backfill_again": again,
        **compared(arguments.chunks, reads, resting, fills, again),
    }
    print(json.dumps(figures, indent=2))
    if not arguments.dry:
        size = "-million" if arguments.chunks == 1_000_000 else ""
        write_result(f"backfill{engine.suffix}{size}", seed=SEED, data={}, figures=figures)


if __name__ == "__main__":
    main()
