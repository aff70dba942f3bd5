"""Ranks of the right answer, and their mean."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from merger_plugins.errors import EmptyInputError

Scores = NDArray[np.float32]


def rank(scores: Scores, right: int) -> int:
    """The rank of one item, from 1; what scores the same stands behind it.

    Args:
        scores: (n,), higher is better.
        right: its index.
    """
    return int((scores > scores[right]).sum()) + 1


def mean_reciprocal_rank(ranks: Sequence[int]) -> float:
    """The mean of 1 / rank (Voorhees 1999): 1 if the right answer always comes first.

    Raises:
        EmptyInputError: there are no ranks.
    """
    if not ranks:
        raise EmptyInputError("ranks is empty; at least one question is needed.")
    return sum(1 / place for place in ranks) / len(ranks)


def best_of_each(scores: Scores, owners: NDArray[np.int64], count: int) -> Scores:
    """The best score of each document's chunks.

    Args:
        scores: (n,) of the chunks.
        owners: (n,) index of the document that each chunk belongs to.
        count: how many documents there are.

    Returns:
        (count,) float32; minus infinity for a document without chunks.
    """
    best = np.full(count, -np.inf, np.float32)
    np.maximum.at(best, owners, scores)
    return best


def passage_chunk(spans: Iterable[tuple[int, int]], start: int, stop: int) -> int:
    """The index of the chunk that holds most of a passage.

    Args:
        spans: (start, end) of each chunk, in characters of the document.
        start: where the passage begins.
        stop: where it ends.
    """
    shared = [min(stop, end) - max(start, begin) for begin, end in spans]
    return int(np.argmax(shared))
