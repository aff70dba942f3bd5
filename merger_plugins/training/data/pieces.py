"""Single-token pieces of a text, and random trees over them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"[^\W_]+|[^\w\s]|_")


def single_tokens(text: str, count_tokens: Callable[[str], int]) -> list[tuple[int, int]]:
    """The text cut into pieces of one token each, as (start, end) in reading order; spaces belong to none.

    A word of several tokens is cut from its beginning into the longest pieces of one token. A character that
    is several tokens by itself is one piece all the same.
    """
    lengths: dict[str, list[int]] = {}
    pieces = []
    for match in _WORD.finditer(text):
        word, position = match[0], match.start()
        if word not in lengths:
            lengths[word] = _cut(word, count_tokens)
        for length in lengths[word]:
            pieces.append((position, position + length))
            position += length
    return pieces


def _cut(word: str, count_tokens: Callable[[str], int]) -> list[int]:
    lengths = []
    while word:
        length = len(word)
        while length > 1 and count_tokens(word[:length]) > 1:
            length -= 1
        lengths.append(length)
        word = word[length:]
    return lengths


@dataclass(frozen=True)
class Tree:
    """A tree over n pieces; node 0 is the root, parents come before their children.

    Attributes:
        start: (m,) first piece of each node.
        stop: (m,) after its last piece; a node of one piece is a leaf.
        parent: (m,) its parent's number; -1 for the root.
    """

    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    parent: NDArray[np.int64]


def random_tree(pieces: int, rng: np.random.Generator, *, fanout: int = 10) -> Tree:
    """A tree whose every inner node has 2 to `fanout` children, cut at random places."""
    spans, parents = [(0, pieces)], [-1]
    node = 0
    while node < len(spans):
        start, stop = spans[node]
        size = stop - start
        if size > 1:
            children = int(rng.integers(2, min(fanout, size) + 1))
            inside = np.sort(rng.choice(size - 1, children - 1, replace=False)) + 1 + start
            edges = [start, *inside.tolist(), stop]
            spans += pairwise(edges)
            parents += [node] * children
        node += 1
    bounds = np.array(spans, np.int64)
    return Tree(bounds[:, 0], bounds[:, 1], np.array(parents, np.int64))
