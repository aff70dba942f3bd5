"""The points of a collection that another application wrote, read into a spool, and how they were merged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TypeVar

from merger_plugins.errors import InputError, StoreError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.calibrated import CalibratedMerger
from merger_plugins.stores.backend import Backend, VectorForm, Where
from merger_plugins.stores.chunks import ForeignChunks
from merger_plugins.stores.extracting import Extractor
from merger_plugins.stores.filling import Left, Order
from merger_plugins.stores.foreign import Edition, Foreign, Reading
from merger_plugins.stores.records import META_ID
from merger_plugins.stores.settings import Settings, resolved
from merger_plugins.stores.spool import Gathered, Spool

T = TypeVar("T")
S = TypeVar("S", Gathered, list[int])

_PAGE = 1_000
_FLOATS_AT_ONCE = 1_000_000


def opened(backend: Backend) -> tuple[dict[str, VectorForm], Settings | None, Foreign | None]:
    """What is there.

    Raises:
        StoreError: there is no such collection, or this package wrote it.
    """
    vectors = backend.vectors()
    if vectors is None:
        raise StoreError(
            f"There is no collection {backend.collection!r} in {backend.place}. Name one that exists."
        )
    stored = backend.fetch("merged", [META_ID]) if backend.has_companion() else {}
    if not stored:
        return vectors, None, None
    settings = Settings.of(stored[META_ID])
    foreign = Foreign.of(settings.foreign, backend.place)
    if foreign is not None:
        foreign = replace(foreign, holder=None)
    if foreign is None:
        raise StoreError(
            f"The collection {backend.collection!r} was written by this package, which keeps its merged "
            "vectors up to date itself. Back-filling is for collections that another application wrote; to "
            "make the merged vectors again, call rebuild()."
        )
    return vectors, settings, foreign


def can_filter(backend: Backend, edition: Edition, settings: Settings, names: Sequence[str]) -> bool:
    """Whether the database finds the chunks of documents by their names, which JSON text may hide."""
    ids, reading = edition.ids(settings.namespace), edition.reading
    unseen = [name for name in names if not backend.count("chunks", Where(documents=[name]))]
    if not unseen:
        return True
    for point in islice(backend.scan("chunks", Where()), 1):
        name = reading.document_of(point.payload)
        if name is not None and not backend.count("chunks", Where(documents=[name])):
            return False
    chunks = ForeignChunks(backend, edition, ids, settings.fanout)
    known = backend.fetch("merged", [ids.root(name) for name in unseen], payload=["document_id"])
    return not any(
        reading.document_of(point.payload) == root.payload.get("document_id")
        for root in known.values()
        for point in chunks.of(root.payload.get("document_id", ""))
    )


def base_of(backend: Backend, order: Order, dimension: int) -> SequenceMerger:
    """The merger that a back-fill starts from.

    Raises:
        InputError: it works in another dimension.
    """
    base = order.base
    if base is None:
        return CalibratedMerger(dimension=dimension)
    if base.dimension not in (None, dimension):
        raise InputError(
            f"The collection {backend.collection!r} has dimension {dimension}, and {base!r} works "
            f"in dimension {base.dimension}. Pass a merger for the embedding model that made the "
            "collection, or none."
        )
    return base


def merger_of(
    backend: Backend, settings: Settings, edition: Edition, order: Order, base: SequenceMerger, dimension: int
) -> SequenceMerger | None:
    """The merger that made an edition, if it comes from this base or one of the others.

    Raises:
        StoreError: the stored calibration is damaged.
    """
    for known in (base, *order.known):
        if known.fingerprint == edition.fingerprint:
            return known
    settings = replace(settings, fingerprint=edition.fingerprint, pieces=edition.pieces)
    candidates = [base, *order.others]
    if order.others:  # a run that knew less of the embedding model may have made it
        candidates.append(CalibratedMerger(dimension=dimension))
    for candidate in candidates:
        merger = resolved(settings, candidate, backend)
        if merger.fingerprint == edition.fingerprint:
            return merger
    return None


def read(
    backend: Backend,
    where: Where,
    reading: Reading,
    spool: Spool,
    left: Left,
    progress: Callable[[int], object],
) -> None:
    """Read points into a spool.

    Args:
        backend: the database.
        where: which points.
        reading: how they are read.
        spool: takes them.
        left: takes those that lack something.
        progress: called with the number of points after each page.

    Raises:
        StoreError: lengths other than 1 in a collection that does not compare by cosine; the database fails.
    """
    points = backend.scan("chunks", where, vectors=True)
    extractor = Extractor(reading, spool.dimension, left)
    done = 0
    for page in in_lots(points, max(1, min(_PAGE, _FLOATS_AT_ONCE // spool.dimension))):
        spool.add(extractor.page(page))
        if reading.distance is not None and not extractor.unit:
            raise StoreError(
                f"The chunk vectors of {backend.collection!r} are compared by {reading.distance}, "
                f"and have lengths from {extractor.shortest:.4g} to {extractor.longest:.4g}. Merged "
                "vectors are compared by cosine, which ranks the same way only where all have length 1. "
                "Copy the collection into one with cosine distance, or write unit vectors into it."
            )
        done += len(page)
        progress(done)


def in_lots(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """So many at a time."""
    iterator = iter(items)
    while lot := list(islice(iterator, size)):
        yield lot


def block_of(dimension: int) -> int:
    """How many vectors to hold in memory at once."""
    return max(_FLOATS_AT_ONCE // dimension, 64)


def batches(documents: Iterator[S], dimension: int) -> Iterator[list[S]]:
    """Documents that have about a block of chunks together."""
    batch: list[S] = []
    waiting = 0
    for document in documents:
        if batch and waiting + len(document) > block_of(dimension):
            yield batch
            batch, waiting = [], 0
        batch.append(document)
        waiting += len(document)
    if batch:
        yield batch
