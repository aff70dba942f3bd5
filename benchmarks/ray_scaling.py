"""Merging with Ray: two workers against one, and both against one process without Ray.

Run ``python -m benchmarks.ray_scaling`` where the extra ``ray`` is installed, or for a try with the options
``--chunks 200000 --result ray-try``. Writes benchmarks/results/ray.json.

Synthetic vectors in Parquet files, of two kinds. ``together``: chunks in reading order in files that end
anywhere, so that a document at a file's end goes on in the next. ``scattered``: each document split over two
files, one in either half of the names, and its chunks in random order. What is timed is `backfill_parquet`:
documents and positions are looked through, everything is read, what is scattered is shuffled, the merger is
calibrated on it, sections and roots are merged and written. Ray and its processes are started before, by the
same call on a few chunks. Each run has a Ray of its own; one worker and two take turns.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import RESULTS, Floats, Ints, commit
from merger_plugins import CalibratedMerger
from merger_plugins.finesse.environment import environment
from merger_plugins.mergers.calibration import CalibrationStatistics

DIMENSION = 384
SEED = 0
GROUP = 20_000
"""About the chunks that are made at once, and among which those of a document are scattered."""

FILE = 9_000
"""Chunks of a file."""

SHORTEST, LONGEST = 20, 80
BAR, TOLERANCE = 1.6, 1e-5


def groups(chunks: int) -> Iterator[tuple[list[str], Ints, Floats]]:
    """Documents' names, their numbers of chunks, and the vectors one after another."""
    done = 0
    while done < chunks:
        rng = np.random.default_rng([SEED, done])
        lengths = rng.integers(SHORTEST, LONGEST + 1, max(GROUP * 2 // (SHORTEST + LONGEST), 1))
        lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), chunks - done)) + 1]
        names = [f"{done}/{index}" for index in range(len(lengths))]
        subjects = rng.standard_normal((len(lengths), DIMENSION), dtype=np.float32)
        vectors = rng.standard_normal((int(lengths.sum()), DIMENSION), dtype=np.float32)
        vectors += np.repeat(subjects, lengths, axis=0)
        yield names, lengths, vectors
        done += len(vectors)


def write(folder: Path, chunks: int, *, scattered: bool) -> int:
    """Write the files; returns how many chunks there are."""
    folder.mkdir()
    first, second = _Files(folder, "a"), _Files(folder, "b")
    total = 0
    for index, (names, lengths, vectors) in enumerate(groups(chunks)):
        places = np.concatenate([np.arange(length) for length in lengths])
        owners = np.repeat(np.array(names), lengths)
        order = np.arange(len(vectors))
        if scattered:
            np.random.default_rng([SEED, 1, index]).shuffle(order)
        halves = np.array_split(order, 2) if scattered else [order]
        for files, rows in zip((first, second), halves, strict=False):
            flat = pa.array(vectors[rows].reshape(-1))
            files.add(
                pa.table(
                    {
                        "document_id": owners[rows],
                        "position": places[rows],
                        "vector": pa.FixedSizeListArray.from_arrays(flat, DIMENSION),
                    }
                )
            )
        total += len(vectors)
    first.end()
    second.end()
    return total


class _Files:
    """Tables written one after another as files of `FILE` rows, whatever the tables' lengths."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self._folder, self._prefix, self._count = folder, prefix, 0
        self._waiting: list[pa.Table] = []

    def add(self, table: pa.Table) -> None:
        self._waiting.append(table)
        if sum(map(len, self._waiting)) >= FILE:
            self._put(FILE)

    def end(self) -> None:
        if self._waiting:
            self._put(1)

    def _put(self, least: int) -> None:
        table = pa.concat_tables(self._waiting)
        while table.num_rows >= least:
            path = self._folder / f"{self._prefix}-{self._count:05d}.parquet"
            pq.write_table(table.slice(0, FILE), path, compression="none")
            table, self._count = table.slice(FILE), self._count + 1
        self._waiting = [table]


def measure(workers: int, source: str, warm: str, into: str) -> None:
    """In a process of its own: the seconds of one run, printed as JSON."""
    from merger_plugins.ray import backfill_parquet, cluster

    with cluster(workers=workers):
        backfill_parquet(warm, f"{into}-warm")
        began = time.perf_counter()
        done = backfill_parquet(source, into)
        seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "chunks": done.chunks, "documents": done.documents}))


def run(workers: int, source: Path, warm: Path, into: Path) -> dict[str, Any]:
    """One measurement."""
    command = [sys.executable, "-m", "benchmarks.ray_scaling", "--measure", str(workers)]
    finished = subprocess.run(
        [*command, str(source), str(warm), str(into)], capture_output=True, text=True, check=False
    )
    if finished.returncode:
        sys.exit(finished.stderr)
    measured: dict[str, Any] = json.loads(finished.stdout.strip().rpartition("\n")[2])
    return measured


def difference(into: Path, chunks: int) -> float:
    """The largest difference of any number of any root or section from what one process without Ray makes."""
    statistics = CalibrationStatistics(DIMENSION)
    for _, lengths, vectors in groups(chunks):
        statistics.update_many(vectors, lengths)
    merger = CalibratedMerger(dimension=DIMENSION).calibrated(statistics)
    table = pq.read_table(into)
    keys = zip(table.column("document").to_pylist(), table.column("kind").to_pylist(), strict=True)
    rows = {
        (name, kind, place): row
        for row, ((name, kind), place) in enumerate(
            zip(keys, table.column("position").to_pylist(), strict=True)
        )
    }
    if len(rows) != table.num_rows:
        sys.exit("A merged vector was written twice.")
    found = table.column("vector").combine_chunks().flatten().to_numpy().reshape(-1, DIMENSION)
    worst, seen = 0.0, 0
    for names, lengths, vectors in groups(chunks):
        start = 0
        for name, length in zip(names, lengths.tolist(), strict=True):
            rolling = merger.rolling()
            rolling.extend(vectors[start : start + length])
            expected = np.concatenate([rolling.vector[None], rolling.sections(1)])
            places = [("root", 0), *(("section", place) for place in range(0, length, merger.fanout))]
            made = found[[rows[name, kind, place] for kind, place in places]]
            worst = max(worst, float(np.abs(made - expected).max()))
            seen += len(places)
            start += length
    if seen != len(rows):
        sys.exit(f"{len(rows)} merged vectors were written, and {seen} expected.")
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=2_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--scattered-runs", type=int, default=1)
    parser.add_argument("--scratch", type=Path, help="folder for the files; the system's for temporary ones")
    parser.add_argument("--result", default="ray", help="name of the result file; others for tries")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        workers, *places = options.measure
        measure(int(workers), *places)
        return
    figures: dict[str, Any] = {"dimension": DIMENSION, "bars": {"gain": BAR, "difference": TOLERANCE}}
    for kind, runs in (("together", options.runs), ("scattered", options.scattered_runs)):
        if runs:
            figures[kind] = compared(kind, options.chunks, runs, options.scratch)
    path = RESULTS / f"{options.result}.json"
    head = {
        "benchmark": "ray",
        "command": (
            f"python -m benchmarks.ray_scaling --chunks {options.chunks} --runs {options.runs} "
            f"--scattered-runs {options.scattered_runs}"
        ),
        "seed": SEED,
        "commit": commit(),
        **environment("ray", "pyarrow"),
    }
    path.write_text(json.dumps(head | {"figures": figures}, indent=2) + "\n", encoding="utf-8")
    together = figures["together"]
    worst = max(each["difference_from_one_process"] for each in together["workers"].values())
    if together["gain_of_two_workers"] < BAR or worst > TOLERANCE:
        sys.exit(f"The bars are {BAR} times and {TOLERANCE:g}.")


def compared(kind: str, chunks: int, runs: int, scratch: Path | None) -> dict[str, Any]:
    """One worker and two, in turns, on files of a kind."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    differences: dict[int, float] = {}
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        total = write(folder / "chunks", chunks, scattered=kind == "scattered")
        write(folder / "few", 2_000, scattered=kind == "scattered")
        for number in range(runs):
            for workers in seconds:
                into = folder / f"merged-{workers}-{number}"
                done = run(workers, folder / "chunks", folder / "few", into)
                if done["chunks"] != total:
                    sys.exit(f"{done['chunks']} of {total} chunks were merged.")
                seconds[workers].append(done["seconds"])
                print(f"{kind}, {workers} workers: {done['seconds']:.1f} s", flush=True)
                if workers not in differences:
                    differences[workers] = difference(into, chunks)
    times = {workers: median(each) for workers, each in seconds.items()}
    gain, worst = times[1] / times[2], max(differences.values())
    print(f"{kind}: {gain:.2f} times with two workers; largest difference {worst:.1e}", flush=True)
    return {
        "chunks": total,
        "documents": done["documents"],
        "workers": {
            str(workers): {
                "seconds": [round(each, 2) for each in seconds[workers]],
                "chunks_per_second": round(total / times[workers]),
                "difference_from_one_process": differences[workers],
            }
            for workers in seconds
        },
        "gain_of_two_workers": round(gain, 3),
    }


if __name__ == "__main__":
    main()
