"""What a back-fill takes of the points of a collection, page by page."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Self

import numpy as np

from merger_plugins._types import Matrix
from merger_plugins.stores.backend import Payload, Point
from merger_plugins.stores.documents import words
from merger_plugins.stores.filling import Left
from merger_plugins.stores.foreign import Reading

UNIT_WITHIN = 1e-3
"""How far from 1 the length of a vector may be where a collection does not compare by cosine."""

_SMALLEST = 1e-30
"""Of the square of a length; mergers take what is below for zero."""

_REMEMBERED = 4_096
_SHORT = 200
_DIGEST = 16

_encode = json.JSONEncoder(sort_keys=True, default=str).encode
_decode = json.JSONDecoder().decode


@dataclass(frozen=True, eq=False)
class Sheet:
    """Points as the database gave them.

    Attributes:
        ids: of the points.
        payloads: one a point.
        vectors: (n, d) float32; a row of zeros for a point without a vector.
    """

    ids: list[str]
    payloads: list[Payload]
    vectors: Matrix

    @classmethod
    def of(cls, points: Sequence[Point], dimension: int) -> Self:
        """Of points with vectors of this dimension."""
        nothing = np.zeros(dimension, np.float32)
        vectors: Matrix = np.empty((len(points), dimension), "<f4")
        for row, point in zip(vectors, points, strict=True):
            row[:] = nothing if point.vector is None else point.vector
        return cls([point.id for point in points], [dict(point.payload) for point in points], vectors)


@dataclass(eq=False)
class Page:
    """Chunks as they were read; one row each.

    Attributes:
        ids: of the points.
        documents: names of their documents.
        whole: whether the name was stored as a whole number; otherwise it was text.
        order: the values of the fields that order them.
        masses: of their texts, in words; 1 without a text.
        metadata: what the payload says beside the text, as `lines_of` has it.
        digests: a hash of everything that was read of each.
        vectors: (n, d) as stored.
    """

    ids: list[str]
    documents: list[str]
    whole: list[bool]
    order: list[list[str | int | float]]
    masses: list[float]
    metadata: list[str]
    digests: list[bytes]
    vectors: Matrix

    def __len__(self) -> int:
        return len(self.ids)


class Extractor:
    """Turns points into rows, and counts those that lack something.

    Args:
        reading: how the points are read.
        left: takes the points that are left out.
    """

    def __init__(self, reading: Reading, left: Left) -> None:
        self._reading = reading
        self._left = left
        self._decoded = _Decoded()
        self._document = self._decoded.at(reading.group_by)
        self._order = [(path, self._decoded.at(path)) for path in reading.order_by]
        self._text = self._decoded.at(reading.text) if reading.text else None
        self.shortest = self.longest = 1.0

    def page(self, sheet: Sheet) -> Page:
        """The rows of those points that have everything."""
        vectors = sheet.vectors
        squared = np.einsum("nd,nd->n", vectors, vectors)
        sound = (np.isfinite(squared) & (squared > _SMALLEST)).tolist()
        page = Page([], [], [], [], [], [], [], vectors)
        rows: list[int] = []
        data = vectors.data.cast("B")
        width = vectors.strides[0]
        for row, (point_id, payload) in enumerate(zip(sheet.ids, sheet.payloads, strict=True)):
            value = self._document(payload)
            document = self._reading.document_named(value)
            if document is None:
                self._left.add(f"a text or whole number in the field {self._reading.group_by!r}", point_id)
                continue
            order = self._ordered(point_id, payload)
            if order is None:
                continue
            if not sound[row]:
                self._left.add("a vector of finite numbers that are not all zero", point_id)
                continue
            text = self._text(payload) if self._text is not None else None
            text = text if type(text) is str else None
            lines = lines_of(self._reading.metadata_of(payload))
            said = f"{point_id}\0{order!r}\0{lines}\0{'' if text is None else text}"
            hashed = data[row * width : (row + 1) * width], said.encode(errors="surrogatepass")
            page.ids.append(point_id)
            page.documents.append(document)
            page.whole.append(type(value) is int)
            page.order.append(order)
            page.masses.append(float(max(words(text), 1)) if text else 1.0)
            page.metadata.append(lines)
            page.digests.append(blake2b(b"".join(hashed), digest_size=_DIGEST).digest())
            rows.append(row)
        if len(rows) < len(sheet.ids):
            page.vectors, squared = vectors[rows], squared[rows]
        if rows:
            self.shortest = min(self.shortest, float(np.sqrt(squared.min())))
            self.longest = max(self.longest, float(np.sqrt(squared.max())))
        return page

    @property
    def unit(self) -> bool:
        """Whether all vectors so far have unit length."""
        return self.shortest > 1 - UNIT_WITHIN and self.longest < 1 + UNIT_WITHIN

    def _ordered(self, point_id: str, payload: Payload) -> list[str | int | float] | None:
        values = []
        for path, at in self._order:
            value = at(payload)
            kind = type(value)
            if (kind is not int and kind is not str and kind is not float) or value != value:
                self._left.add(f"a text or number in the field {path!r}", point_id)
                return None
            values.append(value)
        return values


class _Decoded:
    """Looks along paths of keys as `foreign.found` does; JSON text that several paths lead into once."""

    def __init__(self) -> None:
        self._text = ""
        self._value: Any = None

    def at(self, path: str) -> Callable[[Payload], Any]:
        """What finds the value at a path."""
        first, *rest = path.split(".")

        def inside(payload: Payload) -> Any:
            value: Any = payload.get(first)
            for key in rest:
                if type(value) is str and value.startswith("{"):
                    value = self._read(value)
                if type(value) is not dict:
                    return None
                value = value.get(key)
            return value

        return inside

    def _read(self, text: str) -> Any:
        if text is not self._text:
            try:
                self._value = _decode(text)
            except ValueError:
                self._value = None
            self._text = text
        return self._value


def lines_of(metadata: Payload) -> str:
    """Metadata as sorted lines of JSON, one a key: what several points share are the lines they share."""
    return "\n".join(sorted([_line(key, value) for key, value in metadata.items()]))


def shared(lines: str) -> Payload:
    """The metadata that lines stand for."""
    metadata: Payload = _decode("{" + lines.replace("\n", ",") + "}")
    return metadata


def _line(key: str, value: Any) -> str:
    kind = type(value)
    if kind is int:
        return f"{_key(key)}{value}"
    if kind is str and len(value) < _SHORT:
        return _text_line(key, value)
    return f"{_key(key)}{_encode(value)}"


@lru_cache(_REMEMBERED)
def _key(key: str) -> str:
    return f"{_encode(key)}: "


@lru_cache(_REMEMBERED)
def _text_line(key: str, value: str) -> str:
    return f"{_key(key)}{_encode(value)}"
