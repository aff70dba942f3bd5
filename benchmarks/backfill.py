"""Back-fill beside reading the same points without merging.

Run ``python -m benchmarks.backfill``. Synthetic chunks, about 20 a document, scattered over the order of ids,
written as LangChain writes. ``--engine edge`` is the real Qdrant engine in the process; ``--engine local``
the client's embedded folder, which holds every point in memory and commits each written point by itself. Each
measurement runs in a process of its own, so that peak memory is its own; processor time stands beside the
clock's, which other work on the machine moves. Writes
benchmarks/results/backfill.json, or backfill-local.json.
"""

from __future__ import annotations

import argparse
import json
import resource
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
        result |= {"points_written": backend.points, "writing_s": round(backend.seconds, 2)}
    result |= {"seconds": round(time.perf_counter() - began, 2), "peak_mb": _peak()}
    result["cpu_s"] = round(time.process_time() - worked, 2)
    return result


class _Timed(QdrantBackend):
    """Knows how long the database takes to write."""

    seconds = 0.0
    points = 0

    def write(self, shelf: Shelf, points: Sequence[Point], *, below: int | None = None) -> None:
        began = time.perf_counter()
        super().write(shelf, points, below=below)
        self.seconds += time.perf_counter() - began
        self.points += len(points)


def _peak() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def in_a_process(engine: str, part: str, folder: Path) -> dict[str, Any]:
    """The same in another process."""
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.backfill",
            "--engine",
            engine,
            "--part",
            part,
            "--folder",
            str(folder),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    made: dict[str, Any] = json.loads(run.stdout)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chunks", type=int, default=200_000)
    parser.add_argument("--engine", choices=["edge", "local"], default="edge")
    parser.add_argument("--part", choices=["read", "backfill"])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--dry", action="store_true", help="print, and write no result file")
    arguments = parser.parse_args()
    engine = arguments.engine
    if arguments.part:
        print(json.dumps(measured(engine, arguments.part, arguments.folder)))
        return
    with tempfile.TemporaryDirectory() as parent:
        folder = arguments.folder or Path(parent) / "qdrant"
        if not folder.exists():
            make(engine, folder, arguments.chunks)
        reads = [in_a_process(engine, "read", folder)]
        first = in_a_process(engine, "backfill", folder)
        reads.append(in_a_process(engine, "read", folder))
        again = in_a_process(engine, "backfill", folder)
    read = min(one["seconds"] for one in reads)
    figures = {
        "chunks": arguments.chunks,
        "dimension": _PARAMS.size,
        "engine": engine,
        "reads": reads,
        "backfill": first,
        "backfill_again": again,
        "chunks_per_second": round(arguments.chunks / first["seconds"]),
        "time_over_read": round(first["seconds"] / read, 2),
        "cpu_over_read": round(first["cpu_s"] / min(one["cpu_s"] for one in reads), 2),
        "time_without_writing_over_read": round((first["seconds"] - first["writing_s"]) / read, 2),
        "peak_over_read_mb": first["peak_mb"] - max(one["peak_mb"] for one in reads),
    }
    print(json.dumps(figures, indent=2))
    if not arguments.dry:
        write_result(
            "backfill" if engine == "edge" else "backfill-local", seed=SEED, data={}, figures=figures
        )


if __name__ == "__main__":
    main()
