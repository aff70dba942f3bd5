"""What each idea of the synthesizer's training is worth: the same budget with and without it.

Run ``python -m benchmarks.ablations``. Every row changes one thing of a short training of the small network
on English Wikipedia articles and is measured on articles that were held out: cosine with the teacher's
vectors, retrieval of the right article by title, first sentence and span, order, associativity. A row is
trained once for each seed, which draws weights and batches but neither articles nor held-out ones; the spread
between seeds is stated. The budget is small, so that a row tells what helps early, not what wins in the end.
Writes benchmarks/results/ablations.json, after each row.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import CACHE, DEFAULT_DATA, revision, write_result
from merger_plugins.mergers.transformers import TransformersMerger
from merger_plugins.training.config import (
    FIVE_TWELVE,
    SELF_SUPERVISED,
    STAGES,
    TEN,
    TrainingConfig,
    read_config,
)
from merger_plugins.training.data.corpus import Corpus
from merger_plugins.training.evaluation import Figures, evaluate
from merger_plugins.training.preparing import Prepared, network_config, prepare
from merger_plugins.training.stages import FINAL
from merger_plugins.training.train import SYNTHESIZER, table_mergers, train_stages

TEXTS = "wiki_en_articles.jsonl.gz"

ROWS: dict[str, dict[str, Any]] = {
    "three stages, ppe 16 after stage 1, residual": {},
    "without stage 1": {"stages": [FIVE_TWELVE, TEN]},
    "without stage 2": {"stages": [SELF_SUPERVISED, TEN]},
    "stage 1 alone": {"stages": [SELF_SUPERVISED]},
    "stage 2 alone": {"stages": [FIVE_TWELVE]},
    "stage 3 alone": {"stages": [TEN]},
    "learned positions": {"network": {"positions": "learned"}},
    "no positions": {"network": {"positions": "none"}},
    "ppe 192 in all stages": {FIVE_TWELVE: {"ppe_dim": 192}, TEN: {"ppe_dim": 192}},
    "ppe 16 in all stages": {SELF_SUPERVISED: {"ppe_dim": 16}},
    "ppe 4 after stage 1": {FIVE_TWELVE: {"ppe_dim": 4}, TEN: {"ppe_dim": 4}},
    "plain (no residual)": {"network": {"residual": "none"}},
    "residual: correction alone": {"network": {"residual": "vector"}},
    "residual: weights alone": {"network": {"residual": "weights"}},
    "without masses": {"network": {"use_masses": False}},
    "L1 in place of cosine": {FIVE_TWELVE: {"distance": "l1"}, TEN: {"distance": "l1"}},
    "without associativity": {TEN: {"associativity": 0.0}},
    "with retrieval": {TEN: {"retrieval": 0.1}},
    "towards the mean of all chunks beyond the context": {TEN: {"beyond": 0.5, "opening": 1.5}},
}
"""What each row changes; ``network`` adds to the base's."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--articles", type=int, default=400)
    parser.add_argument("--scale", type=float, default=0.25, help="of the steps of the recipe 'small'")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--dry", action="store_true", help="print, and write no result file")
    arguments = parser.parse_args()
    texts = arguments.data / "train" / TEXTS
    base = base_config(texts, arguments.articles, arguments.scale, arguments.batch_size)
    prepared = prepare(base)
    corpora = prepared.corpora()
    closed = table_mergers(prepared, corpora[1], None)
    figures: dict[str, Any] = {
        "articles": {"training": len(corpora[0]), "held_out": len(corpora[1])},
        "windows": {"training": len(corpora[0].windows), "held_out": len(corpora[1].windows)},
        "steps": {name: base.stage(name).steps for name in STAGES},
        "batch_size": arguments.batch_size,
        "seeds": arguments.seeds,
        "torch": torch.__version__,
        "rows": {name: rounded(found) for name, found in evaluate(closed, corpora[1], seed=0).items()},
    }
    for name in arguments.rows:
        began = time.process_time()
        found = [run_row(prepared, corpora, ROWS[name], seed) for seed in range(arguments.seeds)]
        seconds = round((time.process_time() - began) / arguments.seeds)
        figures["rows"][name] = summary(found) | {"cpu_seconds": seconds}
        print(name, figures["rows"][name], flush=True)
        if not arguments.dry:
            write_result("ablations", seed=0, data={TEXTS: revision([texts])}, figures=figures)


def base_config(texts: Path, articles: int, scale: float, batch_size: int) -> TrainingConfig:
    """The recipe ``small`` on a smaller budget."""
    recipe = read_config("small")
    stages = {
        name: {"steps": max(round(scale * recipe.stage(name).steps), 2), "batch_size": batch_size}
        for name in STAGES
    }
    return recipe.replace(
        texts=(str(texts),),
        shards=str(CACHE / "ablations"),
        data={"max_articles": articles, "articles_per_shard": 8},
        **stages,
    )


def run_row(
    prepared: Prepared, corpora: tuple[Corpus, Corpus], changes: dict[str, Any], seed: int
) -> Figures:
    """Train once, and measure on the held-out articles."""
    config = prepared.config
    network = {**config.network, **changes.get("network", {})}
    with tempfile.TemporaryDirectory() as folder:
        changed = config.replace(**{**changes, "network": network, "seed": seed, "output": folder})
        row = replace(prepared, config=changed, network=network_config(changed, prepared.base.dimension))
        folders = train_stages(row, corpora[0])[1]
        merger = TransformersMerger(list(folders.values())[-1] / FINAL, device="cpu")
        return evaluate({SYNTHESIZER: merger}, corpora[1], seed=0)[SYNTHESIZER]


def rounded(found: Figures) -> dict[str, Any]:
    """The figures that the table has, to four digits."""
    return {
        "teacher": round(found.teacher, 4),
        "teacher_error": round(found.teacher_error, 4),
        "by_chunks": {str(count): round(value, 4) for count, value in found.by_chunks.items()},
        "retrieval": round(found.retrieval, 4),
        "retrieval_error": round(found.retrieval_error, 4),
        "order": round(found.order, 4),
        "order_error": round(found.order_error, 4),
        "associativity": round(found.associativity, 4),
    }


def summary(found: Sequence[Figures]) -> dict[str, Any]:
    """Means over seeds; `spread` is the standard deviation of the teacher's cosine between them."""
    rows = [rounded(figures) for figures in found]
    means = {
        key: round(float(np.mean([row[key] for row in rows])), 4) for key in rows[0] if key != "by_chunks"
    }
    by_chunks = {
        count: round(float(np.mean([row["by_chunks"][count] for row in rows])), 4)
        for count in rows[0]["by_chunks"]
    }
    spread = (
        round(float(np.std([figures.teacher for figures in found], ddof=1)), 4) if len(found) > 1 else None
    )
    return means | {"by_chunks": by_chunks, "spread": spread}


if __name__ == "__main__":
    main()
