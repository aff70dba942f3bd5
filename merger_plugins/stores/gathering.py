"""The points of a collection that another application wrote, read into a spool, and how they were merged."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from threading import Lock
from typing import TypeVar

from merger_plugins.errors import InputError, StoreError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.calibrated import CalibratedMerger
from merger_plugins.stores.backend import Backend, VectorForm, Where
from merger_plugins.stores.chunks import ForeignChunks
from merger_plugins.stores.extracting import Sheet
from merger_plugins.stores.filling import Order
from merger_plugins.stores.foreign import Edition, Foreign
from merger_plugins.stores.records import META_ID
from merger_plugins.stores.settings import Settings, resolved
from merger_plugins.stores.spool import Gathered

T = TypeVar("T")
S = TypeVar("S", Gathered, list[int])

_PAGE = 1_000
_FLOATS_AT_ONCE = 1_000_000
_PAGES_OF_BLOCK = 6
"""So that a page waits in the pipe to another process, and its reader goes on."""

_GARBAGE = 100_000
"""How many new objects wait to be looked at, while vectors are read or written."""

_collecting = Lock()
_usual: list[tuple[int, int, int]] = []
"""The thresholds to go back to, once for everybody who asked for others."""


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
    dimension: int,
    take: Callable[[Sheet], object],
    progress: Callable[[int], object],
) -> None:
    """Read chunk points.

    Args:
        backend: the database.
        where: which points.
        dimension: of their vectors.
        take: is given them, page by page.
        progress: called with the number of points after each page.

    Raises:
        StoreError: the database fails, or `take` says so.
    """
    points = backend.scan("chunks", where, vectors=True)
    done = 0
    with seldom_collected():
        for page in in_lots(points, max(1, min(_PAGE, _FLOATS_AT_ONCE // (_PAGES_OF_BLOCK * dimension)))):
            take(Sheet.of(page, dimension))
            done += len(page)
            progress(done)


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Let Python look for garbage that refers to itself less often meanwhile.

    Clients take and give vectors as lists. A page of them sets off a dozen collections, each of which walks
    through every number of every list: a quarter of the time of reading. Whoever turned it off finds it off.
    """
    with _collecting:
        _usual.append(gc.get_threshold())
        if 0 < _usual[0][0] < _GARBAGE:
            gc.set_threshold(_GARBAGE, *_usual[0][1:])
    try:
        yield
    finally:
        with _collecting:
            usual = _usual[0]
            _usual.pop()
            if not _usual:
                gc.set_threshold(*usual)


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
