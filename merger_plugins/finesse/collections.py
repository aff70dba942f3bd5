"""Chunked documents with questions, cut into what a rival stores one vector for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from merger_plugins._types import Matrix, Vector
from merger_plugins.errors import DimensionError, EmptyInputError, InputError
from merger_plugins.finesse.embedding import Embeddings, check_apart
from merger_plugins.mergers.base import FANOUT

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

Level = Literal["documents", "sections", "passages"]

_Row = TypeVar("_Row", bound=np.generic)


@dataclass(frozen=True, eq=False)
class Text:
    """The text behind a collection, for rivals that embed it again.

    Attributes:
        documents: of each document, whole.
        spans: (c, 2) where each chunk starts and ends in its document.
        queries: the questions.
        embed: the base embedder, whose vectors are kept.
    """

    documents: tuple[str, ...]
    spans: Ints
    queries: tuple[str, ...]
    embed: Embeddings

    def between(self, document: int, first: int, last: int) -> str:
        """A document's text from one of its chunks to another one, both included."""
        return self.documents[document][self.spans[first, 0] : self.spans[last, 1]]


@dataclass(frozen=True, eq=False, kw_only=True)
class Collection:
    """Chunked documents with questions.

    Attributes:
        name: of the task it belongs to.
        revision: of its data.
        chunks: (c, d) raw chunk vectors of all documents, in reading order.
        document: (c,) the document of each chunk, ascending from 0 without gaps.
        masses: (c,) tokens.
        queries: (q, d) raw query vectors.
        relevant: (q, documents) True where a document answers a question.
        group: (q,) questions of one group are not independent; (None: each by itself).
        passage: (c,) the passage of each chunk, numbered over the whole collection, ascending; None where
            documents have none. A passage may be without chunks.
        relevant_passage: (q,) the passage that answers.
        passages: how many there are, those without chunks included.
        text: None where there are vectors alone.
    """

    name: str
    revision: str
    chunks: Matrix
    document: Ints
    masses: Vector
    queries: Matrix
    relevant: Bools
    group: Ints | None = None
    passage: Ints | None = None
    relevant_passage: Ints | None = None
    passages: int = 0
    text: Text | None = None

    def __post_init__(self) -> None:
        if not len(self.chunks) or not len(self.queries):
            raise EmptyInputError(
                f"The collection {self.name} has {len(self.chunks)} chunks and {len(self.queries)} "
                "questions; both are needed."
            )
        if self.queries.shape[1] != self.chunks.shape[1]:
            raise DimensionError(
                f"The questions of {self.name} have dimension {self.queries.shape[1]}, and its chunks "
                f"{self.chunks.shape[1]}. Embed both with one model."
            )
        if {len(self.document), len(self.masses)} != {len(self.chunks)} or self.relevant.shape != (
            len(self.queries),
            self.documents,
        ):
            raise DimensionError(
                f"The collection {self.name} has {len(self.chunks)} chunks, {len(self.document)} owners, "
                f"{len(self.masses)} masses, {len(self.queries)} questions and relevant of shape "
                f"{self.relevant.shape} for {self.documents} documents; these must agree."
            )
        if len(self.chunks) > 1:
            check_apart(self.chunks, f"The {len(self.chunks)} chunk vectors of {self.name}")

    @property
    def documents(self) -> int:
        """How many documents there are."""
        return int(self.document[-1]) + 1

    @property
    def gold(self) -> Ints:
        """(q,) the first document that answers each question: the only one in sets of one answer each."""
        first: Ints = self.relevant.argmax(axis=1)
        return first

    def sequences(self) -> list[Matrix]:
        """The chunk vectors of each document."""
        return by_group(self.chunks, self.document)

    def sequence_masses(self) -> list[Vector]:
        """The masses of each document's chunks."""
        return by_group(self.masses, self.document)

    def with_chunks(self, chunks: Matrix, document: Ints, masses: Vector) -> Collection:
        """The same documents and questions over other chunks, without text and passages."""
        return replace(
            self,
            chunks=chunks,
            document=document,
            masses=masses,
            passage=None,
            relevant_passage=None,
            passages=0,
            text=None,
        )


@dataclass(frozen=True, eq=False)
class Units:
    """A collection cut into units, for each of which a merger stores one vector.

    Attributes:
        level: their name.
        group: (c,) the unit of each chunk, ascending from 0 without gaps.
        target: (u,) what is found when the unit is found, ascending.
        targets: how many there are; one without units is never found.
        relevant: (q, targets) True where a target answers a question.
    """

    level: Level
    group: Ints
    target: Ints
    targets: int
    relevant: Bools

    @property
    def chunk_target(self) -> Ints:
        """(c,) the target of each chunk."""
        found: Ints = self.target[self.group]
        return found


def units(collection: Collection, level: Level, *, size: int = FANOUT) -> Units:
    """Cut a collection.

    Args:
        collection: what is cut.
        level: ``"documents"``: whole; ``"sections"``: neighbouring chunks, of which the best one finds the
            document; ``"passages"``: as they are in the text, each found by itself.
        size: chunks of a section.

    Raises:
        InputError: an unknown level, or passages of a collection that has none.
    """
    document = collection.document
    if level == "documents":
        whole = np.arange(collection.documents)
        return Units(level, document, whole, collection.documents, collection.relevant)
    if level == "sections":
        position = np.arange(len(document)) - np.searchsorted(document, document)
        group = np.cumsum(position % size == 0) - 1
        target = document[np.flatnonzero(np.diff(group, prepend=-1))]
        return Units(level, group, target, collection.documents, collection.relevant)
    if level != "passages":
        raise InputError(f"{level!r} is no level; choose from {', '.join(get_args(Level))}.")
    if collection.passage is None or collection.relevant_passage is None:
        raise InputError(f"The documents of {collection.name} have no passages; choose another level.")
    target, group = np.unique(collection.passage, return_inverse=True)
    relevant = collection.relevant_passage[:, None] == np.arange(collection.passages)
    return Units(level, group.astype(np.int64), target, collection.passages, relevant)


def unit_texts(collection: Collection, cut: Units) -> Iterator[str]:
    """The text of each unit, white space between its chunks included; a whole document as it stands.

    Raises:
        InputError: the collection has no text.
    """
    if collection.text is None:
        raise InputError(f"The collection {collection.name} has vectors alone, no text.")
    if cut.level == "documents":
        yield from collection.text.documents
        return
    first = np.flatnonzero(np.diff(cut.group, prepend=-1))
    last = np.append(first[1:], len(cut.group)) - 1
    for start, stop in zip(first.tolist(), last.tolist(), strict=True):
        yield collection.text.between(collection.document[start], start, stop)


def by_group(rows: NDArray[_Row], group: NDArray[Any]) -> list[NDArray[_Row]]:
    """Rows split where the ascending group number changes."""
    return np.split(rows, np.flatnonzero(np.diff(group)) + 1)


def best_of_group(scores: Matrix, group: Ints, groups: int) -> Matrix:
    """(q, rows) scores -> (q, groups): the best row of each group; a group without rows gets -inf."""
    best = np.full((len(scores), groups), -np.inf, np.float32)
    starts = np.flatnonzero(np.r_[True, np.diff(group) != 0])
    best[:, group[starts]] = np.maximum.reduceat(scores, starts, axis=1)
    return best


def joined(collections: Sequence[Collection], name: str) -> Collection:
    """The documents of several collections in one, with the questions of the first alone.

    Raises:
        InputError: no collection, or several dimensions.
    """
    if not collections:
        raise EmptyInputError("There is no collection to join.")
    dimensions = {part.chunks.shape[1] for part in collections}
    if len(dimensions) > 1:
        raise DimensionError(f"Collections of dimensions {sorted(dimensions)} cannot be joined.")
    first = collections[0]
    starts = np.cumsum([0, *(part.documents for part in collections)])
    relevant = np.zeros((len(first.queries), int(starts[-1])), np.bool_)
    relevant[:, : first.documents] = first.relevant
    return Collection(
        name=name,
        revision="+".join(part.revision for part in collections),
        chunks=np.concatenate([part.chunks for part in collections]),
        document=np.concatenate(
            [part.document + start for part, start in zip(collections, starts, strict=False)]
        ),
        masses=np.concatenate([part.masses for part in collections]),
        queries=first.queries,
        relevant=relevant,
        group=first.group,
    )
