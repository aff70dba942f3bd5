"""What comes in: documents and turns, cut into pieces of which each becomes a chunk point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from merger_plugins._batching import as_masses, as_matrix, as_vector
from merger_plugins._types import MassesLike, MatrixLike, Vector, VectorLike
from merger_plugins.chunking import Chunk, Chunker
from merger_plugins.errors import DimensionError, EmptyInputError, InputError
from merger_plugins.stores.backend import Payload
from merger_plugins.stores.records import METADATA, SCHEMA, TEXT, TURN, plain, source_hash, without_none

CountTokens = Callable[[str], int]


@dataclass(frozen=True, eq=False)
class Document:
    """A document to ingest: its text, or its chunks, or their vectors.

    Attributes:
        id: its name in the store.
        text: the whole text, to be split and embedded.
        chunks: the text already split, to be embedded; or the texts that belong to `vectors`.
        vectors: (n, d) chunk vectors in reading order, to be stored as they are.
        masses: (n,) tokens each chunk stands for; counted where there is text, else all alike.
        metadata: stored with every chunk, section and root, for filters.
    """

    id: str
    text: str | None = None
    chunks: Sequence[str] | None = None
    vectors: MatrixLike | None = None
    masses: MassesLike | None = None
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Ingested:
    """What an ingestion did.

    Attributes:
        document_id: of which document.
        chunks: how many chunks it has now.
        embedded: how many texts of it were embedded.
        written: points written, in both collections.
        deleted: points deleted, in both collections.
        error: why nothing of it was ingested, or None.
    """

    document_id: str
    chunks: int = 0
    embedded: int = 0
    written: int = 0
    deleted: int = 0
    error: Exception | None = None

    @property
    def unchanged(self) -> bool:
        """Whether the store held exactly this already."""
        return self.error is None and not self.written and not self.deleted


@dataclass(frozen=True, eq=False)
class Piece:
    """One chunk on its way in.

    Attributes:
        payload: of its point, but for what depends on its place and its vector.
        embed: the text to embed; None where there is a vector.
        vector: (d,) as given; None where there is a text to embed.
    """

    payload: Payload
    embed: str | None
    vector: Vector | None

    def named(self, turn_id: str) -> Piece:
        """The same piece with the caller's id of its turn."""
        return Piece({**self.payload, TURN: turn_id}, self.embed, self.vector)


def checked_id(document_id: object) -> str:
    """The id, if it can be one.

    Raises:
        InputError: it is empty or no string.
    """
    if not isinstance(document_id, str) or not document_id:
        raise InputError(f"A document's id must be a string that is not empty; {document_id!r} arrived.")
    return document_id


def words(text: str) -> int:
    """The number of words: the mass of a text where the embedder counts no tokens."""
    return len(text.split())


@dataclass(frozen=True, eq=False)
class Prepared:
    """A document that has been checked and cut.

    Attributes:
        id: its name in the store.
        metadata: JSON values that all its pieces share.
        pieces: at least one, in reading order.
    """

    id: str
    metadata: Payload
    pieces: list[Piece]


def prepared(document: Document, chunker: Chunker, count: CountTokens) -> Prepared:
    """Check a document and cut it into pieces.

    Raises:
        EmptyInputError: no text, no chunk, or a chunk without text.
        InputError: text beside chunks or vectors; metadata that has no JSON form; vectors or masses that
            `SequenceMerger.merge` would refuse.
    """
    checked_id(document.id)
    given = [name for name in ("text", "chunks", "vectors") if getattr(document, name) is not None]
    if given not in (["text"], ["chunks"], ["vectors"], ["chunks", "vectors"]):
        raise InputError(
            f"Document {document.id!r} arrived with {' and '.join(given) or 'nothing'}; pass text=, or "
            "chunks=, or vectors= with or without chunks=."
        )
    metadata = plain(dict(document.metadata or {}), f"The metadata of {document.id!r}")
    if document.vectors is not None:
        matrix = as_matrix(document.vectors)
        texts: Sequence[str | None] = document.chunks if document.chunks is not None else [None] * len(matrix)
        if isinstance(texts, str) or len(texts) != len(matrix):
            raise DimensionError(
                f"Document {document.id!r} has {len(matrix)} vectors and {len(texts)} chunks; "
                "pass one text a vector."
            )
        masses = as_masses(document.masses, len(matrix))
        pieces = [
            piece(text, float(mass), vector=vector, metadata=metadata)
            for text, mass, vector in zip(texts, masses, matrix, strict=True)
        ]
        return Prepared(document.id, metadata, pieces)
    chunks = _split(document, chunker, count)
    if document.masses is not None:
        weights = as_masses(document.masses, len(chunks)).tolist()
    else:
        weights = [max(chunk.tokens, 1) for chunk in chunks]
    offsets = document.text is not None
    pieces = [
        piece(chunk.text, float(mass), metadata=metadata, span=(chunk.start, chunk.end) if offsets else None)
        for chunk, mass in zip(chunks, weights, strict=True)
    ]
    return Prepared(document.id, metadata, pieces)


def _split(document: Document, chunker: Chunker, count: CountTokens) -> list[Chunk]:
    if document.chunks is None:
        assert document.text is not None
        if not isinstance(document.text, str):
            raise InputError(
                f"The text of {document.id!r} must be a string; a {type(document.text).__qualname__} arrived."
            )
        if not document.text.strip():
            raise EmptyInputError(f"Document {document.id!r} has no text.")
        chunks = chunker.split(document.text)
        if not chunks:
            raise EmptyInputError(f"{chunker!r} found no chunk in the text of {document.id!r}.")
        return chunks
    if isinstance(document.chunks, str) or not all(isinstance(text, str) for text in document.chunks):
        raise InputError(f"The chunks of {document.id!r} must be a list of strings.")
    for index, text in enumerate(document.chunks):
        if not text.strip():
            raise EmptyInputError(f"Chunk {index} of {document.id!r} has no text; leave it out.")
    if not len(document.chunks):
        raise EmptyInputError(f"Document {document.id!r} has no chunks.")
    return [Chunk(text, 0, len(text), count(text)) for text in document.chunks]


def pieces_of_turn(
    turn: str | VectorLike,
    *,
    text: str | None,
    mass: float | None,
    speaker: str | None,
    time: datetime | float | str | None,
    metadata: Mapping[str, Any] | None,
    chunker: Chunker,
    count: CountTokens,
    longest: int | None,
) -> list[Piece]:
    """The pieces of a turn: one, or several where its text is longer than the embedder reads.

    Raises:
        EmptyInputError: a turn without text.
        InputError: text= beside a turn that is text; or as `prepared`.
    """
    extra: dict[str, Any] = {
        "metadata": plain(dict(metadata or {}), "The metadata of the turn"),
        "speaker": speaker,
        "time": plain(time, "The time of the turn"),
    }
    if not isinstance(turn, str):
        weight = as_masses([1.0 if mass is None else mass], 1)[0]
        return [piece(text, float(weight), vector=as_vector(turn), **extra)]
    if text is not None:
        raise InputError("text= belongs to a turn that is a vector; this turn is its own text.")
    if not turn.strip():
        raise EmptyInputError("The turn has no text; there is nothing to append.")
    spoken = f"{speaker}: {turn}" if speaker else turn
    tokens = count(spoken)
    if longest is not None and tokens > longest:
        chunks = chunker.split(turn)
        share = 1.0 if mass is None else float(mass) / sum(chunk.tokens for chunk in chunks)
        return [
            piece(chunk.text, chunk.tokens * share, span=(chunk.start, chunk.end), **extra)
            for chunk in chunks
        ]
    weight = as_masses([max(tokens, 1) if mass is None else mass], 1)[0]
    return [piece(turn, float(weight), **extra)]


def replacement(
    old: Payload,
    chunk: str | VectorLike,
    *,
    text: str | None,
    mass: float | None,
    metadata: Mapping[str, Any] | None,
    count: CountTokens,
) -> Piece:
    """The piece for another's place; metadata, speaker, time and a vector's mass stay where none is given.

    Raises:
        EmptyInputError: no text.
        InputError: as `pieces_of_turn`.
    """
    kept = old[METADATA] if metadata is None else plain(dict(metadata), "The metadata of the chunk")
    speaker, time = old.get("speaker"), old.get("time")
    if not isinstance(chunk, str):
        before = old["mass"] if "hash" in old else 1.0  # else it is no chunk's payload, but a root's
        weight = as_masses([before if mass is None else mass], 1)[0]
        vector = as_vector(chunk)
        return piece(text, float(weight), vector=vector, metadata=kept, speaker=speaker, time=time)
    if text is not None:
        raise InputError("text= belongs to a chunk that is a vector; this one is its own text.")
    if not chunk.strip():
        raise EmptyInputError("The chunk has no text; call remove() to leave its place empty.")
    tokens = count(f"{speaker}: {chunk}" if speaker else chunk)
    weight = as_masses([max(tokens, 1) if mass is None else mass], 1)[0]
    return piece(chunk, float(weight), metadata=kept, speaker=speaker, time=time)


def piece(
    text: str | None,
    mass: float,
    *,
    vector: Vector | None = None,
    metadata: Payload | None = None,
    span: tuple[int, int] | None = None,
    speaker: str | None = None,
    time: float | str | None = None,
) -> Piece:
    """A piece, its payload begun."""
    embed = None
    if vector is None:
        assert text is not None
        embed = f"{speaker}: {text}" if speaker else text
    source = vector if vector is not None else embed or ""
    payload = {
        "schema": SCHEMA,
        "level": 0,
        TEXT: text,
        METADATA: metadata or {},
        "hash": source_hash(source),
        "mass": mass,
        "start": span[0] if span else None,
        "end": span[1] if span else None,
        "speaker": speaker,
        "time": time,
    }
    return Piece(without_none(payload), embed, vector)


def placed(part: Piece, document_id: str, position: int, norm: float) -> Payload:
    """The payload of a piece at its place in a document."""
    return {**part.payload, "document_id": document_id, "position": position, "norm": float(np.float32(norm))}
