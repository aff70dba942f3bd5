"""A base embedder that needs no model, and texts for it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

DIMENSION = 16
CONTEXT = 130


class Toy:
    """A weighted sum of fixed random vectors of words, early ones counting more; some words go together.

    Speaks as LangChain's embeddings do, and tells no context.
    """

    def __init__(self) -> None:
        self.calls = self.texts = 0

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        self.calls += 1
        self.texts += len(texts)
        return [self._embed(text).tolist() for text in texts]

    def embed_query(self, text: str) -> list[float]:
        self.calls += 1
        self.texts += 1
        return self._embed(text).tolist()

    def _embed(self, text: str) -> NDArray[np.float64]:
        words = text.lower().split()[:CONTEXT] or ["nothing"]
        rows = np.stack([_word(word.strip(".,")) for word in words])
        weights = np.exp(-np.arange(len(rows)) / 25)
        total = weights @ rows
        return total / np.linalg.norm(total)


@cache
def _word(word: str) -> NDArray[np.float64]:
    return np.random.default_rng(zlib.crc32(word.encode())).standard_normal(DIMENSION) + 0.4


embeddings = Toy()


def make() -> Toy:
    return Toy()


def article(number: int, sentences: int = 30) -> str:
    """A text on a subject of its own: a third of its words are that subject's."""
    rng = np.random.default_rng(number)
    own = [f"subject{number}word{i}" for i in range(12)]
    common = [f"common{i}" for i in range(60)]
    lines = []
    for _ in range(sentences):
        words = [str(rng.choice(own if rng.random() < 0.35 else common)) for _ in range(9)]
        lines.append(" ".join(words).capitalize() + ".")
    return "\n\n".join(" ".join(lines[i : i + 5]) for i in range(0, len(lines), 5))
