"""Back-fill beside reading the same points without merging.

Run ``python -m benchmarks.backfill``. Synthetic chunks, about 20 a document, scattered over the order of ids,
written as LangChain writes. ``--engine edge`` is the real Qdrant engine in the process; ``--engine local`` the
client's embedded folder, which holds every point in memory and commits every point that is written by itself.
Each measurement runs in a process of its own, so that peak memory is its own. Writes
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
from pathlib import Path
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, models

from benchmarks.common import write_result
from merger_plugins.qdrant import QdrantBackend, QdrantStore
from merger_plugins.stores import BackfillProgress
from merger_plugins.stores.backend import Where

SEED = 20
COLLECTION = "app"
TEXT = "About as many words as a chunk of fifty tokens has, so that payloads weigh what they weigh. " * 3


def make(folder: Path, chunks: int, dimension: int) -> int:
    """Write the collection; returns the number of documents."""
    rng = np.random.default_rng(SEED)
    lengths: list[int] = []
    while sum(lengths) < chunks:
        lengths.append(int(rng.integers(1, 40)))
    lengths[-1] -= sum(lengths) - chunks
    centre = rng.standard_normal(dimension)
    client = QdrantClient(path=str(folder))
    params = models.VectorParams(size=dimension, distance=models.Distance.COSINE)
    client.create_collection(COLLECTION, vectors_config={"": params})
    database = client._client.collections[COLLECTION].storage.storage
    database.execute("PRAGMA synchronous = OFF")  # of the making, which is not measured
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


def measured(part: str, folder: Path) -> dict[str, Any]:
    """One measurement, in this process: seconds after the folder was opened, and megabytes at the most."""
    client = QdrantClient(path=str(folder))
    result: dict[str, Any] = {"after_opening_mb": _peak()}
    began = time.perf_counter()
    if part == "read":
        backend = QdrantBackend(client, COLLECTION)
        backend.layout()
        result["points"] = sum(1 for _ in backend.scan("chunks", Where(), vectors=True))
    elif part == "backfill":
        ends: dict[str, float] = {}

        def progress(step: BackfillProgress) -> None:
            ends[step.stage] = round(time.perf_counter() - began, 2)

        done = QdrantStore(client, COLLECTION).backfill(progress=progress)
        result |= {
            "documents": done.documents,
            "merged": done.merged,
            "chunks": done.chunks,
            "stage_ends": ends,
        }
    result |= {"seconds": round(time.perf_counter() - began, 2), "peak_mb": _peak()}
    return result


def _peak() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def in_a_process(part: str, folder: Path) -> dict[str, Any]:
    """The same in another process."""
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.backfill", "--part", part, "--folder", str(folder)],
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
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--part", choices=["read", "backfill"])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--dry", action="store_true", help="print, and write no result file")
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(measured(arguments.part, arguments.folder)))
        return
    with tempfile.TemporaryDirectory() as parent:
        folder = arguments.folder or Path(parent) / "qdrant"
        if not folder.exists():
            make(folder, arguments.chunks, arguments.dimension)
        read = in_a_process("read", folder)
        first = in_a_process("backfill", folder)
        again = in_a_process("backfill", folder)
    figures = {
        "chunks": arguments.chunks,
        "dimension": arguments.dimension,
        "read": read,
        "backfill": first,
        "backfill_again": again,
        "chunks_per_second": round(arguments.chunks / first["seconds"]),
        "time_over_read": round(first["seconds"] / read["seconds"], 2),
        "peak_over_read_mb": first["peak_mb"] - read["peak_mb"],
    }
    print(json.dumps(figures, indent=2))
    if not arguments.dry:
        write_result("backfill", seed=SEED, data={}, figures=figures)


if __name__ == "__main__":
    main()
