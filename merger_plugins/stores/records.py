"""What is stored: ids, payloads and their hashes."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from uuid import UUID, uuid5

import numpy as np

from merger_plugins._types import Vector
from merger_plugins.errors import InputError, StoreError
from merger_plugins.stores.backend import Payload

SCHEMA = 1
"""Version of everything below; a store of a newer one is refused."""

TEXT, METADATA = "page_content", "metadata"
"""The payload keys that LangChain reads."""

_OURS = UUID("6b0c8d3e-2f57-5c1b-9d3e-4a1f0e7c5b92")

META_ID = str(uuid5(_OURS, "meta"))
"""The point of the companion that holds the store's settings."""

_encode = json.JSONEncoder(sort_keys=True).encode

CONTENT_KEYS = ("hash", "start", "end", "mass", METADATA, "speaker", "time")
"""What of a chunk's payload makes a document's content."""

TURN = "turn"
"""The payload key of the caller's own id of a turn; of one made for it where several processes may write."""


def namespace_of(collection: str) -> UUID:
    """The namespace of a new collection's ids."""
    return uuid5(_OURS, collection)


@dataclass(frozen=True)
class PointIds:
    """Ids that follow from what a point stands for, so that writing it again replaces it.

    Attributes:
        namespace: the collection's; kept with it, so that a copy under another name stays readable.
        edition: of the merged vectors; empty for the first one. Chunk points and calibrations have none.
    """

    namespace: UUID
    edition: str = ""

    @property
    def mark(self) -> dict[str, str]:
        """What sections, roots and claims of this edition have in their payload, which `owns` reads."""
        return {"edition": self.edition} if self.edition else {}

    def owns(self, payload: Mapping[str, Any]) -> bool:
        """Whether a section, root or claim is of this edition."""
        return bool(payload.get("edition", "") == self.edition)

    def chunk(self, document_id: str, position: int) -> str:
        """Id of a chunk point."""
        return str(uuid5(self.namespace, f"0/{position}/{document_id}"))

    def section(self, document_id: str, level: int, index: int) -> str:
        """Id of a section point."""
        return self._merged(f"{level}/{index}/{document_id}")

    def root(self, document_id: str) -> str:
        """Id of a root point."""
        return self._merged(f"root/{document_id}")

    def _merged(self, name: str) -> str:
        return str(uuid5(self.namespace, f"edition {self.edition}/{name}" if self.edition else name))

    def calibration(self, fingerprint: str, piece: int) -> str:
        """Id of a point that holds a piece of a calibration's statistics."""
        return str(uuid5(self.namespace, f"calibration/{fingerprint}/{piece}"))


def source_hash(source: str | Vector) -> str:
    """What a chunk vector comes from: the text that was embedded, or the vector itself."""
    data = source.encode() if isinstance(source, str) else b"\0" + source.astype("<f4").tobytes()
    return hashlib.sha256(data).hexdigest()[:32]


def content_hash(chunks: Iterable[Mapping[str, Any]], previous: str = "") -> str:
    """Hash of a document's content: each chunk's payload, chained, so that appending needs the last one.

    Args:
        chunks: payloads of the chunks, in reading order.
        previous: hash of the chunks before them.
    """
    for payload in chunks:
        content = _encode([payload.get(key) for key in CONTENT_KEYS])
        previous = hashlib.sha256((previous + content).encode()).hexdigest()[:32]
    return previous


def plain(value: Any, what: str) -> Any:
    """A copy of a value as JSON has it; dates become ISO strings, numpy's numbers Python's.

    Raises:
        InputError: something in it has no JSON form.
    """

    def convert(item: Any) -> Any:
        if isinstance(item, date | datetime):
            return item.isoformat()
        if isinstance(item, UUID):
            return str(item)
        if isinstance(item, np.generic):
            return item.item()
        raise TypeError(f"{type(item).__qualname__} has no JSON form")

    try:
        return json.loads(json.dumps(value, default=convert, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{what} cannot be stored: {error}. Use strings, finite numbers, booleans, lists and mappings."
        ) from error


def pack(vector: Vector) -> str:
    """A vector as base64 of little-endian float32."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def unpack(text: str) -> Vector:
    """Read what `pack` wrote.

    Raises:
        StoreError: it is damaged.
    """
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float32)
    except (ValueError, TypeError) as error:
        raise StoreError(
            f"A stored node is damaged ({error}). Call repair() to derive it again, or rebuild() for all."
        ) from error


def without_none(payload: Payload) -> Payload:
    """The payload without keys that have no value."""
    return {key: value for key, value in payload.items() if value is not None}
