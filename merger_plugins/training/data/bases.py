"""The base embedder of a training, by name, with what it tells of its context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from merger_plugins._batching import as_matrix, unit
from merger_plugins._types import Matrix
from merger_plugins.embedders import Embedder, MiniLMEmbedder, WrappedEmbedder, as_embedder, load_embedder
from merger_plugins.embedders.checked import context_of
from merger_plugins.embedders.long_texts import UNKNOWN_TOKENIZER_MARGIN
from merger_plugins.embedders.naming import embedder_named
from merger_plugins.errors import InputError

BUNDLED = MiniLMEmbedder.name

SPECIAL_TOKENS = 2
"""What models add to a text at its ends, out of their context."""


@dataclass
class Base:
    """An embedder, and what a training must know of it.

    Attributes:
        name: as it was asked for; part of what tells shards apart.
        embedder: what embeds.
        room: tokens of a text that it reads, special ones left out, as `count_tokens` counts.
        count_tokens: tokens of a text.
        exact: whether that is the embedder's own count.
        texts_at_once: texts in one call.
    """

    name: str
    embedder: Embedder
    room: int
    count_tokens: Callable[[str], int]
    exact: bool
    texts_at_once: int = 256
    _dimension: int | None = field(default=None, init=False)

    @property
    def dimension(self) -> int:
        """d; embeds one text the first time."""
        if self._dimension is None:
            self.embed(["dimension"])
        assert self._dimension is not None
        return self._dimension

    def embed(self, texts: Sequence[str]) -> Matrix:
        """(n, d) float32 unit rows, one a text.

        Raises:
            InputError: the embedder gave something else than one finite vector, not zero, a text.
        """
        parts = []
        for start in range(0, len(texts), self.texts_at_once):
            batch = list(texts[start : start + self.texts_at_once])
            parts.append(as_matrix(self.embedder.embed_documents(batch), self._dimension, what="embeddings"))
            self._dimension = parts[0].shape[1]
        return unit(np.concatenate(parts)) if parts else np.empty((0, self.dimension), np.float32)

    def embed_queries(self, texts: Sequence[str]) -> Matrix:
        """(n, d) float32 unit rows, as the embedder embeds queries: a call each, but for the bundled one."""
        if isinstance(self.embedder, MiniLMEmbedder):
            return self.embed(texts)  # it embeds queries as documents
        rows = [self.embedder.embed_query(text) for text in texts]
        if not rows:
            return np.empty((0, self.dimension), np.float32)
        return unit(as_matrix(rows, self._dimension, what="query embeddings"))


def open_base(source: Any = None, *, max_tokens: int | None = None, texts_at_once: int = 256) -> Base:
    """The embedder to train for.

    Args:
        source: as `embedder_named` takes it; None for the bundled one; or an object itself.
        max_tokens: its context, special tokens included. Needed where it does not tell.
        texts_at_once: texts in one call.

    Raises:
        InputError: there is no such embedder, or its context is unknown or too short for two chunks.
        MissingExtraError: as `embedder_named`.
    """
    name = source if isinstance(source, str) else BUNDLED if source is None else type(source).__qualname__
    embedder = as_embedder(embedder_named(source) if isinstance(source, str) else source or load_embedder())
    inner = embedder.source if isinstance(embedder, WrappedEmbedder) else embedder
    known, count_tokens = context_of(inner)
    limit = max_tokens or known
    if limit is None:
        raise InputError(
            f"The embedder {name} does not tell how many tokens of a text it reads before it cuts it off, "
            "and teacher vectors must lie within that. Say it: max_tokens, the context that the model's card "
            "states, such as 512 (--max-tokens 512)."
        )
    if known is not None and limit > known:
        raise InputError(f"max_tokens is {limit}, and the embedder {name} reads {known} tokens at the most.")
    room = limit - SPECIAL_TOKENS
    if count_tokens is None:
        room = int(room / UNKNOWN_TOKENIZER_MARGIN)
    if room < 8:
        raise InputError(f"max_tokens is {limit}: too short a context for a teacher vector of two chunks.")
    exact = count_tokens is not None
    return Base(name, embedder, room, count_tokens or load_embedder().count_tokens, exact, texts_at_once)
