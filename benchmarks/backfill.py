"""Back-fill beside reading the same points without merging.

Run ``python -m benchmarks.backfill``. Synthetic chunks, about 20 a document, scattered over the order of ids,
written as LangChain writes. ``--engine edge`` is the real Qdrant engine in the process; ``--engine local``
the client's embedded folder, which holds every point in memory and commits each written point by itself. Each
measurement runs in a process of its own, so that peak memory is its own; processor time stands beside the
clock's, which other work on the machine moves. Writes
benchmarks/results/backfill.json; backfill-million.json for a million chunks, backfill-local.json for the
embedded folder.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as edge
from qdrant_client import QdrantClient, models

from benchmarks.common import write_result
from merger_plugins.qdrant import QdrantBackend
from merger_plugins.stores import BackfillProgress, MergedStore
from merger_plugins.stores.backend import Point, Shelf, Where
from tests.stores.edge import EdgeClient

SEED = 20
COLLECTION = "app"
COMPANION = f"{COLLECTION}__merged"
_PARAMS = models.VectorParams(size=384, distance=models.Distance.COSINE)
TEXT = "About as many words as a chunk of fifty tokens has, so that payloads weigh what they weigh. " * 3


class Shards(EdgeClient):
    """The collection and its companion, reopened where they are."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        for path in sorted(folder.glob("*")):
            self.shards[path.name] = edge.EdgeShard.load(str(path))
            self.configs[path.name] = {"": _PARAMS} if path.name == COLLECTION else _PARAMS


def connect(engine: str, folder: Path) -> QdrantClient:
    return Shards(folder) if engine == "edge" else QdrantClient(path=str(folder))


def make(engine: str, folder: Path, chunks: int) -> int:
    """Write the collection; returns the number of documents."""
    rng = np.random.default_rng(SEED)
    lengths: list[int] = []
    while sum(lengths) < chunks:
        lengths.append(int(rng.integers(1, 40)))
    lengths[-1] -= sum(lengths) - chunks
    dimension = _PARAMS.size
    centre = rng.standard_normal(dimension)
    client = connect(engine, folder)
    client.create_collection(COLLECTION, vectors_config={"": _PARAMS})
    if engine == "local":  # making is not measured
        client._client.collections[COLLECTION].storage.storage.execute("PRAGMA synchronous = OFF")
    points: list[models.PointStruct] = []
    for document, length in enumerate(lengths):
        vectors = centre + 2 * rng.standard_normal(dimension) + 3 * rng.standard_normal((length, dimension))
        for place, vector in enumerate(vectors.astype(np.float32).tolist()):
            points.append(
                models.PointStruct.model_construct(
                    id=str(uuid.UUID(bytes=rng.bytes(16), version=4)),
                    vector={"": vector},
                    payload={
                        "page_content": f"{TEXT}{document}/{place}",
                        "metadata": {"source": f"folder/{document}.txt", "start_index": 280 * place},
                    },
                )
            )
        if len(points) > 2_000:
            client.upsert(COLLECTION, points)
            points = []
    if points:
        client.upsert(COLLECTION, points)
    client.close()
    return len(lengths)


def measured(engine: str, part: str, folder: Path) -> dict[str, Any]:
    """One measurement, in this process: seconds after the folder was opened, and megabytes at the most."""
    client = connect(engine, folder)
    result: dict[str, Any] = {"after_opening_mb": _peak()}
    began, worked = time.perf_counter(), time.process_time()
    if part == "read":
        backend = QdrantBackend(client, COLLECTION)
        backend.layout()
        result["points"] = sum(1 for _ in backend.scan("chunks", Where(), vectors=True))
    elif part == "backfill":
        ends: dict[str, list[float]] = {}

        def progress(step: BackfillProgress) -> None:
            now = time.perf_counter() - began, time.process_time() - worked
            ends[step.stage] = [round(seconds, 2) for seconds in now]

        backend = _Timed(client, COLLECTION)
        done = MergedStore(backend).backfill(progress=progress)
        result |= {"documents": done.documents, "merged": done.merged, "stage_ends": ends}
        result |= {key: round(value, 2) for key, value in backend.spent.items()}
    result |= {"seconds": round(time.perf_counter() - began, 2), "peak_mb": _peak()}
    result["cpu_s"] = round(time.process_time() - worked, 2)
    return result


class _Timed(QdrantBackend):
    """Knows how long the database takes to write."""

    def __init__(self, client: QdrantClient, collection: str) -> None:
        super().__init__(client, collection)
        self.spent = {"points_written": 0, "writing_s": 0.0, "writing_cpu_s": 0.0}

    def write(self, shelf: Shelf, points: Sequence[Point], *, below: int | None = None) -> None:
        began, worked = time.perf_counter(), time.process_time()
        super().write(shelf, points, below=below)
        self.spent["points_written"] += len(points)
        self.spent["writing_s"] += time.perf_counter() - began
        self.spent["writing_cpu_s"] += time.process_time() - worked


def _peak() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def in_a_process(engine: str, part: str, folder: Path) -> dict[str, Any]:
    """The same in another process."""
    options = ["--engine", engine, "--part", part, "--data", str(folder)]
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.backfill", *options], capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise SystemExit(run.stderr)
    made: dict[str, Any] = json.loads(run.stdout)
    print(part, made, file=sys.stderr, flush=True)
    return made


def forget_merged(engine: str, folder: Path) -> None:
    """Remove the companion, so that the next back-fill is the first one."""
    client = connect(engine, folder)
    if client.collection_exists(COMPANION):
        client.delete_collection(COMPANION)
    client.close()
    if engine == "edge":
        shutil.rmtree(folder / COMPANION, ignore_errors=True)


def compared(
    chunks: int, reads: Sequence[dict[str, Any]], fills: Sequence[dict[str, Any]], again: dict[str, Any]
) -> dict[str, float]:
    """Back-filling over reading: by the clock the quickest of each, by processor time the medians."""

    def least(runs: Sequence[dict[str, Any]]) -> float:
        return min(run["seconds"] for run in runs)

    def middle(runs: Sequence[dict[str, Any]], key: str = "cpu_s") -> float:
        return statistics.median(run[key] for run in runs)

    def grown(runs: Sequence[dict[str, Any]]) -> int:
        return max(run["peak_mb"] - run["after_opening_mb"] for run in runs)

    return {
        "chunks_per_second": round(chunks / least(fills)),
        "time_over_read": round(least(fills) / least(reads), 2),
        "cpu_over_read": round(middle(fills) / middle(reads), 2),
        "cpu_without_writing_over_read": round(
            (middle(fills) - middle(fills, "writing_cpu_s")) / middle(reads), 2
        ),
        "peak_mb": max(run["peak_mb"] for run in (*fills, again)),
        "peak_of_reading_mb": max(run["peak_mb"] for run in reads),
        "over_opening_mb": grown(fills),
        "over_opening_of_reading_mb": grown(reads),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chunks", type=int, default=200_000)
    parser.add_argument("--engine", choices=["edge", "local"], default="edge")
    parser.add_argument("--rounds", type=int, default=3, help="how often to read, and to back-fill, in turn")
    parser.add_argument("--part", choices=["read", "backfill"])
    parser.add_argument("--data", type=Path, help="folder of the collection; made where it does not exist")
    parser.add_argument("--dry", action="store_true", help="print, and write no result file")
    arguments = parser.parse_args()
    engine = arguments.engine
    if arguments.part:
        print(json.dumps(measured(engine, arguments.part, arguments.data)))
        return
    with tempfile.TemporaryDirectory() as parent:
        folder = arguments.data or Path(parent) / "qdrant"
        if not folder.exists():
            make(engine, folder, arguments.chunks)
        reads, fills = [], []
        for _ in range(arguments.rounds):
            forget_merged(engine, folder)
            reads.append(in_a_process(engine, "read", folder))
            fills.append(in_a_process(engine, "backfill", folder))
        again = in_a_process(engine, "backfill", folder)
    figures = {
        "chunks": arguments.chunks,
        "dimension": _PARAMS.size,
        "engine": engine,
        "blas_threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "reads": reads,
        "backfills": fills,
        "backfill_again": again,
        **compared(arguments.chunks, reads, fills, again),
    }
    print(json.dumps(figures, indent=2))
    if not arguments.dry:
        size = "-million" if arguments.chunks == 1_000_000 else ""
        name = f"backfill{'' if engine == 'edge' else '-local'}{size}"
        write_result(name, seed=SEED, data={}, figures=figures)


if __name__ == "__main__":
    main()
