"""The rows of one part, sorted into sequences, whose positions are complete."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa

from merger_plugins._types import Matrix, Vector
from merger_plugins.errors import InputError
from merger_plugins.ray.rows import BLOCK, DOCUMENT, MASS, POSITION, VECTOR, Extent, Ints, as_vectors

_FLOATS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Piece:
    """Chunks of one document that follow one another.

    Attributes:
        document: its name.
        first: place of the first one in the document.
        start: where they begin among the sorted rows.
        stop: the row after the last one.
    """

    document: Any
    first: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class Sorted:
    """The rows of one part by document and position.

    Attributes:
        whole: documents that are complete here.
        pieces: of long documents, each `block` chunks but for a document's last.
    """

    def __init__(self, table: pa.Table, order: Ints, whole: list[Piece], pieces: list[Piece]) -> None:
        self.whole = whole
        self.pieces = pieces
        self._order = order
        self._vectors = as_vectors(table.column(VECTOR))
        self._masses: Vector = table.column(MASS).to_numpy()[order]

    @classmethod
    def of(cls, table: pa.Table, extent: Extent) -> Self:
        """Sort a part.

        Raises:
            InputError: a position is missing, or there twice; the message names the document.
        """
        encoded = table.column(DOCUMENT).combine_chunks().dictionary_encode()
        names: list[Any] = encoded.dictionary.to_pylist()
        codes = encoded.indices.to_numpy()
        positions: Ints = table.column(POSITION).to_numpy()
        blocks: Ints = table.column(BLOCK).to_numpy()
        order: Ints = np.lexsort((positions, codes))
        codes, positions, blocks = codes[order], positions[order], blocks[order]
        changes = (np.diff(codes, prepend=-1) != 0) | (np.diff(blocks, prepend=-1) != 0)
        starts = np.flatnonzero(changes)
        stops = np.append(starts, len(order))[1:]
        whole, pieces = list[Piece](), list[Piece]()
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            name = names[codes[start]]
            first = int(blocks[start]) * extent.block
            total = extent.long.get(name)
            last = first + stop - start if total is None else min(first + extent.block, total)
            _complete(name, positions[start:stop], first, last, total)
            (whole if total is None else pieces).append(Piece(name, first, start, stop))
        return cls(table, order, whole, pieces)

    def lots(self) -> Iterator[list[Piece]]:
        """The whole documents, so many at a time that their vectors are no more than 8 MB, or one."""
        lot: list[Piece] = []
        width = self._vectors.shape[1]
        for document in self.whole:
            if lot and (document.stop - lot[0].start) * width > _FLOATS_AT_ONCE:
                yield lot
                lot = []
            lot.append(document)
        if lot:
            yield lot

    def vectors(self, lot: Sequence[Piece]) -> Matrix:
        """(n, d), the vectors of these, in this order; they must be in the order of the rows."""
        return self._vectors[self._order[self._rows(lot)]]

    def masses(self, lot: Sequence[Piece]) -> Vector:
        """(n,), as `vectors`."""
        return self._masses[self._rows(lot)]

    @staticmethod
    def _rows(lot: Sequence[Piece]) -> slice | Ints:
        if lot[-1].stop - lot[0].start == sum(map(len, lot)):
            return slice(lot[0].start, lot[-1].stop)
        return np.concatenate([np.arange(one.start, one.stop) for one in lot])


def _complete(name: object, positions: Ints, first: int, stop: int, total: int | None) -> None:
    """Make sure that sorted positions are first, first + 1, ... stop - 1; `total` as far as it is known."""
    if len(positions) == stop - first and (positions == np.arange(first, stop)).all():
        return
    twice = np.flatnonzero(np.diff(positions) == 0)
    if len(twice):
        raise InputError(
            f"The document {name!r} has two chunks or more at the position {positions[twice[0]]}. Each "
            "position belongs to one chunk: number the chunks anew, or leave out the copies."
        )
    there = set(positions.tolist())
    missing = next(place for place in range(first, stop + 1) if place not in there)
    raise absent(name, missing, int(positions[-1]) if total is None else total - 1)


def absent(name: object, missing: int, top: int) -> InputError:
    """The error for a document without a chunk at a position below another one's."""
    return InputError(
        f"The document {name!r} has no chunk at the position {missing}, and one at {top}. Positions count "
        "from 0 on without gaps: number the chunks anew, or add those that are missing."
    )
