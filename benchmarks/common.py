"""What every benchmark shares: the data, embeddings kept between runs, and the head of a result file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merger_plugins import load_embedder
from merger_plugins._artefact import open_artefact
from merger_plugins.embedders.minilm import FOLDER
from merger_plugins.finesse.collections import Collection, best_of_group, by_group
from merger_plugins.finesse.embedding import Embeddings, cut, read_jsonl, revision
from merger_plugins.finesse.environment import environment
from merger_plugins.finesse.tasks import TASKS, Source, load_retrieval
from merger_plugins.finesse.tasks import Task as TaskRecord

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CACHE = ROOT / ".cache" / "benchmarks"
DEFAULT_DATA = ROOT.parent / "shared" / "data"

__all__ = [
    "CACHE",
    "DEFAULT_DATA",
    "RESULTS",
    "ROOT",
    "Collection",
    "Floats",
    "Ints",
    "Task",
    "as_found",
    "best_of_group",
    "by_group",
    "commit",
    "cut",
    "embed",
    "load_task",
    "ndcg10",
    "ndcg10_each",
    "read_jsonl",
    "revision",
    "source",
    "write_result",
]

_PLACES = ("--data", "--shards")

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Task(Collection):
    """One collection whose questions have one right answer each.

    Attributes:
        truncated: (documents, d) the first 510 tokens of each document.
        paragraphs: (p, d) each paragraph as one text, cut at 256 tokens, the model's training length.
        paragraph_document, paragraph_masses: (p,).
    """

    truncated: Floats
    paragraphs: Floats
    paragraph_document: Ints
    paragraph_masses: Floats

    @property
    def gold_passage(self) -> Ints:
        """(q,) the right paragraph."""
        assert self.relevant_passage is not None
        return self.relevant_passage


def source(data: Path) -> Source:
    """The data, embedded by the bundled embedder; embeddings are kept in .cache/."""
    return Source(data, _kept())


def as_found(name: str, data: Path) -> TaskRecord:
    """A task in the revision that the data has."""
    known = TASKS[name]
    return replace(known, revision=revision(data / file for file in known.files))


def load_task(name: str, data: Path) -> Task:
    """Read a retrieval set, chunk and embed it with the bundled embedder; embeddings are kept in .cache/."""
    loaded = load_retrieval(as_found(name, data), source(data))
    assert loaded.text is not None
    texts = loaded.text.documents
    paragraphs = [(i, p) for i, text in enumerate(texts) for p in text.split("\n\n")]
    embedder = load_embedder()
    return Task(
        **vars(loaded),
        truncated=embed(f"{name}-documents", list(texts)),
        paragraphs=embed(f"{name}-paragraphs", [cut(text, 254) for _, text in paragraphs]),
        paragraph_document=np.array([i for i, _ in paragraphs], np.int64),
        paragraph_masses=np.array([max(embedder.count_tokens(p), 1) for _, p in paragraphs], np.float32),
    )


@cache
def _kept() -> Embeddings:
    return Embeddings(folder=CACHE)


def embed(name: str, texts: list[str]) -> Floats:
    """Embed with the bundled embedder, or read what an earlier run embedded from the same texts."""
    return _kept()(name, texts)


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
        "commit": commit(),
        **environment("qdrant-client", "chromadb"),
    }
    path.write_text(json.dumps(head | {"figures": figures}, indent=2) + "\n", encoding="utf-8")
    return path


def _options(arguments: list[str]) -> Iterator[str]:
    """The options of the command line, but for where this machine keeps its data."""
    skip = False
    for argument in arguments:
        if not skip and argument.partition("=")[0] not in _PLACES:
            yield Path(argument).name if Path(argument).is_absolute() else argument
        skip = argument in _PLACES


def commit() -> str:
    """The one that is checked out."""
    run = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return run.stdout.strip() or "unknown"


def table(*rows: tuple[str, ...]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = rows
    lines = [" | ".join(head), "|".join("---" for _ in head), *(" | ".join(row) for row in body)]
    return "\n".join(f"|{line}|" if line.startswith("---") else f"| {line} |" for line in lines)
