"""Whether training adds to calibration where questions look for documents: a network inside the closed form.

Run ``python -m benchmarks.retrieval_training --shards FOLDER``, with the extra ``train`` installed. The
network sees a document's whitened chunks, as the calibrated merger does, and changes its ridge regression:
by a learned weight for each chunk, or by a learned correction of the solution. Before training both are the
calibrated merger. They are trained to tell the right article from the others of a batch, by titles, first
sentences and spans of the texts of the recipe ``release``, whitened by their own statistics; then every
collection is whitened by its own. Writes benchmarks/results/retrieval_training.json.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import CACHE, DEFAULT_DATA, Floats, Ints, load_task, ndcg10, revision, write_result
from benchmarks.synthesizer import RECIPE, TRAINED_ON
from merger_plugins import load_merger
from merger_plugins.mergers.calibrated import CalibratedMerger, ridge
from merger_plugins.training.config import read_config
from merger_plugins.training.data.corpus import Corpus
from merger_plugins.training.losses import retrieval
from merger_plugins.training.network import Synthesizer, SynthesizerConfig
from merger_plugins.training.preparing import prepare

SETS = ("covidqa", "xquad_en", "xquad_de")
WAYS = ("weights", "correction")
BATCH, TEMPERATURE, HIDDEN, WARMUP = 128, 0.05, 0.5, 30
SEED = 0


@dataclass(frozen=True)
class Whitened:
    """A collection, whitened by its own statistics.

    Attributes:
        chunks: (n_i, d) unit rows of each document.
        whitening: (d, d) takes solutions back.
        queries: (q, d) raw.
        gold: (q,) the right document of each.
    """

    chunks: list[Tensor]
    whitening: Tensor
    queries: Tensor
    gold: Ints

    @classmethod
    def of(cls, sequences: list[Floats], queries: Floats, gold: Ints) -> Whitened:
        merger = load_merger().calibrated(sequences)
        assert isinstance(merger, CalibratedMerger)
        mean = torch.from_numpy(merger.calibration.mean.astype(np.float32))
        whitening = torch.from_numpy(merger.calibration.whitening.astype(np.float32))
        chunks = [unit((unit(torch.from_numpy(part)) - mean) @ whitening) for part in sequences]
        return cls(chunks, whitening, torch.from_numpy(queries.astype(np.float32)), gold)

    @classmethod
    def of_corpus(cls, corpus: Corpus) -> Whitened:
        sequences = [corpus.sequence(article)[0] for article in range(len(corpus))]
        return cls.of(sequences, corpus.queries.astype(np.float32), corpus.query_article)


class Inside(nn.Module):
    """The calibrated merger with a network inside; equal masses.

    Args:
        way: one of `WAYS`.
    """

    def __init__(self, way: str) -> None:
        super().__init__()
        config = SynthesizerConfig.named(
            "small",
            num_layers=2,
            layer_dims=[256, 256],
            nhead_dims=[4, 4],
            positions="none",
            use_masses=False,
            window=None,
        )
        self.way, self.network = way, Synthesizer(config)

    def forward(self, chunks: Tensor, present: Tensor, whitening: Tensor) -> Tensor:
        """(b, n, d) whitened chunks, (b, n) which are no padding -> (b, d) unit vectors of the collection."""
        shares = present / present.sum(1, keepdim=True)
        states = self.network._encode([chunks], present, shares, torch.float32)
        weights = present.float()
        if self.way == "weights":
            scores = self.network.weigh(states[:, 1:]).squeeze(-1).clamp(-4, 4)  # type: ignore[misc]
            weights = scores.exp() * present
            weights = weights * (present.sum(1) / weights.sum(1))[:, None]
        solution = solved(chunks, weights)
        if self.way == "correction":
            solution = unit(solution) + self.network.project(states[:, 0])  # type: ignore[misc]
        return unit(solution @ whitening)


def solved(chunks: Tensor, weights: Tensor) -> Tensor:
    """The ridge regression of `CalibratedMerger`, a weight a chunk: (b, n, d), (b, n) -> (b, d)."""
    roots = weights.clamp_min(1e-9).sqrt() * (weights > 0)
    rows = chunks * roots[..., None]
    lam = torch.from_numpy(ridge((weights > 0).sum(1).numpy()))
    normal = rows @ rows.transpose(1, 2) + lam[:, None, None] * torch.eye(rows.shape[1])
    return (rows.transpose(1, 2) @ torch.linalg.solve(normal, roots[..., None])).squeeze(-1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--shards", type=Path, default=CACHE / "release", help="embedded texts of the recipe")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    arguments = parser.parse_args()
    data: Path = arguments.data
    config = read_config(RECIPE).replace(
        texts=[str(data / name) for name in TRAINED_ON], shards=str(arguments.shards)
    )
    training, held_out = prepare(config).corpora()
    sets = {"held-out Wikipedia": Whitened.of_corpus(held_out)}
    for name in SETS:
        task = load_task(name, data)
        sets[name] = Whitened.of(task.sequences(), task.queries, task.gold)
    figures: dict[str, Any] = {"articles": len(training), "batch": BATCH, "temperature": TEMPERATURE}
    figures["steps"], figures["learning_rate"] = arguments.steps, arguments.learning_rate
    for way in WAYS:
        torch.manual_seed(SEED)
        merger = Inside(way)
        rows = figures.setdefault("ndcg@10", {})
        rows["calibrated"] = measured(merger, sets)
        for step in train(merger, training, arguments.steps, arguments.learning_rate):
            rows[f"{way}, after {step} steps"] = measured(merger, sets)
            print(step, rows, flush=True)
    write_result(
        "retrieval_training",
        seed=SEED,
        data={file: revision([data / file]) for file in TRAINED_ON},
        figures=figures,
    )


def train(merger: Inside, corpus: Corpus, steps: int, learning_rate: float) -> Any:
    """Train; yields the number of steps after each third of them."""
    whitened = Whitened.of_corpus(corpus)
    optimiser = torch.optim.AdamW(merger.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + np.cos(np.pi * step / steps))
    )
    rng = np.random.default_rng(SEED)
    for step in range(1, steps + 1):
        merger.train()
        queries = rng.choice(len(corpus.queries), BATCH, replace=False)
        articles = corpus.query_article[queries]
        documents = []
        for query, article in zip(queries.tolist(), articles.tolist(), strict=True):
            chunks, own = whitened.chunks[article], int(corpus.query_chunk[query])
            if own >= 0 and len(chunks) > 2 and rng.random() < HIDDEN:
                place = own - int(corpus.articles[article])
                chunks = torch.cat([chunks[:place], chunks[place + 1 :]])
            documents.append(chunks)
        merged = merger(*padded(documents), whitened.whitening)
        loss = retrieval(whitened.queries[queries], merged, torch.from_numpy(articles), TEMPERATURE)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(merger.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % (steps // 3) == 0:
            yield step


def measured(merger: Inside, sets: dict[str, Whitened]) -> dict[str, float]:
    """nDCG@10 of the right document, one vector each."""
    merger.eval()
    found = {}
    with torch.no_grad():
        for name, part in sets.items():
            roots = torch.cat([merger(*padded([chunks]), part.whitening) for chunks in part.chunks])
            found[name] = round(ndcg10((part.queries @ roots.T).numpy(), part.gold), 4)
    return found


def padded(documents: list[Tensor]) -> tuple[Tensor, Tensor]:
    chunks = nn.utils.rnn.pad_sequence(documents, batch_first=True)
    lengths = torch.tensor([len(document) for document in documents])
    return chunks, torch.arange(chunks.shape[1]) < lengths[:, None]


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-9)


if __name__ == "__main__":
    main()
