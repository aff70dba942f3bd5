"""Articles of made-up words, and an embedder of words: quick, and independent of any model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merger_plugins.finesse.probes import Article, EmbeddedProbes, Probes, choose_probes, embed_probes

DIMENSION = 24


class WordEmbedder:
    """A text's vector is the sum of its words' random vectors, and a little of the word before each."""

    fingerprint = "0123456789abcdef"
    max_seq_length = 160  # what sentence-transformers calls the context

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.seen: list[str] = []

    def embed_documents(self, texts: Sequence[str]) -> NDArray[Any]:
        self.seen += texts
        return np.stack([self.embed_query(text) for text in texts])

    def embed_query(self, text: str) -> NDArray[Any]:
        words = text.split()
        vectors = [_word(word) + 0.5 * _word(f"{before} {word}") for before, word in zip(["", *words], words)]  # noqa: B905
        return np.sum(vectors, axis=0) * self.scale


def _word(word: str) -> NDArray[Any]:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).standard_normal(DIMENSION)


def count_words(text: str) -> int:
    return len(text.split())


def articles(count: int, *, words: int = 30, languages: Sequence[str] = ("en", "ko", "zh")) -> list[Article]:
    return [
        Article(
            f"article {number}",
            languages[number % len(languages)],
            " ".join(f"w{number}x{place}" for place in range(words)),
        )
        for number in range(count)
    ]


def some_probes(count: int, *, tokens: int = 6, seed: int = 0) -> Probes:
    return choose_probes(articles(count), count, tokens=tokens, count_tokens=count_words, seed=seed)


def embedded(count: int, *, tokens: int = 6, embedder: Any = None) -> EmbeddedProbes:
    return embed_probes(some_probes(count, tokens=tokens), embedder or WordEmbedder())
