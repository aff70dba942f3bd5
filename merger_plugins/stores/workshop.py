"""What a back-fill does between reading points and writing merged ones: no database is needed for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from merger_plugins.errors import StoreError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.calibration import CalibrationStatistics, MixedStatistics
from merger_plugins.stores.backend import Backend, Where
from merger_plugins.stores.extracting import UNIT_WITHIN, Extractor, Sheet
from merger_plugins.stores.filling import Left
from merger_plugins.stores.foreign import Edition, Reading
from merger_plugins.stores.gathering import batches, block_of, in_lots, read
from merger_plugins.stores.records import PointIds
from merger_plugins.stores.spool import Gathered, Spool
from merger_plugins.stores.weaving import Weaver, Woven

_FLOATS_OF_SUMS = 16_000_000
"""For the sums of documents while their chunks come mixed: 128 MB, of which only what is used is taken."""


@dataclass(frozen=True)
class Task:
    """What a workshop is set up for.

    Attributes:
        collection: its name, for messages.
        reading: how its points are read.
        dimension: of their vectors.
        scratch: folder for temporary files; the system's for None.
        expected: how many points will come.
        calibrates: whether a calibration is likely to be made of them.
    """

    collection: str
    reading: Reading
    dimension: int
    scratch: str | os.PathLike[str] | None
    expected: int
    calibrates: bool = False


@dataclass(frozen=True)
class Taken:
    """What came in.

    Attributes:
        chunks: how many points belong to a document.
        left: those that do not, by what they lack.
    """

    chunks: int
    left: Left


@dataclass(frozen=True, eq=False)
class Step:
    """What is to be done next, in this order.

    Attributes:
        stale: ids of points of the companion to remove.
        woven: points to write.
        documents: how many documents are done with this step.
        merged: how many of these were merged; the others are as they were.
        chunks: how many chunks they have.
        writes: whether points are being written elsewhere, now and until the next step.
    """

    stale: list[str] = field(default_factory=list)
    woven: Woven | None = None
    documents: int = 0
    merged: int = 0
    chunks: int = 0
    writes: bool = False


class Workplace(Protocol):
    """What a back-fill asks of a workshop, wherever that is; `Workshop` says what the methods do."""

    def close(self) -> None:
        """As `Workshop.close`."""

    def gather(self, backend: Backend, where: Where, progress: Callable[[int], object]) -> None:
        """As `Workshop.gather`."""

    def taken(self) -> Taken:
        """As `Workshop.taken`."""

    def settle(self) -> int:
        """As `Workshop.settle`."""

    def know(self, stored: Sequence[tuple[str, str, int]]) -> None:
        """As `Workshop.know`."""

    def calibrating(self) -> Iterator[int]:
        """As `Workshop.calibrating`."""

    def statistics(self) -> CalibrationStatistics:
        """As `Workshop.statistics`."""

    def merging(self, merger: SequenceMerger, edition: Edition, ids: PointIds) -> Iterator[Step]:
        """As `Workshop.merging`."""

    def gone(self) -> list[str]:
        """As `Workshop.gone`."""

    def sizes(self, documents: Sequence[str]) -> list[int]:
        """As `Workshop.sizes`."""


class Workshop:
    """Takes points in, sorts them by document on disk, calibrates and merges.

    Raises:
        InputError: the folder for temporary files is missing, or cannot be written.
        StoreFullError: there is not enough room in it.
    """

    def __init__(self, task: Task) -> None:
        self.left = Left()
        self._task = task
        self._extractor = Extractor(task.reading, self.left)
        self._statistics = CalibrationStatistics(task.dimension)
        most = _FLOATS_OF_SUMS // task.dimension if task.calibrates else 0
        self._mixed = MixedStatistics(task.dimension, min(most, task.expected))
        self.spool = Spool(
            task.dimension, len(task.reading.order_by), folder=task.scratch, expected=task.expected
        )

    def close(self) -> None:
        """Remove the temporary files."""
        self.spool.close()

    def gather(self, backend: Backend, where: Where, progress: Callable[[int], object]) -> None:
        """Read chunk points and take them in; raises as `gathering.read` and `take`."""
        read(backend, where, self._task.dimension, self.take, progress)

    def take(self, sheet: Sheet) -> None:
        """Take points in, in whatever order they come.

        Raises:
            StoreError: lengths other than 1 in a collection that does not compare by cosine.
            StoreFullError: no room is left.
        """
        page = self._extractor.page(sheet)
        self.spool.add(page)
        self._mixed.add(page.vectors, page.documents)
        refuse_lengths(self._task, self._extractor.shortest, self._extractor.longest)

    def taken(self) -> Taken:
        """What came in so far."""
        return Taken(self.spool.chunks, self.left)

    def settle(self) -> int:
        """Decide the order of chunks, once all are in; returns how many points tie.

        Raises:
            InputError: as `Spool.settle`.
        """
        return self.spool.settle(self._task.reading.order_by)

    def know(self, stored: Sequence[tuple[str, str, int]]) -> None:
        """Take in what is merged already: document, content and number of chunks of each."""
        self.spool.know(stored)

    def calibrating(self) -> Iterator[int]:
        """Gather the statistics of all chunks; how many are done, each time that some are.

        All were gathered as they came, unless there are too many documents for that.
        """
        if self._mixed.whole and self._mixed.vectors:
            self._statistics = self._mixed.statistics()
            yield self.spool.chunks
            return
        done = 0
        for batch in batches(self.spool.rows(), self.spool.dimension):
            for part in _parts(batch, self.spool.dimension):
                rows = [row for own in part for row in own]
                self._statistics.update_many(self.spool.vectors(rows), [len(own) for own in part])
                done += len(rows)
            yield done

    def statistics(self) -> CalibrationStatistics:
        """What `calibrating` gathered."""
        return self._statistics

    def merging(self, merger: SequenceMerger, edition: Edition, ids: PointIds) -> Iterator[Step]:
        """Merge what is not merged yet, document by document.

        Raises:
            ZeroVectorError: chunks of a document cancel out.
        """
        spool = self.spool
        weaver = Weaver(merger, edition, ids, spool.vectors, block=block_of(spool.dimension))
        for batch in batches(spool.documents(), spool.dimension):
            changed: list[Gathered] = []
            stale: list[str] = []
            for document in batch:
                same, before = spool.is_known(document)
                if not same:
                    changed.append(document)
                    stale += weaver.stale(len(document), document.name, before)
            spool.note(batch)
            if stale:
                yield Step(stale)
            for woven in weaver.weave(changed) if changed else ():
                yield Step(woven=woven)
            yield Step(documents=len(batch), merged=len(changed), chunks=sum(map(len, batch)))

    def gone(self) -> list[str]:
        """Documents that are known and have no chunk any more."""
        return list(self.spool.gone())

    def sizes(self, documents: Sequence[str]) -> list[int]:
        """How many chunks documents have, once `merging` is through; 0 where there is no such document."""
        return [self.spool.size_of(document) for document in documents]


def refuse_lengths(task: Task, shortest: float, longest: float) -> None:
    """Make sure that vectors of these lengths can be compared by cosine.

    Raises:
        StoreError: the collection compares in another way, and not all lengths are 1.
    """
    if task.reading.distance is not None and (shortest < 1 - UNIT_WITHIN or longest > 1 + UNIT_WITHIN):
        raise StoreError(
            f"The chunk vectors of {task.collection!r} are compared by {task.reading.distance}, and have "
            f"lengths from {shortest:.4g} to {longest:.4g}. Merged vectors are compared by cosine, which "
            "ranks the same way only where all have length 1. Copy the collection into one with cosine "
            "distance, or write unit vectors into it."
        )


def _parts(batch: list[list[int]], dimension: int) -> Iterator[list[list[int]]]:
    """A batch of documents' rows; a document that is longer than a block comes in parts."""
    block = block_of(dimension)
    if len(batch) > 1 or len(batch[0]) <= block:
        yield batch
        return
    for rows in in_lots(batch[0], block):
        yield [rows]
