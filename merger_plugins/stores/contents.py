"""What a document or conversation consists of, in reading order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from merger_plugins.stores.backend import Payload, Point
from merger_plugins.stores.chunks import ChunkPoints


@dataclass(frozen=True)
class StoredChunk:
    """A chunk or turn as it is stored.

    Attributes:
        id: of the point.
        document_id: of the document or conversation.
        position: its place there; None where the point does not say.
        text: None where none is stored.
        metadata: as it was passed in.
        speaker: who said it, for a turn.
        time: when, for a turn.
    """

    id: str
    document_id: str
    position: int | None
    text: str | None
    metadata: Payload
    speaker: str | None = None
    time: float | str | None = None


def contents(chunks: ChunkPoints, document_id: str, last: int | None) -> list[StoredChunk]:
    """The chunks of a document in reading order, the `last` ones or all."""
    points: Sequence[Point] = chunks.of(document_id, last)
    return [
        StoredChunk(
            id=point.id,
            document_id=document_id,
            position=chunks.position(point.payload),
            text=chunks.text(point.payload),
            metadata=chunks.metadata(point.payload),
            speaker=point.payload.get("speaker"),
            time=point.payload.get("time"),
        )
        for point in points
    ]
