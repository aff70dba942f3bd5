"""Back-fill: merged vectors over a collection that another application wrote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from copy import copy
from dataclasses import replace
from itertools import islice
from uuid import UUID

from merger_plugins.errors import FingerprintError, StoreError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.calibrated import CalibratedMerger
from merger_plugins.stores.aside import workshop_for
from merger_plugins.stores.backend import Backend, Where
from merger_plugins.stores.filling import GROWTH, Backfilled, Order
from merger_plugins.stores.foreign import CONTEXTUAL_KIND, Edition, Foreign, Reading
from merger_plugins.stores.gathering import (
    base_of,
    can_filter,
    in_lots,
    merger_of,
    opened,
    seldom_collected,
)
from merger_plugins.stores.holding import Hold
from merger_plugins.stores.layouts import recognised
from merger_plugins.stores.records import PointIds, namespace_of
from merger_plugins.stores.settings import Settings, drop_statistics, write_statistics
from merger_plugins.stores.weaving import Woven, write_woven
from merger_plugins.stores.workshop import Task, Workplace

_SAMPLE = 1_000
_DELETED_AT_ONCE = 1_000
_KNOWN_AT_ONCE = 1_000


def backfill(backend: Backend, order: Order) -> Backfilled:
    """Add section and root vectors over a collection that another application wrote.

    Reads every point once, with its vector. Vectors go through a temporary file, so that memory stays
    bounded. Writes into the companion alone, but for contextual vectors where a named vector was asked for.

    Raises:
        InputError: something has to be said, or is wrong; see `recognised`.
        FingerprintError: another merger, and `anew` is off.
        ConflictError: another back-fill is at work, or wrote meanwhile.
        StoreError: no such collection, one that this package wrote, points that lack something; or the
            database fails: what was written stays, and a repeat goes on from there.
    """
    # A copy, as other threads may use this backend, whose form changes while a collection is read anew.
    return _Run(copy(backend), order).run()


class _Run:
    def __init__(self, backend: Backend, order: Order) -> None:
        self.backend = backend
        self.order = order
        self.vectors, settings, self.foreign = opened(backend)
        self._hold = Hold(backend, settings)
        self._where = Where()
        self._sweeps = False
        self._damaged = False
        self._fanout = 0

    def run(self) -> Backfilled:
        """All of it; see `backfill`."""
        with self._hold:
            return self._run()

    def _run(self) -> Backfilled:
        order, backend = self.order, self.backend
        reading = self._reading()
        dimension = self.vectors[reading.vector].dimension
        backend.form = reading.form
        backend.layout()
        self._fits(dimension)
        base = base_of(backend, order, dimension)
        self._where = where = self._some(reading, base)
        expected = backend.count("chunks", where)
        new = self.foreign is None or order.anew or order.calibrate is True
        calibrates = new and self._is_calibrated(base)
        task = Task(backend.collection, reading, dimension, order.scratch, expected, calibrates)
        mergers = (base, *order.others, *order.known)
        with closing(self._workplace(task, mergers)) as workshop:
            workshop.gather(backend, where, lambda done: order.report("reading", done, expected))
            taken = workshop.taken()
            if taken.left.counts and not order.skip_missing:
                raise StoreError(
                    f"Of {expected:,} points in {backend.collection!r} some cannot be merged: {taken.left}. "
                    "Pass skip_missing=True (--skip-missing) to leave them out, or name other fields."
                )
            if not taken.chunks and where.documents is None:
                raise StoreError(f"The collection {backend.collection!r} has no points that can be merged.")
            ties = workshop.settle()
            edition, merger = self._edition(workshop, taken.chunks, reading, base)
            self._fanout = merger.fanout
            self._begin(edition, dimension)
            with seldom_collected():
                documents, merged, removed = self._merge(workshop, taken.chunks, edition, merger)
            self._finish(workshop, edition)
            return Backfilled(
                collection=backend.collection,
                layout=reading.layout,
                group_by=reading.group_by,
                order_by=reading.order_by,
                vector=reading.vector,
                chunks=taken.chunks,
                documents=documents,
                merged=merged,
                removed=removed,
                left_out=taken.left.counts,
                ties=ties,
                calibration_vectors=edition.calibration_vectors,
                fingerprint=edition.fingerprint,
            )

    def _workplace(self, task: Task, mergers: Sequence[SequenceMerger]) -> Workplace:
        if self.order.engine is not None:
            return self.order.engine.workplace(task, self.backend)
        return workshop_for(task, mergers, one_process=self.order.one_process)

    # -- reading ---------------------------------------------------------------------------------------

    def _reading(self) -> Reading:
        stored: Reading | None = None
        if self.foreign is not None:
            begun = None if self.order.anew else self.foreign.pending
            stored = (begun or self.foreign.edition).reading
        if stored is not None and self.order.wanted.agrees(stored):
            return stored
        if stored is not None and not self.order.anew:
            raise StoreError(
                f"The collection {self.backend.collection!r} was back-filled {stored.described()}, and this "
                "call says otherwise. Leave these options out to go on with that, or pass anew=True (--anew) "
                "to make all merged vectors again; searches answer from the old ones until it is done."
            )
        sample = [p.payload for p in islice(self.backend.scan("chunks", Where()), _SAMPLE)]
        if not sample:
            raise StoreError(f"The collection {self.backend.collection!r} has no points.")
        return recognised(sample, self.vectors, self.order.wanted)

    def _some(self, reading: Reading, base: SequenceMerger) -> Where:
        """The documents that were asked for, if they can be merged by themselves; else all."""
        names, foreign, settings = self.order.documents, self.foreign, self._hold.settings
        if (
            names is None
            or settings is None
            or foreign is None
            or foreign.current is None
            or foreign.pending is not None
        ):
            return Where()
        edition = foreign.current
        if edition.reading != reading or self._merger_of(edition, base) is None:
            return Where()
        if self._outgrown(edition, self.backend.count("chunks", Where())):
            return Where()
        return Where(documents=names) if can_filter(self.backend, edition, settings, names) else Where()

    def _fits(self, dimension: int) -> None:
        """Refuse a companion that an earlier collection of this name left."""
        if self.foreign is None:
            return
        roots = self.backend.scan("merged", Where({"kind": "root"}), payload=False, vectors=True)
        root = next(iter(roots), None)
        if root is not None and root.vector is not None and root.vector.size != dimension:
            raise StoreError(
                f"The collection {self.backend.collection!r} has dimension {dimension}, and its companion "
                f"{self.backend.companion!r} has {root.vector.size}: it belongs to an earlier collection of "
                "that name. Delete the companion, and repeat the call."
            )

    # -- the edition -----------------------------------------------------------------------------------

    def _edition(
        self, workshop: Workplace, chunks: int, reading: Reading, base: SequenceMerger
    ) -> tuple[Edition, SequenceMerger]:
        """What to work on, and its merger: the one that is there, unless something calls for another."""
        foreign = self.foreign or Foreign()
        for stored in (foreign.pending, foreign.current):
            if stored is None or stored.reading != reading:
                continue
            merger = self._merger_of(stored, base)
            if merger is None and not self.order.anew:
                given = "none was passed in" if self.order.others else f"{base!r} is {base.fingerprint}"
                raise FingerprintError(
                    f"{self.backend.collection!r} was back-filled with the merger {stored.fingerprint}, and "
                    f"{given}. Pass the merger it was made with, or anew=True (--anew) to make all merged "
                    "vectors again; searches answer from the old ones until it is done."
                )
            if merger is None or (self.order.calibrate is False and stored.calibration_vectors):
                continue
            partly = self._where.documents is not None
            if stored is foreign.pending or partly or not self._outgrown(stored, chunks):
                return stored, merger
        return self._new_edition(workshop, chunks, reading, base)

    def _merger_of(self, edition: Edition, base: SequenceMerger) -> SequenceMerger | None:
        """The merger that made an edition; None where its calibration is damaged, and `anew` is on."""
        assert self._hold.settings is not None
        dimension = self.vectors[edition.reading.vector].dimension
        try:
            return merger_of(self.backend, self._hold.settings, edition, self.order, base, dimension)
        except StoreError as error:
            if type(error) is not StoreError or not self.order.anew:
                raise
            self._damaged = True
            return None

    def _outgrown(self, edition: Edition, chunks: int) -> bool:
        """Whether an edition's calibration is to be made again."""
        if self.order.keep:
            return False
        if self.order.calibrate is None:
            seen = edition.calibration_vectors
            return bool(seen) and chunks >= GROWTH * seen
        return self.order.calibrate

    def _is_calibrated(self, base: SequenceMerger) -> bool:
        """Whether a new edition of this merger is calibrated on the collection."""
        if self.order.calibrate is None:
            return isinstance(base, CalibratedMerger) and base.statistics is None
        return self.order.calibrate

    def _new_edition(
        self, workshop: Workplace, chunks: int, reading: Reading, base: SequenceMerger
    ) -> tuple[Edition, SequenceMerger]:
        if not self._is_calibrated(base):
            return Edition(reading.edition(base.fingerprint), reading, base.fingerprint), base
        for done in workshop.calibrating():
            self.order.report("calibrating", done, chunks)
        statistics = workshop.statistics()
        merger = base.calibrated(statistics)
        edition = Edition(reading.edition(merger.fingerprint), reading, merger.fingerprint)
        current = self.foreign.current if self.foreign else None
        if current is not None and edition.name == current.name and not self._damaged:
            return current, merger  # the collection is as it was
        self.backend.create(statistics.dimension, contextual=False)
        own = PointIds(UUID(self._namespace()))
        pieces = write_statistics(statistics, merger.fingerprint, own, self.backend)
        return replace(edition, pieces=pieces, calibration_vectors=statistics.vectors), merger

    # -- writing ---------------------------------------------------------------------------------------

    def _namespace(self) -> str:
        stored = self._hold.settings
        return stored.namespace if stored else str(namespace_of(self.backend.collection))

    def _begin(self, edition: Edition, dimension: int) -> None:
        """Say what is being made, before the first point of it."""
        self.backend.create(dimension, contextual=False)
        foreign = self.foreign or Foreign()
        self._sweeps = foreign.pending is not None or foreign.current not in (None, edition)
        if edition not in (foreign.current, foreign.pending):
            self._save(Foreign(foreign.current, edition))

    def _before_writing(self, edition: Edition) -> None:
        """Hold the merged vectors; where what is searched changes, leave a note until all of it has."""
        if self.foreign is not None and self.foreign.pending is None:
            self._save(Foreign(edition, edition))
        else:
            self._hold.beat()

    def _finish(self, workshop: Workplace, edition: Edition) -> None:
        """Let searches answer from what was made, then drop what they answered from before."""
        if self.foreign is None or self.foreign == Foreign(edition, None):
            return
        if self.foreign.current != edition or self.foreign.pending != edition or not self._hold.held:
            self._save(Foreign(edition, edition))
        if self._sweeps:
            self._sweep(workshop, edition)
            drop_statistics(self.backend, keep=edition.fingerprint if edition.pieces else None)
        self._save(Foreign(edition, None), held=False)

    def _sweep(self, workshop: Workplace, edition: Edition) -> None:
        """Remove other editions, and what an interrupted call left of this one."""
        keys = ["edition", "document_id", "position"]
        points = (
            point
            for kind in ("root", "section", CONTEXTUAL_KIND)
            for point in self.backend.scan("merged", Where({"kind": kind}), payload=keys)
        )
        stale: list[str] = []
        for some in in_lots(points, _KNOWN_AT_ONCE):
            sizes = workshop.sizes([point.payload["document_id"] for point in some])
            stale += [
                point.id
                for point, size in zip(some, sizes, strict=True)
                if point.payload.get("edition") != edition.name or point.payload["position"] >= size
            ]
        for ids in in_lots(stale, _DELETED_AT_ONCE):
            self._hold.beat()
            self.backend.delete("merged", ids)

    def _save(self, foreign: Foreign, *, held: bool = True) -> None:
        edition = foreign.edition
        settings = Settings(
            namespace=self._namespace(),
            fingerprint=edition.fingerprint,
            fanout=self._fanout,
            contextual=edition.reading.contextual != "none",
            pieces=edition.pieces,
            calibration_vectors=edition.calibration_vectors,
            foreign=foreign.values(),
        )
        self._hold.save(settings, held=held)
        self.foreign = foreign

    def _merge(
        self, workshop: Workplace, chunks: int, edition: Edition, merger: SequenceMerger
    ) -> tuple[int, int, int]:
        """Merge what is not merged yet; returns how many documents there are, were merged, and are gone."""
        for stored in in_lots(_stored(self.backend, edition, self._where.documents), _KNOWN_AT_ONCE):
            workshop.know(stored)
        documents = merged = done = 0
        for step in workshop.merging(merger, edition, edition.ids(self._namespace())):
            if step.stale or step.writes or step.woven is not None:
                self._before_writing(edition)
            if step.stale:
                self.backend.delete("merged", step.stale)
            if step.woven is not None:
                self._write(step.woven, edition)
            if step.documents:
                documents += step.documents
                merged += step.merged
                done += step.chunks
                self.order.report("merging", done, chunks)
        gone = workshop.gone()
        for name in gone:
            self._before_writing(edition)
            self.backend.delete_document("merged", name)
        return documents, merged, len(gone)

    def _write(self, woven: Woven, edition: Edition) -> None:
        self._hold.beat()
        write_woven(self.backend, woven, edition)


def _stored(
    backend: Backend, edition: Edition, documents: Sequence[str] | None
) -> Iterator[tuple[str, str, int]]:
    where = Where({"kind": "root", "edition": edition.name}, documents=documents)
    for root in backend.scan("merged", where, payload=["document_id", "content", "stop"]):
        yield root.payload["document_id"], root.payload["content"], root.payload["stop"]
