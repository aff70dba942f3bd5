"""The final table: mergers side by side on texts that were not trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merger_plugins._types import Matrix, Vector
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.training.data.corpus import Corpus
from merger_plugins.training.data.shards import LEAD, SPAN, TITLE

KINDS = {"title": TITLE, "lead": LEAD, "span": SPAN}

_TREES = 64
_TREE_CHUNKS = 100


@dataclass(frozen=True)
class Figures:
    """What one merger reaches; cosines are means over windows, never of pooled vectors.

    Attributes:
        teacher: cosine of merged windows of 2 to 10 chunks with the teacher's vectors of their text.
        teacher_error: standard error of that.
        by_chunks: the same by number of chunks.
        retrieval: nDCG@10 of the right document, whole documents merged, raw queries, all kinds of them.
        retrieval_error: standard error of that.
        by_query: the same by kind of query: title, lead, span.
        order: the teacher's cosine lost when the chunks of a window are shuffled; 0 for a mean.
        order_error: standard error of that.
        associativity: cosine between the root through the tree and through another division, passages of up
            to 100 chunks.
    """

    teacher: float
    teacher_error: float
    by_chunks: dict[int, float]
    retrieval: float
    retrieval_error: float
    by_query: dict[str, float]
    order: float
    order_error: float
    associativity: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Figures:
        """What `to_dict` gave, also after it was JSON, whose keys are strings."""
        by_chunks = {int(count): value for count, value in values["by_chunks"].items()}
        return cls(**{**values, "by_chunks": by_chunks})


def evaluate(mergers: Mapping[str, SequenceMerger], corpus: Corpus, *, seed: int) -> dict[str, Figures]:
    """Measure mergers on held-out articles.

    Args:
        mergers: by name.
        corpus: the articles.
        seed: of shuffles and divisions.
    """
    return {name: _figures(merger, corpus, seed) for name, merger in mergers.items()}


def calibrated_on(merger: SequenceMerger, corpus: Corpus) -> SequenceMerger:
    """A merger calibrated as on a store: by the chunk vectors of the collection that is searched."""
    return merger.calibrated(corpus.sequence(article)[0] for article in range(len(corpus)))


def _figures(merger: SequenceMerger, corpus: Corpus, seed: int) -> Figures:
    rng = np.random.default_rng(seed)
    windows = [
        slice(int(start), int(start + count))
        for start, count in zip(corpus.window_start, corpus.window_count, strict=True)
    ]
    vectors = [corpus.chunks[rows].astype(np.float32) for rows in windows]
    masses = [corpus.tokens[rows] for rows in windows]
    teacher = corpus.windows.astype(np.float32)
    teacher /= np.linalg.norm(teacher, axis=1, keepdims=True)
    straight = _cosines(merger.merge_many(vectors, masses=masses), teacher)
    orders = [rng.permutation(len(part)) for part in vectors]
    shuffled = merger.merge_many(
        [part[order] for part, order in zip(vectors, orders, strict=True)],
        masses=[part[order] for part, order in zip(masses, orders, strict=True)],
    )
    lost = straight - _cosines(shuffled, teacher)
    gains = _retrieval(merger, corpus)
    return Figures(
        teacher=_mean(straight),
        teacher_error=_error(straight),
        by_chunks={
            count: _mean(straight[corpus.window_count == count])
            for count in sorted(set(corpus.window_count.tolist()))
        },
        retrieval=_mean(gains),
        retrieval_error=_error(gains),
        by_query={
            name: _mean(gains[corpus.query_kind == kind])
            for name, kind in KINDS.items()
            if (corpus.query_kind == kind).any()
        },
        order=_mean(lost),
        order_error=_error(lost),
        associativity=_associativity(merger, corpus, rng),
    )


def _retrieval(merger: SequenceMerger, corpus: Corpus) -> Vector:
    """(Q,) nDCG@10 of each query, with one right document; ties count against it."""
    documents = [corpus.sequence(article) for article in range(len(corpus))]
    roots = merger.merge_many([part for part, _ in documents], masses=[part for _, part in documents])
    scores = corpus.queries.astype(np.float32) @ roots.T
    right = scores[np.arange(len(scores)), corpus.query_article][:, None]
    rank = (scores >= right).sum(axis=1) - 1
    gains: Vector = np.where(rank < 10, 1 / np.log2(rank + 2), 0).astype(np.float32)
    return gains


def _associativity(merger: SequenceMerger, corpus: Corpus, rng: np.random.Generator) -> float:
    """Merging merged parts, cut at random, against merging the whole."""
    long = np.flatnonzero(corpus.lengths > 2)
    if not len(long):
        return float("nan")
    whole, parts, masses, sizes = [], [], [], []
    for article in rng.choice(long, _TREES):
        vectors, tokens = corpus.sequence(int(article), _TREE_CHUNKS)
        cuts = _cuts(len(vectors), rng)
        whole.append((vectors, tokens))
        parts += np.split(vectors, cuts)
        masses += np.split(tokens, cuts)
        sizes.append(len(cuts) + 1)
    nodes = merger.merge_many(parts, masses=masses)
    ends = np.cumsum(sizes)[:-1]
    sums = np.array([part.sum() for part in masses], np.float32)
    again = merger.merge_many(np.split(nodes, ends), masses=np.split(sums, ends))
    once = merger.merge_many([part for part, _ in whole], masses=[part for _, part in whole])
    return _mean(_cosines(again, once))


def _cuts(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Places that cut a sequence into parts of 2 to 10 chunks, the last one maybe of one."""
    cuts: list[int] = []
    place = int(rng.integers(2, 11))
    while place < count:
        cuts.append(place)
        place += int(rng.integers(2, 11))
    return np.array(cuts, np.int64)


def _cosines(rows: Matrix, others: Matrix) -> Vector:
    cosines: Vector = np.einsum("nd,nd->n", rows, others)
    return cosines


def _mean(values: NDArray[np.float32]) -> float:
    return float(values.mean(dtype=np.float64)) if len(values) else float("nan")


def _error(values: NDArray[np.float32]) -> float:
    return float(values.std(dtype=np.float64) / np.sqrt(len(values))) if len(values) else float("nan")
