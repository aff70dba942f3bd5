"""Collections of loose passages, several right ones a question: nDCG@10, raw query vectors, plain cosine.

Run ``python -m benchmarks.passages --data FOLDER``. Every passage is a document: its text, which starts with
its title where it has one, in chunks whose merge is its root. A question is asked in its self-contained form
where the set has one, otherwise as it stood in the conversation. Embeddings are kept in .cache/. Writes
benchmarks/results/passages.json.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import (
    DEFAULT_DATA,
    Collection,
    Floats,
    Ints,
    as_found,
    embed,
    ndcg10_each,
    read_jsonl,
    source,
    write_result,
)
from benchmarks.retrieval import Scores, sections, tree_roots
from merger_plugins import CalibrationStatistics, MeanMerger, SequenceMerger, load_merger
from merger_plugins.finesse import tasks
from merger_plugins.mergers.base import FANOUT

SETS = ("convqa_mtragun", "convqa_trec_cast")
SUBSETS = (20, 50, 200, 1_000)
SEEDS = (0, 1, 2)
COUNTERPARTS = {
    "calibrated root": "mean",
    "calibrated chunks": "raw chunks",
    "calibrated chunks + root": "raw chunks + mean",
}
"""What a calibrated row is compared with: the same without calibration."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Passages(Collection):
    """One collection whose documents are passages.

    Attributes:
        truncated: (p, d) the first 510 tokens of each.
        rewritten: how many questions are asked in a self-contained form.
    """

    truncated: Floats
    rewritten: int


def load_passages(name: str, data: Path) -> Passages:
    """Read a set's passages and the questions that have evidence among them, chunk and embed."""
    task = as_found(name, data)
    loaded = tasks.load_passages(task, source(data))
    assert loaded.text is not None
    _, conversations = (read_jsonl(data / file) for file in task.files)
    questions = [asked for row in conversations for asked in row["questions"] if asked["evidence"]]
    return Passages(
        **vars(loaded),
        truncated=embed(f"{name}-passages", list(loaded.text.documents)),
        rewritten=sum(bool(asked["rewrite"]) for asked in questions),
    )


def each_level(task: Passages, root: Floats, ten: tuple[Floats, Ints], chunks: Floats) -> list[Floats]:
    """nDCG@10 of every question, (q,) each: by the root, by the best chunk, and by all levels, fused."""
    score = Scores(task)
    by_root = score.by_document(root)
    found = (by_root, score.by_best(chunks, task.document), score.fused(chunks, *ten, by_root))
    return [ndcg10_each(scores, task.relevant) for scores in found]


def uncalibrated(task: Passages) -> dict[str, Floats]:
    mean = MeanMerger()
    root = mean.merge_many(task.sequences(), masses=task.sequence_masses())
    levels = each_level(task, root, sections(task, mean, FANOUT), task.chunks)
    return dict(zip(COUNTERPARTS.values(), levels, strict=True))


def calibrated(task: Passages, merger: SequenceMerger) -> dict[str, Floats]:
    own = merger.merge_many(list(task.chunks[:, None]))
    levels = each_level(task, tree_roots(task, merger), sections(task, merger, FANOUT), own)
    return dict(zip(COUNTERPARTS, levels, strict=True))


def rows(task: Passages) -> dict[str, dict[str, float]]:
    """Every row's nDCG@10; a calibrated one's with its gain and the paired difference's standard error."""
    without = uncalibrated(task)
    figures = {"truncation": ndcg10_each(Scores(task).by_document(task.truncated), task.relevant)} | without
    found = {name: {"ndcg@10": round(float(each.mean()), 4)} for name, each in figures.items()}
    for name, each in calibrated(task, load_merger().calibrated(task.sequences())).items():
        gain = each - without[COUNTERPARTS[name]]
        found[name] = {
            "ndcg@10": round(float(each.mean()), 4),
            "gain": round(float(gain.mean()), 4),
            "standard error": round(float(gain.std(ddof=1) / np.sqrt(len(gain))), 4),
        }
    return found


def subset_rows(task: Passages) -> dict[str, dict[str, dict[str, float]]]:
    """Calibrated on random subsets of the chunk vectors, minus uncalibrated: least and mean of 3 draws."""
    without = uncalibrated(task)
    figures = {}
    for size in SUBSETS:
        if size >= len(task.chunks):
            continue
        draws: dict[str, list[float]] = {name: [] for name in COUNTERPARTS}
        for seed in SEEDS:
            drawn = np.random.default_rng(seed).choice(len(task.chunks), size, replace=False)
            merger = load_merger().calibrated(CalibrationStatistics.of(task.chunks[drawn]))
            for name, each in calibrated(task, merger).items():
                draws[name].append(float((each - without[COUNTERPARTS[name]]).mean()))
        figures[f"{size} vectors"] = {
            name: {"least": round(min(gains), 4), "mean": round(float(np.mean(gains)), 4)}
            for name, gains in draws.items()
        }
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder with conv/*.jsonl.gz")
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"skipped: there is no data at {options.data}; pass --data", file=sys.stderr)
        return 0
    figures: dict[str, Any] = {}
    revisions = {}
    for name in SETS:
        task = load_passages(name, options.data)
        revisions[name] = task.revision
        figures[name] = {
            "passages": task.documents,
            "chunks": len(task.chunks),
            "questions": len(task.queries),
            "questions rewritten": task.rewritten,
            "rows": rows(task),
            "gain by calibrating on a subset": subset_rows(task),
        }
        print(
            f"\n{name}: {task.documents} passages, {len(task.chunks)} chunks, {len(task.queries)} questions"
        )
        for part in ("rows", "gain by calibrating on a subset"):
            for row, values in figures[name][part].items():
                print(f"  {row:<26} {values}")
    path = write_result("passages", seed=SEEDS[0], data=revisions, figures=figures)
    print(f"\nwritten to {path.relative_to(path.parents[2])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
