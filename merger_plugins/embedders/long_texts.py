"""Texts longer than an embedder's context: merged from their chunks instead of cut off.

What the hosts' embedding adapters share; `LongTexts` says how a vector is made.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merger_plugins._batching import unit
from merger_plugins._threads import in_thread
from merger_plugins._types import Matrix
from merger_plugins.chunking import CHUNK_TOKENS, Chunk, Chunker, SentenceChunker
from merger_plugins.embedders.checked import CheckedEmbedder
from merger_plugins.embedders.minilm import load_embedder
from merger_plugins.errors import InputError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.loading import load_merger
from merger_plugins.mergers.mean import MeanMerger

UNKNOWN_TOKENIZER_MARGIN = 1.4
"""Tokens that a model may make of one token of the bundled tokenizer, where its own is not known.

Five tokenizers of large models made less of 99 in 100 pieces of English, German, Spanish, Russian and Korean
text; of Chinese up to 1.6 and of Vietnamese up to 1.9.
"""

_SPECIAL_TOKENS = 2
_WHOLE_SENTENCE = 1.5  # a chunk of SentenceChunker may be longer than its size by this factor
_SHORTEST = 1e-12  # a vector below this length has no direction in float32
_SAME_DIRECTION = 1 - 1e-6
_TEXTS_AT_ONCE = 64


class LongTexts:
    """Vectors of texts, however long.

    A long text is split into chunks. Short texts, the chunks of all long texts and their openings (as much as
    the model reads of them) are embedded in one call. The vector of a long text points half where the vector
    of its opening does and half where the merge of its chunk vectors does, masses in tokens; it is as long as
    the vector of its opening. Short texts, the empty text and queries keep exactly the numbers that the
    embedder gave, unless the merger changes single vectors. Results depend on a text alone.

    Attributes:
        embedder: what is wrapped.
        merger: what merges.
    """

    def __init__(
        self,
        embeddings: Any = None,
        *,
        merger: SequenceMerger | None = None,
        max_tokens: int | None = None,
        count_tokens: Callable[[str], int] | None = None,
        chunker: Chunker | None = None,
        coroutines: tuple[str, str],
    ) -> None:
        """Say what to wrap and how long its context is.

        Args:
            embeddings: anything that `as_embedder` accepts; None for the bundled embedder.
            merger: one for the wrapped model's vector space; `MeanMerger` for None.
            max_tokens: the model's context, its two special tokens included. Needed where the embeddings do
                not tell it.
            count_tokens: gives the number of tokens of a text, without special tokens. None for the wrapped
                model's own tokenizer where it can be reached, else for the bundled one, of which each token
                counts as `UNKNOWN_TOKENIZER_MARGIN`.
            chunker: how to split long texts; `SentenceChunker` for None.
            coroutines: what the host calls the embedder's coroutine functions for texts and for a query.

        Raises:
            InputError: `embeddings` is of no known kind or does not tell its context, or `max_tokens` is out
                of range.
        """
        self.embedder = wrapped = CheckedEmbedder.of(
            load_embedder() if embeddings is None else embeddings, coroutines=coroutines
        )
        if max_tokens is None:
            max_tokens = wrapped.max_tokens
        if max_tokens is None:
            raise InputError(
                f"{wrapped.name} does not tell how many tokens of a text it reads before it cuts it off. "
                "Pass max_tokens=, the context that the model's card states, such as 512; and count_tokens=, "
                "its tokenizer's count, where you have it."
            )
        if type(max_tokens) is not int or max_tokens <= _SPECIAL_TOKENS:
            raise InputError(
                f"max_tokens is {max_tokens!r}, where a number above {_SPECIAL_TOKENS} was expected."
            )
        self.merger = merger or MeanMerger()
        self._room = max_tokens - _SPECIAL_TOKENS
        own_count = count_tokens or wrapped.count_tokens
        if own_count is None:
            self._room = max(int(self._room / UNKNOWN_TOKENIZER_MARGIN), 1)
        self._count_tokens = own_count or load_embedder().count_tokens
        size = max(min(CHUNK_TOKENS, int(self._room / _WHOLE_SENTENCE)), 1)
        self._chunker = chunker or SentenceChunker(size, self._count_tokens)

    def embed(self, texts: Iterable[str]) -> list[list[float]]:
        """One vector a text, in the order of the texts; no vectors for no texts.

        Raises:
            InputError: `texts` is one string, or holds something that is not a string; the wrapped embedder
                returned another number of vectors, vectors of unequal length, NaN or infinity; the chunker
                gave a chunk longer than the context; or the merger works in another dimension.
        """
        batch = self._batch(texts)
        return self._merged(batch, self.embedder.embed(batch.pieces)) if batch.pieces else []

    def embed_query(self, text: str) -> list[float]:
        """The embedder's own vector of a query, which is never split.

        Raises:
            InputError: it is not a string, or the wrapped embedder gave something else than a finite vector.
        """
        return self.embedder.embed_query(_checked(text))

    async def aembed(self, texts: Iterable[str]) -> list[list[float]]:
        """As `embed`, by the embedder's own coroutine where it has one; the rest is done in threads."""
        batch = await in_thread(self._batch, texts)
        if not batch.pieces:
            return []
        return await in_thread(self._merged, batch, await self.embedder.aembed(batch.pieces))

    async def aembed_query(self, text: str) -> list[float]:
        """As `embed_query`, by the embedder's own coroutine where it has one."""
        return await self.embedder.aembed_query(_checked(text))

    def calibrated(self, texts: Iterable[str]) -> LongTexts:
        """The same with a merger calibrated on the chunk vectors of texts, which are read once, in a stream.

        Raises:
            InputError: as `embed`, or there are no texts.
            ArtefactError: the bundled merger's files are damaged.
        """
        merger = self.merger
        if isinstance(merger, MeanMerger) and self.embedder.bundled:
            merger = load_merger()  # its background is that of the bundled embedder's space
        made = copy.copy(self)
        made.merger = merger.calibrated(self._chunk_vectors(texts))
        return made

    def _chunk_vectors(self, texts: Iterable[str]) -> Iterator[Matrix]:
        """(n, d) of each text that has chunks, a few texts embedded at a time."""
        rest = iter(_not_one_string(texts))
        while some := list(islice(rest, _TEXTS_AT_ONCE)):
            documents = [self._split(text) for text in some if _checked(text).strip()]
            pieces = [chunk.text for chunks in documents for chunk in chunks]
            vectors = self.embedder.embed(pieces) if pieces else np.empty((0, 1))
            for part in np.split(vectors, np.cumsum([len(chunks) for chunks in documents])):
                if (usable := _directed(part)).any():
                    yield part[usable].astype(np.float32)

    def _batch(self, texts: Iterable[str]) -> _Batch:
        batch = _Batch()
        checked = [_checked(text, f" number {number}") for number, text in enumerate(_not_one_string(texts))]
        for text in checked:
            if not text.strip() or self._count_tokens(text) <= self._room:
                batch.add(text)
            else:
                chunks = self._split(text)
                batch.add(self._opening(text, chunks), chunks)
        return batch

    def _split(self, text: str) -> list[Chunk]:
        chunks = self._chunker.split(text)
        longest = max((chunk.tokens for chunk in chunks), default=0)
        if not 0 < longest <= self._room:
            raise InputError(
                f"{self._chunker!r} gave {len(chunks)} chunks, the longest of {longest} tokens, for a text "
                f"of {len(text)} characters. Expected are chunks of 1 to {self._room} tokens, which is what "
                f"{self.embedder.name} reads: pass another chunker."
            )
        return chunks

    def _opening(self, text: str, chunks: Sequence[Chunk]) -> str:
        """As many whole chunks from the start as the model reads."""

        def tokens_up_to(chunk: Chunk) -> int:
            return self._count_tokens(text[: chunk.end])

        fitting = bisect_right(chunks, self._room, key=tokens_up_to)
        return text[: chunks[max(fitting, 1) - 1].end]

    def _merged(self, batch: _Batch, vectors: NDArray[np.float64]) -> list[list[float]]:
        """(number of pieces, d) -> one vector a text."""
        usable = _directed(vectors)
        narrow = vectors.astype(np.float32)
        results = vectors[batch.heads]
        sequences, masses, owners = [], [], []
        for text, (head, weights) in enumerate(zip(batch.heads, batch.masses, strict=True)):
            if not usable[head]:
                continue  # some models give zeros for a text without known words: that stays as it is
            sequences.append(narrow[head : head + 1])
            masses.append(np.ones(1))
            owners.append(text)
            chunks = np.flatnonzero(usable[head + 1 : head + 1 + len(weights)])
            if len(chunks):
                sequences.append(narrow[head + 1 + chunks])
                masses.append(np.array(weights)[chunks])
                owners.append(text)
        if sequences:
            directions = np.zeros_like(results, np.float32)
            np.add.at(directions, owners, self.merger.merge_many(sequences, masses=masses))
            lengths = np.linalg.norm(results, axis=1)
            merged = unit(directions) * lengths[:, None]
            changed = np.einsum("td,td->t", merged, results) < _SAME_DIRECTION * lengths**2
            results[changed] = merged[changed]
        listed: list[list[float]] = results.tolist()
        return listed


@dataclass
class _Batch:
    """What is embedded for a list of texts, in one call.

    Attributes:
        pieces: for each text itself, or its opening and then its chunks.
        heads: where each text begins in `pieces`.
        masses: of each text's chunks; none for a short text.
    """

    pieces: list[str] = field(default_factory=list)
    heads: list[int] = field(default_factory=list)
    masses: list[list[int]] = field(default_factory=list)

    def add(self, head: str, chunks: Sequence[Chunk] = ()) -> None:
        """Append one text."""
        self.heads.append(len(self.pieces))
        self.pieces += [head, *(chunk.text for chunk in chunks)]
        self.masses.append([chunk.tokens for chunk in chunks])


def _directed(vectors: NDArray[Any]) -> NDArray[np.bool_]:
    """(n, d) -> (n,) which of them are long enough to have a direction."""
    directed: NDArray[np.bool_] = np.linalg.norm(vectors, axis=1) > _SHORTEST
    return directed


def _checked(text: str, which: str = "") -> str:
    if not isinstance(text, str):
        raise InputError(f"Text{which} is a {type(text).__name__}, where a str was expected: {text!r:.80}.")
    return text


def _not_one_string(texts: Iterable[str]) -> Iterable[str]:
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise InputError(f"A list of texts was expected, and a {type(texts).__name__} arrived: pass [text].")
    return texts
