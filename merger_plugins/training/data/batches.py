"""Batches of each stage, drawn from a corpus: batch i of a seed is always the same one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merger_plugins._batching import unit
from merger_plugins._types import Matrix, Vector
from merger_plugins.errors import InputError
from merger_plugins.training.config import (
    FIVE_TWELVE,
    SELF_SUPERVISED,
    STAGES,
    TEN,
    SelfSupervised,
    Stage,
    TenToOne,
)
from merger_plugins.training.data.corpus import Corpus, Ints

Batch = dict[str, NDArray[Any]]
"""Arrays by name, b sequences of n vectors, zero where padded::

    vectors (b, n, d) float32, mask (b, n) bool, masses (b, n) float32 tokens
    teacher (b, d) float32                   five_twelve_to_one, ten_to_one
    masked (b, n) bool, follows (b,) int64   self_supervised: what is hidden; 0 where the history is false

ten_to_one may add longer sequences, ``nested_*``, ``beyond_*`` and ``retrieval_*``, each with the first three
arrays and::

    parts (b, g, k) int64                    a division into g parts: places of their vectors, -1 where padded
    other (b, g', k') int64                  nested: another division; (b, 1, n) where the whole fits at once
    target (b, d) float32                    beyond: the mean of all chunks
    queries (b, d) float32, articles (b,)    retrieval: the query of each sequence, the article of each
"""

_CANDIDATES = 8
"""Batches' worth of sequences, of which one batch takes those of similar length."""

_FEWEST_HISTORY = 4

_LOPSIDED = 0.25
"""Share of the divisions that are one part and single vectors."""


class Batches:
    """The batches of one stage.

    Args:
        corpus: what to draw from.
        name: of the stage.
        stage: its settings.
        shares: what each language is worth; see `Corpus.probabilities`.
        seed: of all draws.
        window: vectors that one merge takes at the most; None for any number.

    Raises:
        InputError: the corpus has nothing that this stage needs.
    """

    def __init__(
        self,
        corpus: Corpus,
        name: str,
        stage: Stage,
        *,
        shares: Mapping[str, float],
        seed: int,
        window: int | None = 10,
    ) -> None:
        self.corpus, self.name, self.stage, self.window = corpus, name, stage, window
        if name == TEN and window is not None and stage.longest > window**2:
            raise InputError(
                f"{name}.longest is {stage.longest}; merges of {window} vectors, merged again, make "
                f"{window**2} at the most."
            )
        self._seed = [seed, STAGES.index(name)]
        examples, articles = self._examples()
        if not len(examples):
            raise InputError(f"There is nothing for the stage {name} in these texts: {_NEEDS[name]}")
        likely = corpus.probabilities(articles, shares)
        if name == FIVE_TWELVE:
            likely = likely * (corpus.node_stop - corpus.node_start)  # each level of the trees alike
        self._draw = _Draw(examples, likely)
        every = np.arange(len(corpus))
        self._articles = _Draw(every, corpus.probabilities(every, shares))
        if name == TEN:
            self._queries = _Draw(
                np.arange(len(corpus.queries)), corpus.probabilities(corpus.query_article, shares)
            )
            if isinstance(stage, TenToOne) and stage.beyond:
                self._context = int(corpus.window_count.max())
                long = np.flatnonzero(corpus.lengths > self._context)
                if not len(long) or stage.longest <= self._context:
                    raise InputError(
                        f"{name}.beyond is {stage.beyond}, {name}.longest {stage.longest}, and the longest "
                        f"of these texts has {corpus.lengths.max()} chunks; the embedder's context holds "
                        f"{self._context}. Name longer texts, raise longest and data.max_chunks, or leave "
                        "beyond out."
                    )
                self._long = _Draw(long, corpus.probabilities(long, shares))
        if name == FIVE_TWELVE:
            self._children = _children(corpus.node_parent)

    def __len__(self) -> int:
        return self.stage.steps

    def batch(self, step: int) -> Batch:
        """The arrays of a step, counted from 0."""
        return self._make(step)[0]

    def names(self, step: int) -> list[str]:
        """The articles of a step's sequences, without doubles, in order."""
        found = self._make(step)[1]
        return list(dict.fromkeys(self.corpus.ids[article] for article in found.tolist()))

    def _make(self, step: int) -> tuple[Batch, Ints]:
        rng = np.random.default_rng([*self._seed, step])
        if isinstance(self.stage, SelfSupervised):
            return self._self_supervised(self.stage, rng)
        if isinstance(self.stage, TenToOne):
            return self._ten_to_one(self.stage, rng)
        return self._five_twelve_to_one(rng)

    def _examples(self) -> tuple[Ints, Ints]:
        """What the stage draws from, and the article of each."""
        corpus = self.corpus
        if self.name == SELF_SUPERVISED:
            long = np.flatnonzero(corpus.lengths >= _FEWEST_HISTORY)
            return (long, long) if len(long) > 1 else (long[:0], long[:0])
        if self.name == FIVE_TWELVE:
            return np.arange(len(corpus.nodes)), corpus.node_article
        return np.arange(len(corpus.windows)), corpus.window_article

    # -- stage 1 -------------------------------------------------------------------------------------------

    def _self_supervised(self, stage: SelfSupervised, rng: np.random.Generator) -> tuple[Batch, Ints]:
        drawn = self._draw(rng, _CANDIDATES * stage.batch_size)
        articles = _similar(drawn, self.corpus.lengths[drawn], stage.batch_size, rng)
        follows = np.arange(stage.batch_size) % 2  # exactly half of the histories are false
        sequences = []
        for article, true in zip(articles.tolist(), follows.tolist(), strict=True):
            vectors, masses = self.corpus.sequence(article, stage.longest)
            if not true:
                half = len(vectors) // 2
                other, other_masses = self.corpus.sequence(self._another(article, rng), len(vectors) - half)
                vectors = np.concatenate([vectors[:half], other])
                masses = np.concatenate([masses[:half], other_masses])
            sequences.append((vectors, masses))
        batch = _padded(sequences)
        scores = np.where(batch["mask"], rng.random(batch["mask"].shape), 2.0)
        count = np.maximum(np.rint(stage.masked * batch["mask"].sum(1)), 1)
        rank = scores.argsort(1).argsort(1)
        return batch | {"masked": rank < count[:, None], "follows": follows}, articles

    def _another(self, article: int, rng: np.random.Generator) -> int:
        """An article of the same language, where there is one: a change of language would give it away."""
        languages = self.corpus.languages
        found = [other for other in self._articles(rng, 16).tolist() if other != article]
        same = [other for other in found if languages[other] == languages[article]]
        chosen: int = (same or found or [(article + 1) % len(self.corpus)])[0]
        return chosen

    # -- stage 2 -------------------------------------------------------------------------------------------

    def _five_twelve_to_one(self, rng: np.random.Generator) -> tuple[Batch, Ints]:
        corpus, stage = self.corpus, self.stage
        drawn = self._draw(rng, _CANDIDATES * stage.batch_size)
        sizes = corpus.node_stop[drawn] - corpus.node_start[drawn]
        nodes = _similar(drawn, sizes, stage.batch_size, rng)
        batch = _padded([self._combination(node, rng) for node in nodes.tolist()])
        return batch | {"teacher": unit(corpus.nodes[nodes].astype(np.float32))}, corpus.node_article[nodes]

    def _combination(self, node: int, rng: np.random.Generator) -> tuple[Matrix, Vector]:
        """The vectors of a node's parts: its children, each opened into its own with one probability.

        The probability is drawn for each example: at 1 all parts are single tokens, at 0 the children remain.
        """
        opened = rng.random()
        parts = self._parts(node, opened, rng)
        while len(parts[1]) > self.stage.longest:
            opened *= 0.7
            parts = self._parts(node, opened, rng)
        return parts

    def _parts(self, node: int, opened: float, rng: np.random.Generator) -> tuple[Matrix, Vector]:
        corpus = self.corpus
        start, stop = int(corpus.node_start[node]), int(corpus.node_stop[node])
        closed: list[int] = []
        waiting = list(self._children.get(node, ()))
        while waiting:
            child = waiting.pop()
            if rng.random() < opened:
                waiting += self._children.get(child, ())
            else:
                closed.append(child)
        single = np.ones(stop - start, np.bool_)
        for child in closed:
            single[corpus.node_start[child] - start : corpus.node_stop[child] - start] = False
        leaves = np.flatnonzero(single) + start
        order = np.argsort(np.concatenate([leaves, corpus.node_start[closed]]), kind="stable")
        vectors = np.concatenate([corpus.pieces[corpus.leaves[leaves]], corpus.nodes[closed]])
        masses = np.concatenate([np.ones(len(leaves)), corpus.node_stop[closed] - corpus.node_start[closed]])
        return vectors[order].astype(np.float32), masses[order].astype(np.float32)

    # -- stage 3 -------------------------------------------------------------------------------------------

    def _ten_to_one(self, stage: TenToOne, rng: np.random.Generator) -> tuple[Batch, Ints]:
        corpus = self.corpus
        windows = self._draw(rng, stage.batch_size)
        articles = corpus.window_article[windows]
        teacher = corpus.windows[windows].astype(np.float32)
        sequences = []
        for row, window in enumerate(windows.tolist()):
            start, count = int(corpus.window_start[window]), int(corpus.window_count[window])
            if rng.random() < stage.singles:
                start, count = start + int(rng.integers(count)), 1
                teacher[row] = corpus.chunks[start]
            sequences.append(corpus.passage(slice(start, start + count)))
        batch = _padded(sequences) | {"teacher": unit(teacher)}
        used = [articles]
        if stage.associativity:
            drawn = self._articles(rng, stage.nested_size)
            batch |= _named("nested", self._nested(drawn, rng))
            used.append(drawn)
        if stage.beyond:
            drawn = self._long(rng, stage.beyond_size)
            batch |= _named("beyond", self._beyond(stage, drawn, rng))
            used.append(drawn)
        if stage.retrieval:
            queries = self._queries(rng, stage.batch_size)
            drawn = corpus.query_article[queries]
            batch |= _named("retrieval", self._retrieval(stage, queries, rng))
            used.append(drawn)
        return batch, np.concatenate(used)

    def _nested(self, articles: Ints, rng: np.random.Generator) -> Batch:
        """Passages with two divisions each; in half of the batches the other one is all of it at once."""
        window = self.window or self.stage.longest
        whole = self.window is None or bool(rng.random() < 0.5)
        most = min(window, self.stage.longest) if whole else self.stage.longest
        batch = _padded([self._passage(int(article), most, rng) for article in articles])
        lengths = batch["mask"].sum(1)
        batch["parts"] = _stacked([_division(int(n), window, rng) for n in lengths])
        other = [[np.arange(n)] if whole else _division(int(n), window, rng) for n in lengths]
        return batch | {"other": _stacked(other)}

    def _beyond(self, stage: TenToOne, articles: Ints, rng: np.random.Generator) -> Batch:
        """Openings of articles that the teacher's context does not hold, and the mean of their chunks.

        Half of them grow: a first part is there as its mean, which is where a merge of that much arrives.
        """
        window = self.window or stage.longest
        sequences, parts, targets = [], [], []
        for article in articles.tolist():
            vectors, masses = self.corpus.sequence(article, stage.longest)
            count = int(rng.integers(self._context + 1, len(vectors) + 1))
            vectors, masses = unit(vectors[:count]), masses[:count]
            weights = masses.copy()
            weights[: self._context] *= stage.opening
            targets.append(unit(weights @ vectors))
            if rng.random() < 0.5:
                part = count - int(rng.integers(1, min(window - 1, count - self._context) + 1))
                root = unit(weights[:part] @ vectors[:part])
                vectors = np.concatenate([root[None], vectors[part:]])
                masses = np.concatenate([masses[:part].sum(keepdims=True), masses[part:]])
                parts.append([np.arange(len(vectors))])
            else:
                parts.append(_division(count, window, rng))
            sequences.append((vectors, masses))
        return _padded(sequences) | {"parts": _stacked(parts), "target": np.stack(targets)}

    def _retrieval(self, stage: TenToOne, queries: Ints, rng: np.random.Generator) -> Batch:
        """Passages around what the queries were made from, divided as the tree divides them."""
        corpus = self.corpus
        sequences = []
        for query in queries.tolist():
            article, chunk = int(corpus.query_article[query]), int(corpus.query_chunk[query])
            start, stop = int(corpus.articles[article]), int(corpus.articles[article + 1])
            if stop - start > stage.longest:
                around = start if chunk < 0 else chunk
                begin = min(max(around - int(rng.integers(stage.longest)), start), stop - stage.longest)
                start, stop = begin, begin + stage.longest
            rows = np.arange(start, stop)
            if chunk >= 0 and rng.random() < stage.hidden:
                rows = rows[rows != chunk]
            sequences.append(corpus.passage(rows))
        batch = _padded(sequences)
        window = self.window or stage.longest
        batch["parts"] = _stacked(
            [np.split(np.arange(n), np.arange(window, n, window)) for n in batch["mask"].sum(1).tolist()]
        )
        return batch | {
            "queries": corpus.queries[queries].astype(np.float32),
            "articles": corpus.query_article[queries],
        }

    def _passage(self, article: int, most: int, rng: np.random.Generator) -> tuple[Matrix, Vector]:
        start, stop = int(self.corpus.articles[article]), int(self.corpus.articles[article + 1])
        count = int(rng.integers(2, min(most, stop - start) + 1))
        begin = int(rng.integers(start, stop - count + 1))
        return self.corpus.passage(slice(begin, begin + count))


_NEEDS = {
    SELF_SUPERVISED: f"it needs two articles of {_FEWEST_HISTORY} chunks.",
    FIVE_TWELVE: "it needs trees; set data.tree_tokens and data.trees above 0.",
    TEN: "no two neighbouring chunks fit the embedder's context; make data.chunk_tokens smaller.",
}


class _Draw:
    """Draws rows with given probabilities, with replacement."""

    def __init__(self, rows: Ints, probabilities: NDArray[np.float64]) -> None:
        self._rows, self._sums = rows, np.cumsum(probabilities)

    def __call__(self, rng: np.random.Generator, count: int) -> Ints:
        found: Ints = self._rows[
            np.searchsorted(self._sums, rng.random(count) * self._sums[-1], side="right").clip(
                0, len(self._rows) - 1
            )
        ]
        return found


def _similar(rows: Ints, lengths: Ints, count: int, rng: np.random.Generator) -> Ints:
    """`count` of the rows, whose lengths are similar; each row is as likely as any other to be among them."""
    start = int(rng.integers(len(rows) // count)) * count
    found: Ints = rows[np.argsort(lengths, kind="stable")[start : start + count]]
    return found


def _children(parents: Ints) -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    for child, parent in enumerate(parents.tolist()):
        if parent >= 0:
            children.setdefault(parent, []).append(child)
    return children


def _division(count: int, window: int, rng: np.random.Generator) -> list[Ints]:
    """0 .. count - 1 cut at random places into at most `window` parts of at most `window` each.

    Some are lopsided: a first part, then single vectors, as where a text grows chunk by chunk.
    """
    shortest, longest = max(2, count - window + 1), min(window, count - 1)
    if shortest <= longest and rng.random() < _LOPSIDED:
        first = int(rng.integers(shortest, longest + 1))
        return np.split(np.arange(count), np.arange(first, count))
    least = -(-count // window)
    parts = int(rng.integers(max(least, min(2, count)), min(window, count) + 1))
    sizes = 1 + rng.multinomial(count - parts, [1 / parts] * parts)
    while sizes.max() > window:  # what a part cannot take goes to others
        over = np.maximum(sizes - window, 0)
        sizes = sizes - over + rng.multinomial(over.sum(), [1 / parts] * parts)
    return np.split(np.arange(count), np.cumsum(sizes)[:-1])


def _padded(sequences: list[tuple[Matrix, Vector]]) -> Batch:
    longest = max(len(vectors) for vectors, _ in sequences)
    shape = (len(sequences), longest)
    batch: Batch = {
        "vectors": np.zeros((*shape, sequences[0][0].shape[1]), np.float32),
        "mask": np.zeros(shape, np.bool_),
        "masses": np.zeros(shape, np.float32),
    }
    for row, (vectors, masses) in enumerate(sequences):
        batch["vectors"][row, : len(vectors)] = vectors
        batch["mask"][row, : len(vectors)] = True
        batch["masses"][row, : len(vectors)] = masses
    return batch


def _stacked(divisions: list[list[Ints]]) -> Ints:
    """(b, g, k), -1 where padded."""
    shape = (max(map(len, divisions)), max(len(part) for division in divisions for part in division))
    stacked = np.full((len(divisions), *shape), -1, np.int64)
    for row, division in enumerate(divisions):
        for group, part in enumerate(division):
            stacked[row, group, : len(part)] = part
    return stacked


def _named(prefix: str, batch: Batch) -> Batch:
    return {f"{prefix}_{name}": array for name, array in batch.items()}
