"""Long texts behind `MergerEmbeddings`: nDCG@10 of the right document, raw query vectors, plain cosine.

Run ``python -m benchmarks.long_texts --data FOLDER``. The demo corpus is always measured; a set that
FOLDER lacks is skipped. The first run embeds the collections (minutes on two cores) and keeps the vectors in
.cache/. Writes benchmarks/results/long_texts.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import (
    DEFAULT_DATA,
    Floats,
    Ints,
    best_of_group,
    embed,
    ndcg10,
    read_jsonl,
    revision,
    write_result,
)
from merger_plugins import MeanMerger, SequenceMerger, load_embedder, load_merger
from merger_plugins.chunking import Chunk, SentenceChunker
from merger_plugins.demo.questions import CORPUS, load_questions
from merger_plugins.langchain import MergerEmbeddings

SETS = ("xquad_en", "covidqa")
PASSAGE_TOKENS = 250
MIXED = range(20)
"""Seeds of which texts are stored as passages; the figure is the mean."""
HALVES = range(5)
"""Seeds of the texts to calibrate on; the figure is the least."""


@dataclass(frozen=True)
class Collection:
    """Texts with questions.

    Attributes:
        questions: of which each has one right text; gold: (q,) its index.
    """

    name: str
    revision: str
    texts: list[str]
    questions: list[str]
    gold: Ints


def demo_corpus() -> Collection:
    files = sorted(path for path in CORPUS.iterdir() if path.suffix in (".md", ".txt"))
    index = {path.name: i for i, path in enumerate(files)}
    asked, _ = load_questions()
    return Collection(
        name="demo",
        revision=revision([*files, CORPUS / "questions.json"]),
        texts=[path.read_text(encoding="utf-8") for path in files],
        questions=[question.question for question in asked],
        gold=np.array([index[question.document] for question in asked], np.int64),
    )


def retrieval_set(folder: Path) -> Collection:
    files = [folder / f"{part}.jsonl.gz" for part in ("docs", "queries", "qrels")]
    documents, queries, qrels = (read_jsonl(file) for file in files)
    index = {row["id"]: i for i, row in enumerate(documents)}
    relevant = {row["query_id"]: row["doc_id"] for row in qrels}
    return Collection(
        name=folder.name,
        revision=revision(files),
        texts=[row["text"] for row in documents],
        questions=[row["text"] for row in queries],
        gold=np.array([index[relevant[row["id"]]] for row in queries], np.int64),
    )


def collections(data: Path) -> Iterator[Collection]:
    yield demo_corpus()
    for name in SETS:
        if (data / "eval" / name).is_dir():
            yield retrieval_set(data / "eval" / name)
        else:
            print(f"skipped: there is no {name} at {data / 'eval'}; pass --data", file=sys.stderr)


class Kept:
    """The bundled embedder, its vectors kept between runs."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._vectors: dict[str, Floats] = {}

    def embed(self, part: str, texts: Sequence[str]) -> Floats:
        """(n, d); texts that were not seen before are kept under the name of this part."""
        if new := [text for text in texts if text not in self._vectors]:
            self._vectors.update(zip(new, embed(f"{self._name}-{part}", new), strict=True))
        return np.stack([self._vectors[text] for text in texts])

    def embed_documents(self, texts: Sequence[str]) -> Floats:
        return self.embed("openings", texts)  # all else is embedded before

    def embed_query(self, text: str) -> Floats:
        query: Floats = self.embed("queries", [text])[0]
        return query


def in_passages(text: str, chunks: Sequence[Chunk]) -> list[str]:
    """Neighbouring chunks, joined as long as they hold no more than `PASSAGE_TOKENS`."""
    joined: list[list[Chunk]] = []
    for chunk in chunks:
        if joined and sum(part.tokens for part in joined[-1]) + chunk.tokens <= PASSAGE_TOKENS:
            joined[-1].append(chunk)
        else:
            joined.append([chunk])
    return [text[parts[0].start : parts[-1].end] for parts in joined]


class Trial:
    """One collection, embedded whole and as passages."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        self.kept = kept = Kept(collection.name)
        texts, chunker = collection.texts, SentenceChunker()
        self.chunks = [chunker.split(text) for text in texts]
        parts = [in_passages(text, chunks) for text, chunks in zip(texts, self.chunks, strict=True)]
        self.passages = [passage for joined in parts for passage in joined]
        self.owner: Ints = np.repeat(np.arange(len(parts)), [len(joined) for joined in parts])
        self.queries = kept.embed("queries", collection.questions)
        self.raw = kept.embed("documents", texts)
        kept.embed("chunks", [chunk.text for chunks in self.chunks for chunk in chunks])
        self.raw_passages = kept.embed("passages", self.passages)

    def embeddings(self, merger: SequenceMerger | None = None) -> MergerEmbeddings:
        embedder = load_embedder()
        return MergerEmbeddings(
            self.kept, merger=merger, max_tokens=embedder.max_tokens, count_tokens=embedder.count_tokens
        )

    def calibrated(self, texts: Sequence[str]) -> MergerEmbeddings:
        # MergerEmbeddings().calibrated(texts) takes this merger by itself; it cannot see what `kept` is.
        return self.embeddings(load_merger()).calibrated(texts)

    def mean(self) -> Floats:
        """(n, d) the mean of a long text's chunks; short texts as they are."""
        embedder = load_embedder()
        vectors = self.raw.copy()
        for row, (text, chunks) in enumerate(zip(self.collection.texts, self.chunks, strict=True)):
            if embedder.count_tokens(text) > embedder.max_tokens - 2:
                sequence = self.kept.embed("chunks", [chunk.text for chunk in chunks])
                vectors[row] = MeanMerger().merge(sequence, masses=[chunk.tokens for chunk in chunks])
        return vectors

    def figures(self, whole: Floats, passages: Floats) -> dict[str, float]:
        """nDCG@10 with every text stored whole, and with a random half of them stored as passages."""
        gold, texts = self.collection.gold, len(self.collection.texts)
        scores: Floats = self.queries @ whole.T
        best = best_of_group(self.queries @ passages.T, self.owner, texts)
        mixed = []
        for seed in MIXED:
            stored_whole = np.random.default_rng(seed).permutation(texts) < texts // 2
            mixed.append(ndcg10(np.where(stored_whole, scores, best), gold))
        first = (scores >= scores[np.arange(len(gold)), gold][:, None]).sum(axis=1) == 1
        return {
            "ndcg@10, whole": round(ndcg10(scores, gold), 4),
            "ndcg@10, half as passages": round(float(np.mean(mixed)), 4),
            "right first, whole": int(first.sum()),
        }

    def stored_by(self, embeddings: MergerEmbeddings) -> tuple[Floats, Floats]:
        """The vectors of the texts and those of the passages."""
        whole, passages = (
            np.array(embeddings.embed_documents(texts), np.float32)
            for texts in (self.collection.texts, self.passages)
        )
        return whole, passages

    def rows(self) -> dict[str, dict[str, float]]:
        calibrated = self.stored_by(self.calibrated(self.collection.texts))
        stored = {
            "cut off": (self.raw, self.raw_passages),
            "mean": (self.mean(), self.raw_passages),
            "default": self.stored_by(self.embeddings()),
            "load_merger()": self.stored_by(self.embeddings(load_merger())),
            "calibrated": calibrated,
            "calibrated, passages raw": (calibrated[0], self.raw_passages),
        }
        return {name: self.figures(*vectors) for name, vectors in stored.items()}

    def on_halves(self) -> dict[str, float]:
        """Calibrated on a random half of the texts: the least of some draws."""
        texts, draws = self.collection.texts, []
        for seed in HALVES:
            half = np.random.default_rng(seed).permutation(len(texts))[: len(texts) // 2]
            draws.append(self.figures(*self.stored_by(self.calibrated([texts[i] for i in half]))))
        return {figure: min(draw[figure] for draw in draws) for figure in draws[0]}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder with eval/<set>/*.jsonl.gz")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    revisions: dict[str, str] = {}
    for collection in collections(options.data):
        trial = Trial(collection)
        revisions[collection.name] = collection.revision
        rows = trial.rows() | {"calibrated on half of the texts": trial.on_halves()}
        figures[collection.name] = {
            "texts": len(collection.texts),
            "passages": len(trial.passages),
            "questions": len(collection.questions),
            "rows": rows,
        }
        print(f"\n{collection.name}: {len(collection.texts)} texts, {len(collection.questions)} questions")
        for row, value in rows.items():
            whole, half, first = value.values()
            print(f"  {row:<32} whole {whole:.4f}   half as passages {half:.4f}   right first, whole {first}")
    path = write_result("long_texts", seed=MIXED[0], data=revisions, figures=figures)
    print(f"\nwritten to {path.relative_to(path.parents[2])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
