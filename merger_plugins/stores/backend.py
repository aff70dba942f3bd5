"""What a vector database must offer to hold merged vectors: a dozen plain operations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from merger_plugins._types import Vector

Shelf = Literal["chunks", "merged"]
"""The user's collection of chunk points, or its companion with sections, roots and settings."""

Payload = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Point:
    """A stored point, or one to be stored.

    Attributes:
        id: a UUID.
        payload: JSON values.
        vector: (d,) unit length; None where there is none, or where it was not asked for.
        contextual: (d,) the contextual chunk vector, unit length; None as for `vector`.
    """

    id: str
    payload: Payload
    vector: Vector | None = None
    contextual: Vector | None = None


@dataclass(frozen=True, eq=False)
class Scored:
    """A point that a query found, and its cosine with the query."""

    point: Point
    score: float


@dataclass(frozen=True)
class Where:
    """Which points an operation is about; every condition must hold.

    Attributes:
        match: payload key -> the value it must have.
        documents: ids of documents, of which the point must belong to one; None for any.
        filter: the caller's own: metadata key -> value or list of values, or the database's filter object.
    """

    match: Mapping[str, str | int] = field(default_factory=dict)
    documents: Sequence[str] | None = None
    filter: Any = None


@dataclass(frozen=True)
class Layout:
    """How a collection that exists is laid out.

    Attributes:
        dimension: d.
        contextual: whether its points have room for a contextual vector.
        merged: whether the companion exists too.
    """

    dimension: int
    contextual: bool
    merged: bool


class Backend(ABC):
    """One collection and its companion in one database.

    Every method raises `StoreError` (see `merger_plugins.errors`) where the database fails; nothing of the
    database's own errors comes through. Nothing is opened before the first call.

    Attributes:
        collection: name of the chunk collection.
        place: where the database is, for messages.
    """

    collection: str
    place: str

    @property
    def companion(self) -> str:
        """Name of the collection that holds sections and roots."""
        return f"{self.collection}__merged"

    @abstractmethod
    def layout(self) -> Layout | None:
        """How the chunk collection is laid out; None where there is none.

        Raises:
            StoreError: its vectors are not compared by cosine, or it has no vector for raw chunk vectors.
        """

    @abstractmethod
    def create(self, dimension: int, *, contextual: bool) -> None:
        """Make those of the two collections that are missing."""

    @abstractmethod
    def fetch(
        self, shelf: Shelf, ids: Sequence[str], *, payload: bool | list[str] = True, vectors: bool = False
    ) -> dict[str, Point]:
        """Points by id; those that are not there are left out.

        Args:
            shelf: which collection.
            ids: any number of them.
            payload: all of it, none, or these keys.
            vectors: whether to bring the vectors.
        """

    @abstractmethod
    def write(self, shelf: Shelf, points: Sequence[Point]) -> None:
        """Insert or replace points, in this order, and return once they are stored."""

    @abstractmethod
    def patch(self, shelf: Shelf, ids: Sequence[str], payload: Payload) -> None:
        """Set these payload keys of points, and leave the others."""

    @abstractmethod
    def delete(self, shelf: Shelf, ids: Sequence[str]) -> None:
        """Remove points, in this order; those that are not there do not matter."""

    @abstractmethod
    def delete_document(self, shelf: Shelf, document_id: str) -> None:
        """Remove every point of a document."""

    @abstractmethod
    def scan(self, shelf: Shelf, where: Where, *, payload: bool | list[str] = True) -> Iterator[Point]:
        """Read points page by page, in the order of their ids."""

    @abstractmethod
    def count(self, shelf: Shelf, where: Where) -> int:
        """How many points there are."""

    @abstractmethod
    def nearest(
        self,
        shelf: Shelf,
        query: Vector,
        limit: int,
        where: Where,
        *,
        contextual: bool = False,
        per_document: bool = False,
        exact: bool = False,
        payload: bool | list[str] = True,
    ) -> list[Scored]:
        """The points with the largest cosine, best first.

        Args:
            shelf: which collection.
            query: (d,) of any length.
            limit: how many at the most.
            where: among which points.
            contextual: whether to compare with the contextual vectors.
            per_document: whether only the best point of each document counts.
            exact: whether to go past the index, which may overlook a point.
            payload: as `fetch`.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the database."""
