"""Text into chunks of about as many tokens each, on sentence and paragraph boundaries."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from merger_plugins.errors import EmptyInputError, InputError

CHUNK_TOKENS = 50
"""Tokens that sentences are packed up to by default: what one vector still describes well."""

_WHOLE_SENTENCE = 1.5

_PARAGRAPH = re.compile(r"(?:[^\n]|\n(?!\s*\n))+")
_SENTENCE_END = re.compile(r"(?:[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+[”」』）]*|\n)\s*")
_WORD = re.compile(r"\S+\s*")


@dataclass(frozen=True)
class Chunk:
    """A piece of a text.

    Attributes:
        text: the piece, as it stands in the source.
        start: offset of its first character in the source, so that source[start:end] == text.
        end: offset after its last character.
        tokens: its length in tokens: its mass.
    """

    text: str
    start: int
    end: int
    tokens: int


class Chunker(Protocol):
    """What splits a text for the ingestion hooks."""

    def split(self, text: str) -> list[Chunk]:
        """The chunks of a text in reading order; together they hold all of it but white space."""


class SentenceChunker:
    """Packs whole sentences into chunks of about `size` tokens, never across a paragraph.

    Sentences are packed as long as they fit. A paragraph ends at a blank line. A sentence of up to one and a
    half times `size` stays whole; a longer one is cut into equal parts between words, or between characters
    where there are no words. Short chunks are kept: their mass says how short they are.

    Args:
        size: tokens that sentences are packed up to.
        count_tokens: gives the number of tokens of a text, without special tokens; the bundled embedder's
            tokenizer for None.

    Raises:
        InputError: a size below 1.
    """

    def __init__(self, size: int = CHUNK_TOKENS, count_tokens: Callable[[str], int] | None = None) -> None:
        if size < 1:
            raise InputError(f"size is {size}; a chunk holds at least 1 token.")
        self.size = size
        self._count_tokens = count_tokens

    def __repr__(self) -> str:
        return f"SentenceChunker(size={self.size})"

    def split(self, text: str) -> list[Chunk]:
        """The chunks of a text, in reading order.

        Raises:
            InputError: not a string.
            EmptyInputError: nothing but white space.
        """
        if not isinstance(text, str):
            raise InputError(f"A text to split must be a str; a {type(text).__name__} arrived.")
        if not text.strip():
            raise EmptyInputError("The text is empty; there is nothing to split.")
        count = self._count_tokens or _bundled_count()
        chunks: list[Chunk] = []
        for paragraph in _PARAGRAPH.finditer(text):
            chunks += self._pack(text, *paragraph.span(), count)
        return chunks

    def _pack(self, text: str, start: int, end: int, count: Callable[[str], int]) -> Iterator[Chunk]:
        first, last, tokens = start, start, 0
        for piece_start, piece_end, piece_tokens in self._pieces(text, start, end, count):
            if tokens and tokens + piece_tokens > self.size:
                yield _chunk(text, first, last, tokens)
                first, tokens = piece_start, 0
            last = piece_end
            tokens += piece_tokens
        if text[first:last].strip():
            yield _chunk(text, first, last, max(tokens, 1))

    def _pieces(
        self, text: str, start: int, end: int, count: Callable[[str], int]
    ) -> Iterator[tuple[int, int, int]]:
        """Sentences, or parts of them that fit, as (start, end, tokens)."""
        for sentence_start, sentence_end in _sentences(text, start, end):
            tokens = count(text[sentence_start:sentence_end])
            yield from self._cut(text, sentence_start, sentence_end, tokens, count)

    def _cut(
        self, text: str, start: int, end: int, tokens: int, count: Callable[[str], int]
    ) -> Iterator[tuple[int, int, int]]:
        """Parts of about equal length, cut between words where there are any."""
        if tokens <= self.size * _WHOLE_SENTENCE or end - start == 1:
            yield start, end, tokens
            return
        aim = start + max((end - start) // -(-tokens // self.size), 1)
        words = (match.end() for match in _WORD.finditer(text, start, end) if match.end() < end)
        cut = min(words, key=lambda position: abs(position - aim), default=aim)
        for part in ((start, cut), (cut, end)):
            yield from self._cut(text, *part, count(text[slice(*part)]), count)


def _sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    position = start
    for match in _SENTENCE_END.finditer(text, start, end):
        yield position, match.end()
        position = match.end()
    if position < end:
        yield position, end


def _chunk(text: str, start: int, end: int, tokens: int) -> Chunk:
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip())
    piece = piece.strip()
    return Chunk(piece, start, start + len(piece), tokens)


def _bundled_count() -> Callable[[str], int]:
    from merger_plugins.embedders import load_embedder

    return load_embedder().count_tokens
