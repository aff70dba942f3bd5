"""Whether the merged vectors of a back-filled collection are what its chunks give, and putting them right."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, suppress
from copy import copy
from dataclasses import replace
from time import sleep

import numpy as np

from merger_plugins.errors import ConflictError, FingerprintError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.stores.backend import Backend, Payload, Point, Where
from merger_plugins.stores.backfill import backfill
from merger_plugins.stores.checking import TOLERANCE, Problem, ProblemKind, difference_of
from merger_plugins.stores.filling import Order
from merger_plugins.stores.foreign import CHUNK, CHUNKS, CONTEXTUAL_KIND, Edition, Foreign, Reading
from merger_plugins.stores.gathering import (
    base_of,
    batches,
    block_of,
    in_lots,
    merger_of,
    opened,
    read,
)
from merger_plugins.stores.holding import Hold
from merger_plugins.stores.records import META_ID, METADATA, PointIds
from merger_plugins.stores.settings import Settings
from merger_plugins.stores.spool import Gathered, Spool
from merger_plugins.stores.weaving import Weaver
from merger_plugins.stores.workshop import Task, Workshop

_KINDS = ("root", "section", CONTEXTUAL_KIND)
_KNOWN = ("document_id", "content", "stop")
_DELETED_AT_ONCE = 1_000
_ROUNDS = 2
"""The second is for what an unfinished back-fill made, which is only looked at once it is complete."""

_WAITS = (0.0, 0.2, 1.0)
"""Seconds before a document is looked at again that a back-fill wrote meanwhile."""

_AGAIN = "Run backfill()"
_OTHER_CHUNKS = "it names other chunks than it is made of"


def verify_backfilled(backend: Backend, order: Order, document_id: str | None = None) -> Iterator[Problem]:
    """Tell each difference as it is found.

    Reads every chunk point once, as a back-fill does, and writes nothing. Points that lack a document, a
    place or a vector are passed over, as with ``skip_missing``.

    Args:
        backend: the database.
        order: which mergers may have made what is there, and where temporary files go.
        document_id: only this document; None for all.

    Raises:
        ConflictError: back-fills go on writing, so that differences may be no damage.
        StoreError: the calibration is damaged, or the database fails.
    """
    backend = copy(backend)  # its form may be another one than that of searches under way
    vectors, settings, foreign = opened(backend)
    if settings is None or foreign is None:
        return
    if foreign.pending is not None or foreign.current is None:
        detail = f"a back-fill was interrupted, or is under way. {_AGAIN}: it goes on where it stopped"
        yield Problem("unfinished", None, None, None, detail)
    edition = foreign.current
    if edition is None:
        return
    form = vectors.get(edition.reading.vector)
    if form is None:
        detail = f"the vector {edition.reading.vector!r} that it was made from is gone. {_AGAIN}"
        yield Problem("outdated", None, None, None, detail)
        return
    base = base_of(backend, order, form.dimension)
    merger = merger_of(backend, settings, edition, order, base, form.dimension)
    if merger is None:
        given = "none was passed in" if order.others else f"{base!r} is {base.fingerprint}"
        detail = (
            f"the collection was back-filled with the merger {edition.fingerprint}, and {given}; pass the "
            "merger it was made with, or call backfill(anew=True)"
        )
        yield Problem("fingerprint", None, None, None, detail)
        return
    backend.form = edition.reading.form
    backend.layout()
    yield from _Comparison(backend, order, settings, foreign, edition, merger, document_id).run(
        form.dimension
    )


def repair_backfilled(backend: Backend, order: Order, document_id: str | None = None) -> list[Problem]:
    """Drop what is wrong, back-fill it again, and return what is left.

    Documents that the application changed since the last back-fill are merged too. The calibration stays.

    Args:
        backend: the database.
        order: as for `verify_backfilled`.
        document_id: only this document, where the database finds its chunks by its name; None for all.

    Raises:
        FingerprintError: another merger made what is there.
        ConflictError: a back-fill is at work, or wrote meanwhile.
        StoreError: the calibration is damaged, or the database fails; repeat the call.
    """
    order = replace(order, keep=True, skip_missing=True)
    left = list(verify_backfilled(backend, order, document_id))
    for _ in range(_ROUNDS):
        if not left:
            break
        for problem in left:
            if problem.kind == "fingerprint" and problem.document_id is None:
                raise FingerprintError(f"In {backend.collection!r} {problem.detail}.")
        names = None
        if document_id is not None and _is_found(backend, document_id):
            names = (document_id,)
        _drop(backend, left)
        backfill(backend, replace(order, documents=names))
        left = list(verify_backfilled(backend, order, document_id))
    return left


def _is_found(backend: Backend, document_id: str) -> bool:
    """Whether the database finds chunks by the name of their document."""
    backend = copy(backend)
    _, _, foreign = opened(backend)
    if foreign is None or foreign.current is None:
        return False
    backend.form = foreign.current.reading.form
    return backend.count("chunks", Where(documents=[document_id])) > 0


def _drop(backend: Backend, problems: Sequence[Problem]) -> None:
    """Remove wrong points and strays; first their roots, without which any back-fill merges a document."""
    _, settings, foreign = opened(backend)
    if settings is None or foreign is None or foreign.current is None:
        return
    ids = foreign.current.ids(settings.namespace)
    damaged = [problem for problem in problems if problem.kind not in ("outdated", "unfinished")]
    names = {p.document_id: None for p in damaged if p.document_id is not None and p.kind != "stray"}
    points = {p.point_id: None for p in damaged if p.point_id is not None and p.shelf == "merged"}
    doomed = list(dict.fromkeys([*map(ids.root, names), *points]))
    if not doomed:
        return
    with Hold(backend, settings) as hold:
        hold.save(settings)
        for lot in in_lots(doomed, _DELETED_AT_ONCE):
            hold.beat()
            backend.delete("merged", lot)


class _Comparison:
    """One edition against the chunk points."""

    def __init__(
        self,
        backend: Backend,
        order: Order,
        settings: Settings,
        foreign: Foreign,
        edition: Edition,
        merger: SequenceMerger,
        document_id: str | None,
    ) -> None:
        self.backend = backend
        self.order = order
        self.settings = settings
        self.foreign = foreign
        self.edition = edition
        self.merger = merger
        self.ids: PointIds = edition.ids(settings.namespace)
        self._only = document_id
        self._own: dict[str, str | int] = {} if document_id is None else {"document_id": document_id}

    @property
    def reading(self) -> Reading:
        return self.edition.reading

    def run(self, dimension: int) -> Iterator[Problem]:
        """All differences; documents that a back-fill may have changed meanwhile are read again."""
        told: set[Problem] = set()
        again: set[str] = set()
        for problem in self._differences(dimension):
            name = problem.document_id
            if name in again:
                continue
            found = [problem]
            if self._is_changed():
                if name is None or self._only is not None:
                    raise ConflictError(
                        f"A back-fill of {self.backend.collection!r} wrote while its points were compared, "
                        "so that differences may be no damage. Repeat the call when no back-fill is at work."
                    )
                again.add(name)
                found = self._anew(name)
            yield from (one for one in found if one not in told)
            told.update(found)

    def _anew(self, name: str) -> list[Problem]:
        """The differences of one document as it is now."""
        for wait in _WAITS:
            sleep(wait)
            with suppress(ConflictError):
                found = verify_backfilled(self.backend, self.order, name)
                return [problem for problem in found if problem.document_id is not None]
        return list(verify_backfilled(self.backend, self.order, name))

    def _is_changed(self) -> bool:
        stored = self.backend.fetch("merged", [META_ID])
        return not stored or Settings.of(stored[META_ID]).version != self.settings.version

    def _differences(self, dimension: int) -> Iterator[Problem]:
        where = self._where()
        expected = self.backend.count("chunks", where)
        task = Task(self.backend.collection, self.reading, dimension, self.order.scratch, expected)
        with closing(Workshop(task)) as workshop:
            read(
                self.backend,
                where,
                dimension,
                workshop.take,
                lambda done: self.order.report("reading", done, expected),
            )
            workshop.settle()
            spool = workshop.spool
            spool.know(self._roots())
            weaver = Weaver(self.merger, self.edition, self.ids, spool.vectors, block=block_of(dimension))
            done = 0
            for batch in batches(spool.documents(), dimension):
                wanted = [one for one in batch if self._only in (None, one.name)]
                yield from self._of(wanted, spool, weaver)
                done += sum(map(len, batch))
                self.order.report("merging", done, spool.chunks)
            for name in spool.gone():
                spool.note([Gathered(name)])
                detail = f"its chunks are gone since the last back-fill. {_AGAIN}"
                yield Problem("outdated", name, None, None, detail, self.ids.root(name))
            yield from self._strays(spool)

    def _where(self) -> Where:
        """The points of the document, if the database finds them by its name; else all."""
        if self._only is None:
            return Where()
        where = Where(documents=[self._only])
        return where if self.backend.count("chunks", where) else Where()  # its name may be inside JSON text

    def _roots(self) -> Iterator[tuple[str, str, int]]:
        """Of each document that has a root: its name, content and number of chunks."""
        where = Where({"kind": "root", "edition": self.edition.name, **self._own})
        for root in self.backend.scan("merged", where, payload=list(_KNOWN)):
            if all(key in root.payload for key in _KNOWN):
                name, content, stop = (root.payload[key] for key in _KNOWN)
                if root.id == self.ids.root(name):
                    yield name, content, stop

    # -- documents -------------------------------------------------------------------------------------

    def _of(self, documents: Sequence[Gathered], spool: Spool, weaver: Weaver) -> Iterator[Problem]:
        merged: list[Gathered] = []
        changed: set[str] = set()
        for document in documents:
            same, before = spool.is_known(document)
            if same or before:
                merged.append(document)
                if not same:
                    changed.add(document.name)
            else:
                spool.expect(weaver.expected(document))
                yield self._rootless(document.name)
        doubtful: dict[str, list[Problem]] = {}
        for problem in self._of_merged(merged, changed, spool, weaver):
            if problem.document_id in changed:
                doubtful.setdefault(problem.document_id, []).append(problem)
            else:
                yield problem
        for name, problems in doubtful.items():
            if not any(problem.level is None or problem.detail == _OTHER_CHUNKS for problem in problems):
                yield from problems  # the root is what its chunks give
                continue
            spool.note([Gathered(name)])
            detail = f"the application changed its chunks since the last back-fill. {_AGAIN}"
            yield Problem("outdated", name, None, None, detail, self.ids.root(name))

    def _of_merged(
        self, documents: Sequence[Gathered], changed: Collection[str], spool: Spool, weaver: Weaver
    ) -> Iterator[Problem]:
        """What differs; that documents changed, by their content, says only why.

        A client that rounds vectors anew changes the content too, and none of the merged vectors.
        """
        for woven in weaver.weave(documents) if documents else ():
            named = self.reading.contextual == "named"
            if named:
                yield from self._named(woven.contextual, documents)
            points = [*([] if named else woven.contextual), *woven.sections, *woven.roots]
            spool.expect(point.id for point in points)
            stored = self.backend.fetch("merged", [p.id for p in points], vectors=True) if points else {}
            for point in points:
                there = stored.get(point.id)
                skipped = "content" if point.payload["document_id"] in changed else ""
                detail = "it is not in the store" if there is None else _difference(point, there, skipped)
                if detail:
                    kind: ProblemKind = "missing" if there is None else _kind(detail)
                    yield _problem(kind, point.payload, detail, None if there is None else point.id)

    def _rootless(self, name: str) -> Problem:
        root_id = self.ids.root(name)
        root = self.backend.fetch("merged", [root_id]).get(root_id)
        if root is None:
            detail = f"it has no root: it is new since the last back-fill, or the root was lost. {_AGAIN}"
            return Problem("missing", name, None, 0, detail)
        detail = "its root says that it is another document's, kind's or edition's, or lacks its content"
        return Problem("wrong", name, None, 0, detail, root_id)

    def _named(self, points: Sequence[Point], documents: Sequence[Gathered]) -> Iterator[Problem]:
        """Contextual vectors in the chunk points themselves."""
        if not points:
            return
        stored = self.backend.fetch("chunks", [point.id for point in points], payload=False, vectors=True)
        for point in points:
            there = stored.get(point.id)
            vector = None if there is None else there.contextual
            assert point.contextual is not None
            if vector is not None and not (off := difference_of(point.contextual, vector)):
                continue
            name, place = _place_of(documents, point.id)
            if vector is None:
                yield Problem("missing", name, 0, place, "it has no contextual vector", point.id, "chunks")
            else:
                detail = f"its contextual vector is off by {off:.1g}"
                yield Problem("wrong", name, 0, place, detail, point.id, "chunks")

    def _strays(self, spool: Spool) -> Iterator[Problem]:
        """Points of the companion that no document accounts for; those of outdated documents are left out."""
        keys = ["kind", "document_id", "level", "position", "edition"]
        for kind in _KINDS:
            for point in self.backend.scan("merged", Where({"kind": kind, **self._own}), payload=keys):
                if spool.is_expected(point.id):
                    continue
                if point.payload.get("edition") != self.edition.name:
                    if self.foreign.pending is None:
                        yield _problem(
                            "stray", point.payload, "it is of vectors that are not searched", point.id
                        )
                elif not spool.is_noted(str(point.payload.get("document_id"))):
                    yield _problem("stray", point.payload, "no document accounts for it", point.id)


def _problem(kind: ProblemKind, payload: Payload, detail: str, point_id: str | None) -> Problem:
    level = None if payload.get("kind") == "root" else payload.get("level")
    return Problem(kind, payload.get("document_id"), level, payload.get("position"), detail, point_id)


def _place_of(documents: Sequence[Gathered], point_id: str) -> tuple[str, int]:
    return next((one.name, one.ids.index(point_id)) for one in documents if point_id in one.ids)


def _kind(detail: str) -> ProblemKind:
    return "fingerprint" if detail.startswith("its fingerprint") else "wrong"


def _difference(point: Point, stored: Point, skipped: str) -> str:
    """What is wrong with a stored point of the companion, but for one key; nothing where it is right."""
    for key, value in point.payload.items():
        if key == skipped:
            continue
        there = stored.payload.get(key)
        if key == "mass":
            if not isinstance(there, int | float) or not np.isclose(there, value, rtol=TOLERANCE):
                return f"its mass is {there} and should be {value}"
        elif there != value:
            if key in (CHUNKS, CHUNK):
                return _OTHER_CHUNKS
            if key == METADATA:
                return "its metadata is not what its chunks share"
            return f"its {key} is {there!r} and should be {value!r}"
    assert point.vector is not None
    if stored.vector is None or len(stored.vector) != len(point.vector):
        return "it has no vector, or one of another dimension"
    off = difference_of(stored.vector, point.vector)
    return f"its vector is off by {off:.1g}" if off else ""
