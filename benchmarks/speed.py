"""Speed, as ratios against a named alternative in the same run (pytest-benchmark).

Run ``python -m benchmarks.speed``. Writes benchmarks/results/speed.json. Times are medians; a machine's other
work moves them, so that the ratios count, and each pair runs side by side in one process.
"""

from __future__ import annotations

import json
import sys
import tempfile
import uuid
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from benchmarks.common import Floats, write_result
from merger_plugins import CalibratedMerger, MeanMerger, SequenceMerger, load_embedder, load_merger
from merger_plugins.chunking import SentenceChunker
from merger_plugins.qdrant import QdrantStore

DIMENSION = 384
CORPUS = Path(__file__).resolve().parents[1] / "merger_plugins" / "demo" / "corpus"
SEED = 0


@pytest.fixture(scope="session")
def ragged() -> list[Floats]:
    """1,000 sequences of 1 to 10 vectors, as sections are."""
    generator = np.random.default_rng(SEED)
    lengths = generator.integers(1, 11, 1_000)
    return [generator.standard_normal((n, DIMENSION), dtype=np.float32) for n in lengths]


@pytest.fixture(scope="session")
def documents() -> list[Floats]:
    """100 documents of 20 to 200 vectors."""
    generator = np.random.default_rng(SEED)
    lengths = generator.integers(20, 201, 100)
    return [generator.standard_normal((n, DIMENSION), dtype=np.float32) for n in lengths]


@pytest.fixture(scope="session")
def calibrated(documents: list[Floats]) -> CalibratedMerger:
    merger = load_merger()
    assert isinstance(merger, CalibratedMerger)
    return merger.calibrated(documents)


@pytest.fixture(scope="session")
def onnx(calibrated: CalibratedMerger, tmp_path_factory: pytest.TempPathFactory) -> SequenceMerger:
    return load_merger(calibrated.export(tmp_path_factory.mktemp("onnx") / "merger"))


@pytest.fixture(scope="session")
def onnx_mean(tmp_path_factory: pytest.TempPathFactory) -> SequenceMerger:
    folder = tmp_path_factory.mktemp("onnx-mean") / "merger"
    return load_merger(MeanMerger().export(folder, dimension=DIMENSION))


@pytest.fixture(scope="session")
def texts() -> list[list[str]]:
    """The chunks of the demo's documents."""
    files = sorted(file for file in CORPUS.iterdir() if file.suffix in (".md", ".txt"))
    return [[c.text for c in SentenceChunker().split(file.read_text(encoding="utf-8"))] for file in files]


@pytest.fixture(scope="session")
def embedded(texts: list[list[str]]) -> list[Floats]:
    return [load_embedder().embed_documents(chunks) for chunks in texts]


def test_embed_corpus(benchmark: Any, texts: list[list[str]]) -> None:
    embedder = load_embedder()
    flat = [text for chunks in texts for text in chunks]
    benchmark.pedantic(embedder.embed_documents, (flat,), rounds=3, warmup_rounds=1)


def test_merge_corpus(benchmark: Any, embedded: list[Floats], calibrated: CalibratedMerger) -> None:
    benchmark.pedantic(calibrated.merge_many, (embedded,), rounds=10, warmup_rounds=1)


def test_calibrate_corpus(benchmark: Any, embedded: list[Floats], calibrated: CalibratedMerger) -> None:
    benchmark.pedantic(calibrated.calibrated, (embedded,), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("kind", ["mean", "calibrated", "onnx", "onnx_mean"])
@pytest.mark.parametrize("how", ["many", "loop"])
def test_merge(benchmark: Any, request: Any, ragged: list[Floats], kind: str, how: str) -> None:
    merger = MeanMerger() if kind == "mean" else request.getfixturevalue(kind)

    def loop() -> None:
        for sequence in ragged:
            merger.merge(sequence)

    work = loop if how == "loop" else lambda: merger.merge_many(ragged)
    benchmark.pedantic(work, rounds=7, warmup_rounds=1)


def test_whitening_product(benchmark: Any, ragged: list[Floats], calibrated: CalibratedMerger) -> None:
    """All vectors times a (d, d) matrix and nothing else: no merger that whitens takes less."""
    vectors = np.concatenate(ragged)
    whitening = calibrated.calibration.whitening.astype(np.float32)
    product = np.empty_like(vectors)
    benchmark.pedantic(np.matmul, (vectors, whitening, product), rounds=21, warmup_rounds=1)


@pytest.mark.parametrize("turns", [100, 100_000])
def test_append_and_read(benchmark: Any, calibrated: CalibratedMerger, turns: int) -> None:
    generator = np.random.default_rng(SEED)
    rolling = calibrated.rolling()
    for start in range(0, turns, 10_000):
        rolling.extend(generator.standard_normal((min(10_000, turns - start), DIMENSION), dtype=np.float32))
    resumed = calibrated.rolling(rolling.state)
    vectors = generator.standard_normal((1_000, DIMENSION), dtype=np.float32)
    turn = count()

    def step() -> Floats:
        resumed.append(vectors[next(turn) % 1_000])
        return resumed.vector

    benchmark.pedantic(step, rounds=300, warmup_rounds=20)


@pytest.fixture
def folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as path:
        yield path


def test_ingest_plain(benchmark: Any, documents: list[Floats], folder: str) -> None:
    """The same chunk points, with the payload that a LangChain application writes, by the client alone."""
    runs = count()

    def work() -> None:
        client = QdrantClient(path=f"{folder}/{next(runs)}")
        space = models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)
        client.create_collection("documents", vectors_config=space)
        for name, vectors in enumerate(documents):
            points = [
                models.PointStruct(
                    id=str(uuid.uuid5(uuid.NAMESPACE_OID, f"{name}/{position}")),
                    vector=vector.tolist(),
                    payload={
                        "page_content": "",
                        "metadata": {"document_id": str(name), "position": position},
                    },
                )
                for position, vector in enumerate(vectors)
            ]
            client.upsert("documents", points, wait=True)
        client.close()

    benchmark.pedantic(work, rounds=3, warmup_rounds=1)


def test_ingest_hook(
    benchmark: Any, documents: list[Floats], folder: str, calibrated: CalibratedMerger
) -> None:
    runs = count()

    def work() -> None:
        with QdrantStore(f"{folder}/{next(runs)}", merger=calibrated) as store:
            for name, vectors in enumerate(documents):
                store.ingest(str(name), vectors=vectors)

    benchmark.pedantic(work, rounds=3, warmup_rounds=1)


WHITENING_SHARE = "share of merge_many, calibrated as ONNX, that is the whitening product"
"""The product by numpy; 1 over the time of `whitening_product` is the rate that merge_many cannot exceed."""

BARS = {
    "merging over embedding a corpus": ("<", 0.01),
    "merge_many over a loop, calibrated": (">", 5.0),
    "merge_many over a loop, calibrated as ONNX": (">", 20.0),
    "merge_many over a loop, mean as ONNX": (">", 20.0),
    "append and read, turn 100,000 over turn 100": ("<", 2.0),
    "ingesting through the hook over the client alone": ("<", 1.25),
}


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "benchmark.json")
        code = pytest.main(
            [__file__, "-q", "-p", "no:cacheprovider", f"--benchmark-json={path}", *sys.argv[1:]]
        )
        if code:
            return int(code)
        runs = json.loads(path.read_text())["benchmarks"]
    seconds = {run["name"].removeprefix("test_"): run["stats"]["median"] for run in runs}
    ratios = {
        "merging over embedding a corpus": seconds["merge_corpus"] / seconds["embed_corpus"],
        "calibrating over embedding a corpus": seconds["calibrate_corpus"] / seconds["embed_corpus"],
        "merge_many over a loop, mean": seconds["merge[loop-mean]"] / seconds["merge[many-mean]"],
        "merge_many over a loop, calibrated": seconds["merge[loop-calibrated]"]
        / seconds["merge[many-calibrated]"],
        "merge_many over a loop, calibrated as ONNX": seconds["merge[loop-onnx]"]
        / seconds["merge[many-onnx]"],
        WHITENING_SHARE: seconds["whitening_product"] / seconds["merge[many-onnx]"],
        "merge_many over a loop, mean as ONNX": seconds["merge[loop-onnx_mean]"]
        / seconds["merge[many-onnx_mean]"],
        "append and read, turn 100,000 over turn 100": seconds["append_and_read[100000]"]
        / seconds["append_and_read[100]"],
        "ingesting through the hook over the client alone": seconds["ingest_hook"] / seconds["ingest_plain"],
    }
    ratios = {name: round(value, 5) for name, value in ratios.items()}
    missed = [
        name
        for name, (sign, bar) in BARS.items()
        if (ratios[name] > bar if sign == "<" else ratios[name] < bar)
    ]
    for name, value in ratios.items():
        bar = " ".join(map(str, BARS.get(name, ())))
        print(f"  {name:<71} {value:10.4f}   {bar}{'  MISSED' if name in missed else ''}")
    figures = {"ratios": ratios, "seconds": {name: round(value, 7) for name, value in seconds.items()}}
    print(write_result("speed", seed=SEED, data={"corpus": "merger_plugins/demo/corpus"}, figures=figures))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
