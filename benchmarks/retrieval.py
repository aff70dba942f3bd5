"""Retrieval by merged vectors beside what people do today: nDCG@10, raw query vectors, plain cosine.

Run ``python -m benchmarks.retrieval --data FOLDER``. The first run embeds the collections (minutes on two
cores) and keeps the vectors in .cache/. Writes benchmarks/results/retrieval.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import (
    DEFAULT_DATA,
    Collection,
    Floats,
    Ints,
    Task,
    best_of_group,
    by_group,
    load_task,
    ndcg10,
    write_result,
)
from merger_plugins import CalibrationStatistics, MeanMerger, SequenceMerger, load_merger
from merger_plugins.mergers.base import FANOUT
from merger_plugins.stores import FusionWeights

SETS = ("covidqa", "xquad_en")
SUBSETS = (20, 50, 200, 1_000, 5_000)
SEEDS = (0, 1, 2)
WEIGHTS = FusionWeights()

BARS = {
    "covidqa": {
        "truncation": 0.499, "mean": 0.559, "calibrated root, flat": 0.646, "calibrated root, tree": 0.620,
        "mean of 10 chunks": 0.677, "calibrated sections, K = 10": 0.755, "calibrated sections, K = 5": 0.761,
        "raw chunks": 0.772, "raw chunks + root": 0.782, "calibrated chunks": 0.803,
        "calibrated chunks + root": 0.815, "passages, whole paragraphs, contextual": 0.440,
    },
    "xquad_en": {
        "truncation": 0.890, "mean": 0.915, "calibrated root, flat": 0.927, "calibrated root, tree": 0.919,
        "mean of 10 chunks": 0.933, "calibrated sections, K = 10": 0.945, "calibrated sections, K = 5": 0.956,
        "raw chunks": 0.982, "raw chunks + root": 0.982, "calibrated chunks": 0.978,
        "calibrated chunks + root": 0.982,
    },
}  # fmt: skip
"""What a run is compared with; a missed bar is printed."""


class Scores:
    """Scores the documents of one collection by stored vectors."""

    def __init__(self, task: Collection) -> None:
        self.task = task

    def by_document(self, vectors: Floats) -> Floats:
        scores: Floats = self.task.queries @ vectors.T
        return scores

    def by_best(self, vectors: Floats, owner: Ints) -> Floats:
        return best_of_group(self.task.queries @ vectors.T, owner, self.task.documents)

    def fused(self, chunks: Floats, sections: Floats, owner: Ints, roots: Floats) -> Floats:
        """A document's best chunk, where a chunk brings its own section's score; and the root's score."""
        task = self.task
        first = np.searchsorted(owner, task.document)
        position = np.arange(len(task.document)) - np.searchsorted(task.document, task.document)
        inside = (task.queries @ sections.T)[:, first + position // FANOUT]
        chunk = WEIGHTS.chunk * (task.queries @ chunks.T) + WEIGHTS.section * inside
        return best_of_group(chunk, task.document, task.documents) + WEIGHTS.root * roots


def figure(task: Task, scores: Floats) -> float:
    return round(ndcg10(scores, task.gold), 4)


def sections(task: Collection, merger: SequenceMerger, size: int) -> tuple[Floats, Ints]:
    """The section vectors of all documents and the document of each."""
    parts, masses, owner = [], [], []
    for index, (sequence, mass) in enumerate(zip(task.sequences(), task.sequence_masses(), strict=True)):
        cuts = range(size, len(sequence), size)
        parts += np.split(sequence, cuts)
        masses += np.split(mass, cuts)
        owner += [index] * (len(cuts) + 1)
    return merger.merge_many(parts, masses=masses), np.array(owner, np.int64)


def contextual(task: Task, merger: SequenceMerger) -> Floats:
    pairs = zip(task.sequences(), task.sequence_masses(), strict=True)
    return np.concatenate([merger.contextualize(sequence, masses=mass) for sequence, mass in pairs])


def tree_roots(task: Collection, merger: SequenceMerger) -> Floats:
    roots = []
    for sequence, mass in zip(task.sequences(), task.sequence_masses(), strict=True):
        rolling = merger.rolling()
        rolling.extend(sequence, masses=mass)
        roots.append(rolling.vector)
    return np.stack(roots)


def document_rows(task: Task, merger: SequenceMerger) -> dict[str, float]:
    score, mean = Scores(task), MeanMerger()
    sequences, masses = task.sequences(), task.sequence_masses()
    flat = merger.merge_many(sequences, masses=masses)
    tree = tree_roots(task, merger)
    root = score.by_document(tree)
    own = merger.merge_many(list(task.chunks[:, None]))
    with_context = contextual(task, merger)
    ten = sections(task, merger, 10)
    mean_root = score.by_document(mean.merge_many(sequences, masses=masses))

    rows = {
        "truncation": score.by_document(task.truncated),
        "mean, unweighted": score.by_document(mean.merge_many(sequences)),
        "mean": mean_root,
        "calibrated root, flat": score.by_document(flat),
        "calibrated root, tree": root,
        "mean of 10 chunks": score.by_best(*sections(task, mean, 10)),
        "calibrated sections, K = 10": score.by_best(*ten),
        "mean of 5 chunks": score.by_best(*sections(task, mean, 5)),
        "calibrated sections, K = 5": score.by_best(*sections(task, merger, 5)),
        "raw chunks": score.by_best(task.chunks, task.document),
        "raw chunks + mean": score.fused(task.chunks, *sections(task, mean, 10), mean_root),
        "raw chunks + root": score.fused(task.chunks, *ten, root),
        "calibrated chunks": score.by_best(own, task.document),
        "calibrated chunks + root": score.fused(own, *ten, root),
        "contextual chunks": score.by_best(with_context, task.document),
        "contextual chunks + root": score.fused(with_context, *ten, root),
    }
    return {name: figure(task, scores) for name, scores in rows.items()}


def passage_rows(task: Task, merger: SequenceMerger) -> dict[str, float]:
    """Which paragraph: each as one embedded text, as the merge of its chunks, and as its best chunk."""
    count = len(task.paragraph_document)
    pairs = list(
        zip(
            by_group(task.paragraphs, task.paragraph_document),
            by_group(task.paragraph_masses, task.paragraph_document),
            strict=True,
        )
    )
    own = merger.calibrated([paragraphs for paragraphs, _ in pairs])
    filled = np.unique(task.passage)
    inside = by_group(task.chunks, task.passage)
    inside_masses = by_group(task.masses, task.passage)

    def whole(vectors: Floats) -> float:
        return round(ndcg10(task.queries @ vectors.T, task.gold_passage), 4)

    def best(vectors: Floats, passage: Ints) -> float:
        return round(ndcg10(best_of_group(task.queries @ vectors.T, passage, count), task.gold_passage), 4)

    return {
        "passages, whole paragraphs, raw": whole(task.paragraphs),
        "passages, whole paragraphs, calibrated": whole(own.merge_many(list(task.paragraphs[:, None]))),
        "passages, whole paragraphs, contextual": whole(
            np.concatenate([own.contextualize(p, masses=mass) for p, mass in pairs])
        ),
        "passages, mean of their chunks": best(MeanMerger().merge_many(inside, masses=inside_masses), filled),
        "passages, calibrated merge of their chunks": best(
            merger.merge_many(inside, masses=inside_masses), filled
        ),
        "passages, best raw chunk": best(task.chunks, task.passage),
        "passages, best calibrated chunk": best(merger.merge_many(list(task.chunks[:, None])), task.passage),
        "passages, best contextual chunk": best(contextual(task, merger), task.passage),
    }


def subset_rows(task: Task, base: SequenceMerger) -> dict[str, Any]:
    """Calibrated on a random subset of the chunk vectors, minus uncalibrated: the least of three draws."""
    score, mean = Scores(task), MeanMerger()
    mean_root = score.by_document(mean.merge_many(task.sequences(), masses=task.sequence_masses()))
    ten = sections(task, mean, 10)
    without = {
        "root": figure(task, mean_root),
        "sections": figure(task, score.by_best(*ten)),
        "chunks": figure(task, score.by_best(task.chunks, task.document)),
        "chunks + root": figure(task, score.fused(task.chunks, *ten, mean_root)),
    }

    def gains(merger: SequenceMerger) -> dict[str, float]:
        root = score.by_document(tree_roots(task, merger))
        ten = sections(task, merger, 10)
        own = merger.merge_many(list(task.chunks[:, None]))
        parts = {
            "root": root,
            "sections": score.by_best(*ten),
            "chunks": score.by_best(own, task.document),
            "chunks + root": score.fused(own, *ten, root),
        }
        return {name: round(figure(task, part) - without[name], 4) for name, part in parts.items()}

    figures: dict[str, Any] = {"uncalibrated": without}
    for size in (*SUBSETS, len(task.chunks)):
        if size > len(task.chunks):
            continue
        draws = []
        for seed in SEEDS if size < len(task.chunks) else SEEDS[:1]:
            rows = np.random.default_rng(seed).choice(len(task.chunks), size, replace=False)
            draws.append(gains(base.calibrated(CalibrationStatistics.of(task.chunks[rows]))))
        figures[f"{size} vectors"] = {name: min(draw[name] for draw in draws) for name in without}
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder with eval/<set>/*.jsonl.gz")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--no-subsets", action="store_true", help="leave out calibrating on subsets")
    parser.add_argument(
        "--result", default="retrieval", help="name of the result file, retrieval or retrieval-..."
    )
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"skipped: there is no data at {options.data}; pass --data", file=sys.stderr)
        return 0
    figures: dict[str, Any] = {}
    revisions, missed = {}, []
    for name in options.sets:
        task = load_task(name, options.data)
        revisions[name] = task.revision
        merger = load_merger().calibrated(task.sequences())
        rows = document_rows(task, merger) | passage_rows(task, merger)
        figures[name] = {"documents": task.documents, "chunks": len(task.chunks), "ndcg@10": rows}
        print(
            f"\n{name}: {task.documents} documents, {len(task.chunks)} chunks, {len(task.queries)} questions"
        )
        for row, value in rows.items():
            bar = BARS.get(name, {}).get(row)
            short = bar is not None and value < bar
            missed += [f"{name}, {row}: {value} < {bar}"] if short else []
            print(
                f"  {row:<46} {value:.4f}" + (f"   bar {bar:.3f}{'  MISSED' if short else ''}" if bar else "")
            )
        if not options.no_subsets:
            figures[name]["gain by calibrating on a subset"] = subsets = subset_rows(task, load_merger())
            for row, value in subsets.items():
                print(f"  {row:<20} {value}")
    path = write_result(options.result, seed=SEEDS[0], data=revisions, figures=figures)
    print(f"\nwritten to {path.relative_to(path.parents[2])}")
    for line in missed:
        print(f"below its bar: {line}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
