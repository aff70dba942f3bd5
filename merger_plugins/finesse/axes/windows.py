"""Windows of neighbouring chunks, with the base embedder's own vector of their text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from merger_plugins._types import Matrix, Vector
from merger_plugins.errors import EmptyInputError
from merger_plugins.finesse.collections import Collection, Ints

COUNTS = tuple(range(2, 11))
PER_COUNT = 30
MOST_TOKENS = 500
"""Tokens of a window, or fewer where the embedder reads fewer: the bundled one reads 510, and joining chunks
may change how a text is divided."""


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of neighbouring chunks of one document each.

    Attributes:
        vectors: (n_i, d) of each.
        masses: (n_i,) of each.
        count: (w,) n_i.
        document: (w,) where each is from.
        teacher: (w, d) unit rows: the base embedder's vectors of the windows' text; None without text.
    """

    vectors: list[Matrix]
    masses: list[Vector]
    count: Ints
    document: Ints
    teacher: Matrix | None


def windows(
    collection: Collection,
    *,
    counts: Sequence[int] = COUNTS,
    per_count: int = PER_COUNT,
    most_tokens: float | None = None,
    seed: int = 0,
) -> Windows:
    """Draw windows at random.

    Args:
        collection: where they are from.
        counts: how many chunks they have.
        per_count: of each count, at the most; the same window is not drawn twice.
        most_tokens: that a window may hold; what the base embedder reads, `MOST_TOKENS` at the most, for
            None.
        seed: of the draw.

    Raises:
        EmptyInputError: no window of any of these counts holds so few tokens.
    """
    if most_tokens is None:
        room = None if collection.text is None else collection.text.embed.room
        most_tokens = MOST_TOKENS if room is None else min(room, MOST_TOKENS)
    rng = np.random.default_rng(seed)
    tokens = np.concatenate([[0.0], np.cumsum(collection.masses, dtype=np.float64)])
    spans: list[tuple[int, int]] = []
    for count in counts:
        starts = np.arange(len(collection.document) - count + 1)
        fits = (collection.document[starts] == collection.document[starts + count - 1]) & (
            tokens[starts + count] - tokens[starts] <= most_tokens
        )
        drawn = np.sort(rng.permutation(starts[fits])[:per_count])
        spans += [(start, start + count) for start in drawn.tolist()]
    if not spans:
        raise EmptyInputError(
            f"{collection.name} has no window of {min(counts)} to {max(counts)} chunks of one document that "
            f"holds at most {most_tokens} tokens. Cut the texts into shorter chunks."
        )
    firsts = np.array([start for start, _ in spans])
    return Windows(
        vectors=[collection.chunks[start:stop] for start, stop in spans],
        masses=[collection.masses[start:stop] for start, stop in spans],
        count=np.array([stop - start for start, stop in spans]),
        document=collection.document[firsts],
        teacher=_teacher(collection, spans),
    )


def _teacher(collection: Collection, spans: Sequence[tuple[int, int]]) -> Matrix | None:
    text = collection.text
    if text is None:
        return None
    texts = [text.between(collection.document[start], start, stop - 1) for start, stop in spans]
    return text.embed(f"{collection.name}-windows", texts)


def cosines(rows: Matrix, others: Matrix) -> NDArray[np.float64]:
    """(n,) of unit rows (n, d), row by row."""
    found: NDArray[np.float64] = np.einsum("nd,nd->n", rows, others, dtype=np.float64)
    return found
