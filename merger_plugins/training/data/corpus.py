"""Shards in memory, as one body of articles."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from merger_plugins._types import Matrix, Vector
from merger_plugins.errors import InputError
from merger_plugins.training.data.shards import read_shard

Halves = NDArray[np.float16]
Ints = NDArray[np.int64]

_ROWS = {
    # array: what its values count, and so by how much they move where shards are laid end to end
    "window_start": "chunks",
    "leaves": "pieces",
    "node_start": "leaves",
    "node_stop": "leaves",
    "node_parent": "nodes",
    "node_article": "ids",
    "query_article": "ids",
    "query_chunk": "chunks",
}


@dataclass(frozen=True)
class Corpus:
    """Embedded articles; see `merger_plugins.training.data.shards` for the arrays.

    Attributes:
        ids, languages: (A,) of each article.
        too_short: how many articles had fewer than two chunks, and are not here.
    """

    ids: list[str]
    languages: list[str]
    too_short: int
    chunks: Halves
    tokens: Vector
    articles: Ints
    window_start: Ints
    window_count: Ints
    windows: Halves
    pieces: Halves
    leaves: Ints
    node_start: Ints
    node_stop: Ints
    node_parent: Ints
    node_article: Ints
    nodes: Halves
    query_article: Ints
    query_kind: Ints
    query_chunk: Ints
    queries: Halves

    @classmethod
    def load(cls, paths: Sequence[Path]) -> Corpus:
        """Lay shards end to end.

        Raises:
            InputError: no article in them has two chunks.
            TrainingError: a shard is damaged.
        """
        ids: list[str] = []
        languages: list[str] = []
        too_short = 0
        parts: dict[str, list[NDArray[np.generic]]] = {}
        sizes = dict.fromkeys(_ROWS.values(), 0)
        for path in paths:
            arrays, about = read_shard(path)
            too_short += int(about["too_short"])
            for name, array in arrays.items():
                moved = array
                if name in _ROWS:
                    moved = np.where(array < 0, array, array + sizes[_ROWS[name]])
                elif name == "articles":
                    moved = (array if not ids else array[1:]) + sizes["chunks"]
                parts.setdefault(name, []).append(moved)
            ids += json.loads(about["ids"])
            languages += json.loads(about["languages"])
            for name in ("chunks", "pieces", "leaves", "nodes"):
                sizes[name] += len(arrays[name])
            sizes["ids"] = len(ids)
        if not ids:
            raise InputError(
                f"None of {too_short} texts has two chunks, so there is nothing to merge. Name longer texts."
            )
        return cls(ids, languages, too_short, **{name: np.concatenate(part) for name, part in parts.items()})

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def lengths(self) -> Ints:
        """(A,) chunks of each article."""
        lengths: Ints = np.diff(self.articles)
        return lengths

    @cached_property
    def window_article(self) -> Ints:
        """(W,) the article of each window."""
        found: Ints = np.searchsorted(self.articles, self.window_start, side="right") - 1
        return found

    def sequence(self, article: int, most: int | None = None) -> tuple[Matrix, Vector]:
        """(n, d) float32 chunk vectors of an article and their (n,) masses, the first `most` of them."""
        start, stop = int(self.articles[article]), int(self.articles[article + 1])
        return self.passage(slice(start, stop if most is None else min(stop, start + most)))

    def passage(self, rows: slice | Ints) -> tuple[Matrix, Vector]:
        """(n, d) float32 chunk vectors of these rows of `chunks` and their (n,) masses."""
        return self.chunks[rows].astype(np.float32), self.tokens[rows]

    def probabilities(self, articles: Ints, shares: Mapping[str, float]) -> NDArray[np.float64]:
        """(k,) how likely each of k examples is to be drawn, so that languages get their shares.

        Args:
            articles: (k,) the article of each example.
            shares: what each language is worth; only proportions count.
        """
        names, language = np.unique(np.array(self.languages)[articles], return_inverse=True)
        counts = np.bincount(language, minlength=len(names))
        worth = np.array([shares[name] for name in names.tolist()]) / counts
        weights: NDArray[np.float64] = worth[language]
        weights /= weights.sum()
        return weights
