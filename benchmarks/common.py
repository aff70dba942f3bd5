"""What every benchmark shares: the data, embeddings kept between runs, and the head of a result file."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from merger_plugins import load_embedder
from merger_plugins._artefact import open_artefact
from merger_plugins.chunking import SentenceChunker
from merger_plugins.embedders.minilm import FOLDER

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CACHE = ROOT / ".cache" / "benchmarks"
DEFAULT_DATA = ROOT.parent / "shared" / "data"

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def revision(files: Iterable[Path]) -> str:
    """Tells whether the data changed: a digest of the files, in this order."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


@dataclass(frozen=True)
class Collection:
    """Chunked documents with questions.

    Attributes:
        chunks: (c, d) raw chunk vectors of all documents, in reading order.
        document: (c,) the document of each chunk, ascending.
        masses: (c,) tokens.
        queries: (q, d) raw query vectors.
        truncated: (documents, d) the first 510 tokens of each document.
    """

    name: str
    revision: str
    chunks: Floats
    document: Ints
    masses: Floats
    queries: Floats
    truncated: Floats

    @property
    def documents(self) -> int:
        return int(self.document[-1]) + 1

    def sequences(self) -> list[Floats]:
        return by_group(self.chunks, self.document)

    def sequence_masses(self) -> list[Floats]:
        return by_group(self.masses, self.document)


@dataclass(frozen=True)
class Task(Collection):
    """One collection whose questions have one right answer each.

    Attributes:
        passage: (c,) the paragraph of each chunk, numbered over the whole collection.
        gold: (q,) the right document; gold_passage: (q,) the right paragraph.
        paragraphs: (p, d) each paragraph as one text, cut at 256 tokens, the model's training length.
        paragraph_document, paragraph_masses: (p,).
    """

    passage: Ints
    gold: Ints
    gold_passage: Ints
    paragraphs: Floats
    paragraph_document: Ints
    paragraph_masses: Floats


def by_group(rows: Floats, group: Ints) -> list[Floats]:
    """Rows split where the ascending group number changes."""
    return np.split(rows, np.flatnonzero(np.diff(group)) + 1)


def load_task(name: str, data: Path) -> Task:
    """Read a retrieval set, chunk and embed it with the bundled embedder; embeddings are kept in .cache/."""
    folder = data / "eval" / name
    embedder, chunker = load_embedder(), SentenceChunker()
    files = [folder / f"{part}.jsonl.gz" for part in ("docs", "queries", "qrels")]
    revision = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    documents, queries, qrels = (read_jsonl(file) for file in files)
    paragraphs = [(i, p) for i, row in enumerate(documents) for p in row["text"].split("\n\n")]
    first = np.cumsum([0] + [len(row["text"].split("\n\n")) for row in documents])
    chunks, owner, passage = [], [], []
    for i, row in enumerate(documents):
        ends = np.cumsum([len(p) + 2 for p in row["text"].split("\n\n")])
        for chunk in chunker.split(row["text"]):
            chunks.append(chunk)
            owner.append(i)
            passage.append(int(first[i] + np.searchsorted(ends, chunk.start, side="right")))
    index = {row["id"]: i for i, row in enumerate(documents)}
    relevant = {row["query_id"]: row for row in qrels}
    golds = [relevant[row["id"]] for row in queries]
    short = [cut(text, 254) for _, text in paragraphs]
    return Task(
        name=name,
        revision=revision,
        chunks=embed(f"{name}-chunks", [chunk.text for chunk in chunks]),
        document=np.array(owner, np.int64),
        passage=np.array(passage, np.int64),
        masses=np.array([chunk.tokens for chunk in chunks], np.float32),
        queries=embed(f"{name}-queries", [row["text"] for row in queries]),
        gold=np.array([index[row["doc_id"]] for row in golds], np.int64),
        gold_passage=np.array([first[index[row["doc_id"]]] + row["passage"] for row in golds], np.int64),
        truncated=embed(f"{name}-documents", [row["text"] for row in documents]),
        paragraphs=embed(f"{name}-paragraphs", short),
        paragraph_document=np.array([i for i, _ in paragraphs], np.int64),
        paragraph_masses=np.array([max(embedder.count_tokens(p), 1) for _, p in paragraphs], np.float32),
    )


def cut(text: str, tokens: int) -> str:
    """The text up to its first `tokens` tokens of the bundled tokenizer."""
    offsets = _tokenizer().encode(text, add_special_tokens=False).offsets
    return text if len(offsets) <= tokens else text[: offsets[tokens - 1][1]]


@cache
def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    tokenizer.no_truncation()
    return tokenizer


def embed(name: str, texts: list[str]) -> Floats:
    """Embed with the bundled embedder, or read what an earlier run embedded from the same texts."""
    embedder = load_embedder()
    digest = hashlib.sha256(open_artefact(FOLDER).fingerprint.encode())
    for text in texts:
        digest.update(text.encode() + b"\0")
    path = CACHE / f"{name}-{digest.hexdigest()[:16]}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        vectors = embedder.embed_documents(texts)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, vectors)
        partial.replace(path)
    loaded: Floats = np.load(path)
    return loaded


def best_of_group(scores: Floats, group: Ints, groups: int) -> Floats:
    """(q, rows) scores -> (q, groups): the best row of each group; a group without rows gets -inf."""
    best = np.full((len(scores), groups), -np.inf, np.float32)
    starts = np.flatnonzero(np.r_[True, np.diff(group) != 0])
    best[:, group[starts]] = np.maximum.reduceat(scores, starts, axis=1)
    return best


def ndcg10(scores: Floats, gold: Ints) -> float:
    """nDCG@10 with one right answer a query; ties count against it."""
    right = scores[np.arange(len(gold)), gold][:, None]
    rank = (scores >= right).sum(axis=1) - 1
    return float(np.where(rank < 10, 1 / np.log2(rank + 2), 0).mean())


def ndcg10_each(scores: Floats, relevant: NDArray[np.bool_]) -> Floats:
    """(q,) nDCG@10 with several right answers a query, True in (q, p), of gain 1; ties count against them."""
    best = np.lexsort((relevant, -scores), axis=1)[:, :10]
    discount = 1 / np.log2(np.arange(best.shape[1]) + 2)
    ideal = np.r_[0, np.cumsum(discount)][np.minimum(relevant.sum(axis=1), best.shape[1])]
    gained: Floats = np.take_along_axis(relevant, best, axis=1) @ discount / ideal
    return gained


def write_result(name: str, *, seed: int | None, data: dict[str, str], figures: dict[str, Any]) -> Path:
    """Write a result file with what it takes to make it again."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    head = {
        "benchmark": name,
        "command": " ".join(["python -m", f"benchmarks.{name.partition('-')[0]}", *_options(sys.argv[1:])]),
        "seed": seed,
        "data": data,
        "embedder": {"name": load_embedder().name, "fingerprint": open_artefact(FOLDER).fingerprint},
        "versions": {
            p: version(p)
            for p in _installed("merger-plugins", "numpy", "onnxruntime", "tokenizers", "qdrant-client")
        },
        "python": platform.python_version(),
        "commit": _commit(),
        "hardware": {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "system": platform.system()},
    }
    path.write_text(json.dumps(head | {"figures": figures}, indent=2) + "\n", encoding="utf-8")
    return path


def _options(arguments: list[str]) -> Iterator[str]:
    """The options of the command line, but for where this machine keeps its data."""
    skip = False
    for argument in arguments:
        if not skip and argument != "--data" and not argument.startswith("--data="):
            yield argument
        skip = argument == "--data"


def _installed(*packages: str) -> Iterator[str]:
    from importlib.metadata import PackageNotFoundError

    for package in packages:
        try:
            version(package)
        except PackageNotFoundError:
            continue
        yield package


def _commit() -> str:
    run = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return run.stdout.strip() or "unknown"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
