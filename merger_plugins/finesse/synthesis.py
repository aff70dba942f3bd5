"""What FINESSE measures: a merger on chunk vectors, or an embedder on the growing text."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

import numpy as np

from merger_plugins._batching import as_matrix
from merger_plugins._types import Matrix
from merger_plugins.errors import InputError
from merger_plugins.finesse.probes import EmbeddedProbes
from merger_plugins.finesse.settings import Indices
from merger_plugins.mergers.base import SequenceMerger

SEPARATOR: Final = " "
"""What stands between chunks in native mode, as in the public package."""

MARGIN: Final = 100
"""Tokens of an embedder's context that native mode leaves free, as the public package does."""

_KEPT = "native/texts"  # one file a sample
_VECTORS_AT_ONCE = 32_768


class Synthesis(Protocol):
    """What is measured: makes one vector of each sequence of probes."""

    def __call__(self, sequences: Sequence[Indices]) -> Matrix:
        """Numbers of probes, in order, for each of b sequences -> (b, d)."""

    def timed(self, sequence: Indices) -> tuple[float, float]:
        """Milliseconds from texts to the vector of one sequence, and from stored chunk vectors on."""


class MergerSynthesis:
    """A merger on the chunk vectors of the probes.

    Raises:
        DimensionError: the merger works in another dimension.
    """

    def __init__(self, merger: SequenceMerger, probes: EmbeddedProbes) -> None:
        as_matrix(probes.vectors, merger.dimension, what="the probes' vectors")
        self.merger, self.probes = merger, probes

    def __call__(self, sequences: Sequence[Indices]) -> Matrix:
        """See `Synthesis`."""
        parts = [
            self.merger.merge_many([self.probes.vectors[rows] for rows in part]) for part in _parts(sequences)
        ]
        return np.concatenate(parts)

    def timed(self, sequence: Indices) -> tuple[float, float]:
        """See `Synthesis`; chunks are embedded, and merged alone, one after the other."""
        begin = time.perf_counter()
        for row in sequence:
            self.merger.merge(self.probes.embedder.embed_documents([self.probes.probes.texts[row]]))
        middle = time.perf_counter()
        self.merger.merge(self.probes.vectors[sequence])
        end = time.perf_counter()
        return (end - begin) * 1e3, (end - middle) * 1e3


class NativeSynthesis:
    """An embedder on the joined texts of the probes.

    Raises:
        InputError: nobody says how many tokens the embedder reads of one text.
    """

    def __init__(self, probes: EmbeddedProbes) -> None:
        if probes.context is None:
            raise InputError(
                f"{probes.name} does not tell how many tokens it reads of one text; say so in "
                "embed_probes(..., context=512), by bench --max-tokens, or as the object's max_seq_length."
            )
        self.probes, self.context = probes, probes.context

    def fits(self, length: int) -> bool:
        """Whether that many chunks leave `MARGIN` tokens of the context free."""
        return length * self.probes.tokens + MARGIN <= self.context

    def __call__(self, sequences: Sequence[Indices]) -> Matrix:
        """See `Synthesis`; one chunk alone is its chunk vector."""
        vectors = np.empty((len(sequences), self.probes.vectors.shape[1]), np.float32)
        longer = [number for number, rows in enumerate(sequences) if len(rows) > 1]
        for number, rows in enumerate(sequences):
            if len(rows) == 1:
                vectors[number] = self.probes.vectors[rows[0]]
        if longer:
            vectors[longer] = self.probes.embed(_KEPT, [self._text(sequences[number]) for number in longer])
        return vectors

    def timed(self, sequence: Indices) -> tuple[float, float]:
        """See `Synthesis`; nothing is stored, so both are the time of embedding the whole text."""
        begin = time.perf_counter()
        self.probes.embedder.embed_documents([self._text(sequence)])
        spent = (time.perf_counter() - begin) * 1e3
        return spent, spent

    def _text(self, rows: Indices) -> str:
        return SEPARATOR.join(self.probes.probes.texts[row] for row in rows)


def _parts(sequences: Sequence[Indices]) -> Iterator[Sequence[Indices]]:
    """Sequences in parts of a bounded number of vectors, or of one sequence."""
    start = size = 0
    for number, rows in enumerate(sequences):
        if number > start and size + len(rows) > _VECTORS_AT_ONCE:
            yield sequences[start:number]
            start, size = number, 0
        size += len(rows)
    yield sequences[start:]
