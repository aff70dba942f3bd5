"""How the merged vectors of a store are replaced by those of another merger, while it is in use.

Sections and roots belong to an edition, which their ids and payloads name. Those of the new one are made
beside the old ones, which searches answer from and writers keep up to date, until few documents differ. Then
writers are stopped: every old root gets a new version, so that whoever was about to replace it loses, and
what changed last is made in the new edition. One change of the settings lets it take over. Whatever
interrupts this, the settings name one complete edition, and repeating the call makes another and removes
what was left.

A chunk point has one contextual vector, of one merger. From the moment that writers are stopped until those
of the new merger are all there, document by document, raw chunk vectors are searched in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from merger_plugins.errors import ConflictError, StoreError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.calibration import CalibrationStatistics
from merger_plugins.stores.backend import Point, Swap, Where
from merger_plugins.stores.changes import Change, claim, finish_deletion, is_claim, is_deletion, planned
from merger_plugins.stores.commits import (
    ABANDONED,
    MOMENT,
    Tries,
    alone,
    next_version,
    sealed,
    stamped,
    version_of,
)
from merger_plugins.stores.desk import Desk
from merger_plugins.stores.planning import Plan
from merger_plugins.stores.records import META_ID
from merger_plugins.stores.settings import EditionError, Settings, calibrations, write_statistics
from merger_plugins.stores.upkeep import ROOTS_AT_ONCE, batches, derive, remake, steady_chunks

Adopt = Callable[[Settings, SequenceMerger], None]
"""Told of the settings after each change of what is searched, with the merger that belongs to them."""

_FEW = 32
"""Documents that may differ between the editions when writers are stopped."""

_PASSES = 20
_DELETED_AT_ONCE = 1_000


def take_over(
    desk: Desk, merger: SequenceMerger, statistics: CalibrationStatistics | None, adopt: Adopt
) -> None:
    """Derive every merged vector again with this merger, and let it work from now on.

    With the merger that made the store, everything is made again in place, one document after another.

    Args:
        desk: the store, as it is.
        merger: takes over.
        statistics: what it was calibrated with just now; None where it was not.
        adopt: see there.

    Raises:
        StoreError: the database fails, or a chunk is missing.
        ConflictError: another `take_over` began after this one, or writers were faster for too long.
    """
    rebuild = _Rebuild(desk, merger, adopt)
    if rebuild.settings.fingerprint == merger.fingerprint and rebuild.settings.fanout == merger.fanout:
        rebuild.in_place(derives=statistics is None)
    else:
        rebuild.beside(statistics)
    rebuild.finish()


class _SupersededError(ConflictError):
    """Somebody else changed the settings meanwhile."""


@dataclass(frozen=True)
class _Made:
    """What the new edition has of a document: made from this version of its root, with this many places."""

    version: int
    places: int


class _Rebuild:
    """One attempt to make and install an edition.

    Args:
        desk: the store, as it is.
        merger: takes over.
        adopt: as `take_over`.
    """

    def __init__(self, desk: Desk, merger: SequenceMerger, adopt: Adopt) -> None:
        self.backend = desk.backend
        self._adopt = adopt
        self.settings = Settings.of(self.backend.fetch("merged", [META_ID])[META_ID])
        self._old = replace(desk, ids=self.settings.ids)
        self._new = replace(self._old, merger=merger)
        self._made: dict[str, _Made] = {}
        self._sealed: dict[str, int] = {}

    def in_place(self, *, derives: bool) -> None:
        """Make everything again where it is; nothing but what was interrupted where `derives` is off."""
        settings = replace(self.settings, rebuilding=None, switching=False)
        if self.settings.rebuilding is not None or self.settings.switching:
            settings = replace(settings, leftovers=True)
        if settings != self.settings:
            self._save(settings)
        if derives:
            derive(self._new)

    def beside(self, statistics: CalibrationStatistics | None) -> None:
        """Make the new edition and let it take over."""
        merger, before = self._new.merger, self.settings
        begun = before.begun + 1
        edition = str(begun)
        self._new = replace(self._new, ids=replace(before.ids, edition=edition))
        self._save(replace(before, rebuilding=edition, begun=begun, switching=False, leftovers=True))
        after = replace(
            self.settings,
            fingerprint=merger.fingerprint,
            fanout=merger.fanout,
            edition=edition,
            rebuilding=None,
        )
        if statistics is not None:
            pieces = write_statistics(statistics, merger.fingerprint, before.ids, self.backend)
            after = replace(after, pieces=pieces, calibration_vectors=statistics.vectors)
        else:
            after = replace(after, pieces=0, calibration_vectors=0)
        for _ in range(_PASSES):
            if self._catch_up() <= _FEW:
                break
        context = (before.context or before.fingerprint) if before.contextual else None
        self._save(replace(self.settings, switching=True, context=context))
        self._seal()
        self._save(replace(after, switching=False, leftovers=True, context=context))
        self._adopt(self.settings, merger)

    def finish(self) -> None:
        """Do what is left to do once an edition has taken over, unless somebody is replacing that again."""
        try:
            self._finish()
        except (EditionError, _SupersededError):
            return

    def _finish(self) -> None:
        self._new = replace(self._new, ids=self.settings.ids)
        self._adopt(self.settings, self._new.merger)
        if self.settings.context is not None:
            self._put_in_context()
            self._save(replace(self.settings, context=None))
            self._adopt(self.settings, self._new.merger)
        self._sweep()  # also of what a writer left that was late when the last edition went
        if self.settings.leftovers:
            self._save(replace(self.settings, leftovers=False))
            self._adopt(self.settings, self._new.merger)

    # -- while writers write ---------------------------------------------------------------------------

    def _catch_up(self) -> int:
        """Make what the new edition lacks or has of an older version; returns of how many documents."""
        keys = ["document_id", "edition", "version"]
        differ = [
            root.id
            for root in self.backend.scan("merged", Where({"kind": "root"}), payload=keys)
            if self._old.ids.owns(root.payload) and not self._has(root)
        ]
        for ids in _lots(differ, ROOTS_AT_ONCE):
            self._confirm()
            found = self.backend.fetch("merged", ids, vectors=False)
            self._derive([root for root in found.values() if not _is_unfinished(root)])
        return len(differ)

    def _has(self, root: Point) -> bool:
        made = self._made.get(root.payload["document_id"])
        return made is not None and made.version == version_of(root)

    def _derive(self, roots: Sequence[Point]) -> None:
        for batch in batches(roots):
            plans = []
            for root, chunks in steady_chunks(self._old, batch):
                name = root.payload["document_id"]
                plans.append((root, planned(self._new, name, root, Change.nothing(root), chunks=chunks)))
            self._write(plans)

    def _write(self, plans: Sequence[tuple[Point, Plan]]) -> None:
        """Put sections and roots of documents into the new edition, in the place of what it has of them."""
        points: list[Point] = []
        stale: list[str] = []
        for root, plan in plans:
            name, version = root.payload["document_id"], version_of(root)
            *sections, top = plan.merged
            points += [*stamped(sections, version), sealed(top, version)]
            stale += self._others(name, {point.id for point in sections})
            self._made[name] = _Made(version, top.payload["stop"])
        if stale:
            self.backend.delete("merged", stale)
        if points:
            self.backend.write("merged", points)

    def _others(self, name: str, kept: set[str]) -> list[str]:
        """Ids of the sections that the new edition has of a document, beside these."""
        made = self._made.get(name)
        ids = [] if made is None else self._new.section_ids(name, made.places)
        return [point_id for point_id in ids if point_id not in kept]

    def _confirm(self) -> None:
        """Make sure that nobody else began to replace the merged vectors."""
        now = Settings.of(self.backend.fetch("merged", [META_ID])[META_ID])
        if now.version != self.settings.version:
            raise self._superseded()

    # -- while writers wait ----------------------------------------------------------------------------

    def _seal(self) -> None:
        """Give every old root a new version, and carry what changed last over into the new edition."""
        tries = Tries(self.backend)
        keys = ["document_id", "edition", "version"]
        while True:
            left: list[str] = []
            seen: set[str] = set()
            for kind in ("claim", "root"):  # a claim becomes a root, and is seen as one of them
                for point in self.backend.scan("merged", Where({"kind": kind}), payload=keys):
                    if self._old.ids.owns(point.payload):
                        seen.add(point.payload["document_id"])
                        if self._sealed.get(point.id) != version_of(point):
                            left.append(point.id)
            if not left:
                break
            for ids in _lots(left, ROOTS_AT_ONCE):
                self._confirm()
                self._seal_some(ids, tries)
        for name in self._made.keys() - seen:
            self._remove(name)

    def _seal_some(self, ids: Sequence[str], tries: Tries) -> None:
        names = self.backend.fetch("merged", ids, payload=["document_id"])
        with alone(self.backend, [point.payload["document_id"] for point in names.values()]):
            found = self.backend.fetch("merged", ids, vectors=True)
            ready = [root for root in found.values() if not self._waited(root, tries)]
            swaps = [Swap(sealed(root, next_version(root)), version_of(root)) for root in ready]
            done = self.backend.swap(swaps) if swaps else []
            plain = []
            for root, swap, mine in zip(ready, swaps, done, strict=True):
                if not mine:
                    continue
                if _is_unfinished(root):
                    self._carry(root, swap.point)
                elif not self._has(root):
                    plain.append(root)
                self._sealed[root.id] = version_of(swap.point)
            self._derive(plain)

    def _waited(self, root: Point, tries: Tries) -> bool:
        """Whether the writer of an unfinished change was given a little time to complete it."""
        if not _is_unfinished(root):
            return False
        easy = Change.of(root) is not None or is_deletion(root)
        return tries.waited(root, MOMENT if easy else ABANDONED)

    def _carry(self, root: Point, now: Point) -> None:
        """Carry a document that somebody is changing over: with the change, or as unfinished.

        Args:
            root: as it was.
            now: the same, with the version that it has now.
        """
        name, version = root.payload["document_id"], version_of(root)
        if is_deletion(root):
            finish_deletion(self._old, now)
            return
        change = Change.of(root)
        if change is None and is_claim(root):
            self._claim(name, root)
            return
        try:
            plan = planned(self._new, name, root, replace(change or Change.nothing(root), afresh=True))
        except StoreError as error:
            if type(error) is not StoreError or change is not None:
                raise
            self._claim(name, root)  # its chunks are those of no version
            return
        if change is not None:
            self.backend.write("chunks", stamped(plan.chunks, version), below=version)
            self.backend.delete("chunks", plan.gone_chunks, below=version)
        self._write([(root, plan)])

    def _claim(self, name: str, root: Point) -> None:
        """Mark a document as unfinished in the new edition."""
        stale = self._others(name, set())
        if stale:
            self.backend.delete("merged", stale)
        self.backend.write("merged", [sealed(claim(self._new, name, "ingest"), version_of(root))])
        self._made[name] = _Made(version_of(root), 0)

    def _remove(self, name: str) -> None:
        """Remove a document that was deleted meanwhile."""
        self.backend.delete("merged", [self._new.ids.root(name), *self._others(name, set())])

    # -- afterwards ------------------------------------------------------------------------------------

    def _put_in_context(self) -> None:
        """Replace the contextual vectors of other mergers by this one's."""
        ours = self._new.merger.fingerprint
        keys = ["document_id", "position", "fingerprint"]
        tried: set[str] = set()
        while True:
            names = {
                point.payload["document_id"]
                for point in self.backend.scan("chunks", Where(), payload=keys)
                if {"document_id", "position"} <= point.payload.keys()
                and point.payload.get("fingerprint") != ours
            }
            names -= tried
            if not names:
                return
            tried |= names
            for some in _lots(sorted(names), ROOTS_AT_ONCE):
                roots = self._new.lookup([self._new.ids.root(name) for name in some])
                # A document that is being ingested gets its vectors from whoever completes that.
                for batch in batches([root for root in roots.values() if not _is_being_ingested(root)]):
                    remake(self._new, batch)

    def _sweep(self) -> None:
        """Remove the points of all other editions."""
        stale = [
            point.id
            for kind in ("root", "claim", "section")
            for point in self.backend.scan("merged", Where({"kind": kind}), payload=["edition"])
            if not self._new.ids.owns(point.payload)
        ]
        kept = self.settings.fingerprint if self.settings.pieces else None
        stale += calibrations(self.backend, other_than=kept)
        self._confirm()  # what somebody else makes from here on was not there to be found
        for ids in _lots(stale, _DELETED_AT_ONCE):
            self.backend.delete("merged", ids)

    def _save(self, settings: Settings) -> None:
        settings = replace(settings, version=max(next_version(), self.settings.version + 1))
        point = sealed(settings.point(), settings.version)
        if not self.backend.swap([Swap(point, self.settings.version)])[0]:
            raise self._superseded()
        self.settings = settings

    def _superseded(self) -> _SupersededError:
        return _SupersededError(
            f"Another calibrate() or rebuild() of {self.backend.collection!r} began after this one, which "
            "stopped. Wait for that one, and repeat this call if it is still needed."
        )


def _is_unfinished(root: Point) -> bool:
    return is_claim(root) or "pending" in root.payload or bool(root.payload["writing"])


def _is_being_ingested(root: Point) -> bool:
    return is_claim(root) or bool(root.payload["writing"])


def _lots(ids: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))
