"""What a vector database must offer to hold merged vectors: a dozen operations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from merger_plugins._batching import unit
from merger_plugins._types import Vector
from merger_plugins.errors import StoreError

Shelf = Literal["chunks", "merged"]
"""The user's collection of chunk points, or its companion with sections, roots and settings."""

Payload = dict[str, Any]

Span = Any
"""Some of the points of a collection, in a form of the database's own that can be sent to another process."""

_POINTS_OF_PAGE = 1_000


class _Fields(Payload):
    """A payload that says what to do where a field is asked for that is not there."""

    def __init__(self, fields: Payload, point_id: str) -> None:
        super().__init__(fields)
        self._point_id = point_id

    def __missing__(self, key: str) -> Any:
        name = self.get("document_id")
        of = "" if name is None else f" of {name!r}"
        raise StoreError(
            f"The point {self._point_id}{of} lacks the field {key!r} of its payload. Call repair(), and "
            "ingest again what it names; or delete the document and ingest it again."
        )


@dataclass(frozen=True, eq=False)
class Point:
    """A stored point, or one to be stored.

    Attributes:
        id: a UUID.
        payload: JSON values; asking for a key that is not there raises `StoreError`.
        vector: (d,) unit length; None where there is none, or where it was not asked for.
        contextual: (d,) the contextual chunk vector, unit length; None as for `vector`.
    """

    id: str
    payload: Payload
    vector: Vector | None = None
    contextual: Vector | None = None

    def __post_init__(self) -> None:
        """Let the payload say what it lacks."""
        object.__setattr__(self, "payload", _Fields(self.payload, self.id))


@dataclass(frozen=True, eq=False)
class Scored:
    """A point that a query found, and its cosine with the query."""

    point: Point
    score: float


@dataclass(frozen=True, eq=False)
class Swap:
    """A conditional write of one point of the companion: a root, a claim or the settings.

    Attributes:
        point: what to store; its payload has ``version``, larger than any before, and ``token``, a string
            that no other write ever has.
        expected: the ``version`` that must be stored at this moment; 0 for a point without one; None where
            there must be no such point.
    """

    point: Point
    expected: int | None


@dataclass(frozen=True)
class Where:
    """Which points an operation is about; every condition must hold.

    Attributes:
        match: payload key -> the value it must have.
        documents: ids of documents, of which the point must belong to one; None for any.
        members: ids of chunk points, of which the point's payload key ``chunks`` must list one; None for any.
        filter: the caller's own: metadata key -> value or list of values, or the database's filter object.
    """

    match: Mapping[str, str | int] = field(default_factory=dict)
    documents: Sequence[str] | None = None
    members: Sequence[str] | None = None
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


@dataclass(frozen=True)
class VectorForm:
    """One of the vectors that the points of a collection have.

    Attributes:
        dimension: d.
        distance: how the database compares them, in its own word; None where that is by cosine.
        as_cosine: whether that ranks vectors of unit length as their cosines do.
    """

    dimension: int
    distance: str | None = None
    as_cosine: bool = True


@dataclass(frozen=True)
class ChunkForm:
    """Where chunk points hold what a store reads; the default is the form in which this package writes them.

    Attributes:
        document: payload key of the document's id; dots lead into mappings.
        text: payload key of the text; None where there is none.
        metadata: payload key of the mapping that filters look into; None where that is the payload itself.
        vector: name of the raw vector; None for the one that this package makes.
        contextual: name of the contextual vector; None for the one that this package makes.
        distance: how the database compares them, as `VectorForm`; other than by cosine only where all chunk
            vectors have unit length. `Backend.nearest` answers with cosines all the same, and `Backend.fetch`
            and `Backend.scan` bring such vectors as they are stored.
    """

    document: str = "document_id"
    text: str | None = "page_content"
    metadata: str | None = "metadata"
    vector: str | None = None
    contextual: str | None = None
    distance: str | None = None


class Backend(ABC):
    """One collection and its companion in one database.

    Versions: payloads carry an integer ``version``, below 2**53; a stored point without one has version 0.
    Writes and deletions with `below` skip, without an error, each point whose stored version is larger: a
    writer that fell behind cannot undo what came after it. `swap` is the only write that says whether it
    happened. Each of these decisions is atomic for its point; a call need not be atomic as a whole.
    Calls from several threads must be safe. Where not `exclusive`, it can be pickled, and opens a connection
    of its own in the process that it comes to.

    Every method raises `StoreError` (see `merger_plugins.errors`) where the database fails; nothing of the
    database's own errors comes through. Nothing is opened before the first call.

    Attributes:
        collection: name of the chunk collection.
        form: of the chunk points; the companion's points always have this package's own.
        place: where the database is, for messages.
        exclusive: whether only this process can write here, as into a folder that is locked, or into memory.
            What an operation left unfinished there is nobody's any more.
        queued: whether the threads of this process that write one document wait for each other; without that
            they find out afterwards, as those of different processes do.
    """

    collection: str
    place: str
    form: ChunkForm = ChunkForm()
    queued: bool = True

    @property
    @abstractmethod
    def exclusive(self) -> bool:
        """See above."""

    @property
    def companion(self) -> str:
        """Name of the collection that holds sections and roots."""
        return f"{self.collection}__merged"

    def vectors(self) -> dict[str, VectorForm] | None:
        """The vectors of chunk points that can be merged, by name; None where there is no collection.

        For a database whose points have one vector without a name, this need not be overridden.
        """
        layout = self.layout()
        return None if layout is None else {"": VectorForm(layout.dimension)}

    def has_companion(self) -> bool:
        """Whether the companion exists; to be overridden where `layout` depends on `form`."""
        layout = self.layout()
        return layout is not None and layout.merged

    @abstractmethod
    def layout(self) -> Layout | None:
        """How the chunk collection is laid out; None where there is none.

        Raises:
            StoreError: its vectors are not compared by cosine, or it has no vector for raw chunk vectors.
        """

    @abstractmethod
    def create(self, dimension: int, *, contextual: bool) -> None:
        """Make those of the two collections that are missing.

        A companion whose chunk collection is gone is made anew: nothing in it is true any more.
        """

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
    def write(self, shelf: Shelf, points: Sequence[Point], *, below: int | None = None) -> None:
        """Insert or replace points, in this order, and return once they are stored.

        Args:
            shelf: which collection.
            points: any number of them; none is no request.
            below: leaves a stored point as it is where its version is larger than this. A point that is not
                there is inserted. None replaces whatever is there.
        """

    @abstractmethod
    def swap(
        self, swaps: Sequence[Swap], *, first: Sequence[Point] = (), below: int | None = None
    ) -> list[bool]:
        """Replace points of the companion, each only if its stored version is the expected one.

        Where `expected` is None, the point is inserted only if it is not there; otherwise it is replaced only
        if it is there, and never inserted. Of several writers that expect the same version one succeeds.

        Args:
            swaps: each id once; none is no request.
            first: points of the companion that are written before, as by `write` with `below`; in the same
                request where the database takes both.
            below: for `first`.

        Returns:
            For each swap whether its point is stored now: by its token, read back. False may also mean that
            it was stored, and replaced by yet another writer before it could be read back.
        """

    @abstractmethod
    def delete(self, shelf: Shelf, ids: Sequence[str], *, below: int | None = None) -> None:
        """Remove points, in this order; those that are not there do not matter.

        Args:
            shelf: which collection.
            ids: any number of them; none is no request.
            below: keeps points of a larger version; None removes any.
        """

    @abstractmethod
    def delete_document(self, shelf: Shelf, document_id: str, *, below: int | None = None) -> None:
        """Remove every point of a document, of a version up to `below`; None for any version."""

    def write_contextual(self, points: Sequence[Point]) -> None:  # noqa: ARG002 - for those with room
        """Set the contextual vector of chunk points that are there, and change nothing else of them.

        Raises:
            StoreError: this database has no room for it.
        """
        raise StoreError(
            f"The chunk points in {self.place} have no room for contextual vectors of their own; let them go "
            "into the companion collection."
        )

    @abstractmethod
    def scan(
        self, shelf: Shelf, where: Where, *, payload: bool | list[str] = True, vectors: bool = False
    ) -> Iterator[Point]:
        """Read points page by page, in the order of their ids; arguments as `fetch`."""

    def spans(self, parts: int) -> list[Span]:
        """Spans of chunk points that together hold each point once, about so many, for readers side by side.

        Lists of ids, for a database that cannot say where else to begin.
        """
        ids = [point.id for point in self.scan("chunks", Where(), payload=False)]
        size = max(-(-len(ids) // parts), 1)
        return [ids[start : start + size] for start in range(0, len(ids), size)]

    def scan_span(self, span: Span) -> Iterator[Point]:
        """Read the chunk points of a span, with payloads and vectors, page by page."""
        for start in range(0, len(span), _POINTS_OF_PAGE):
            yield from self.fetch("chunks", span[start : start + _POINTS_OF_PAGE], vectors=True).values()

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

    def scores(self, shelf: Shelf, ids: Sequence[str], query: Vector) -> dict[str, float]:
        """Cosines of points with a query, by id; those that are not there, or have no vector, are left out.

        Args:
            shelf: which collection.
            ids: of the points.
            query: (d,) of any length.
        """
        stored = self.fetch(shelf, ids, payload=False, vectors=True) if ids else {}
        rows = {point_id: point.vector for point_id, point in stored.items() if point.vector is not None}
        if not rows:
            return {}
        cosines = unit(np.stack(list(rows.values()))) @ unit(query[None])[0]
        return dict(zip(rows, cosines.tolist(), strict=True))

    def mend(self) -> None:  # noqa: B027 - for those that a crash harms
        """Make what the database itself cannot read any more readable again, as far as it goes.

        Points may be without their vectors afterwards. `repair` calls it first. Nothing to do for a database
        that no crash harms.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the database."""
