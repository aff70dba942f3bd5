"""Keeping a store right: its calibration, its merged vectors, and back-filling them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic, sleep
from typing import Any

from merger_plugins.errors import ConflictError, EmptyInputError, InputError, StoreError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.stores import upkeep
from merger_plugins.stores.backend import Where
from merger_plugins.stores.backfill import backfill
from merger_plugins.stores.base import StoreBase
from merger_plugins.stores.checking import Problem, repair, verify
from merger_plugins.stores.commits import PATIENCE
from merger_plugins.stores.comparing import repair_backfilled, verify_backfilled
from merger_plugins.stores.desk import Desk
from merger_plugins.stores.documents import checked_id
from merger_plugins.stores.filling import GROWTH, Backfilled, BackfillProgress, Engine, Order
from merger_plugins.stores.foreign import ContextualPlace
from merger_plugins.stores.layouts import Wanted

_WHILE = 0.05
"""Seconds between two attempts to refresh while somebody else is at work."""


class Keeping(StoreBase):
    """Health, calibration and back-filling."""

    def verify(self, document_id: str | None = None) -> Iterator[Problem]:
        """Compare what is stored with what the chunks give, and tell each difference as it is found.

        Reads every chunk vector and section, derives them again and compares to 1e-5. Changes nothing. What
        other writers have under way at the moment may be among the problems. On a back-filled collection it
        reads each point once, through a temporary file as `backfill` does; documents that the application
        changed since are ``"outdated"``.

        Args:
            document_id: only this one; the whole store for None.

        Raises:
            ConflictError: a back-fill wrote while its collection was compared.
            StoreError: the database fails.
        """
        state = self._state.open()
        if state.foreign is not None:
            yield from verify_backfilled(self._backend, self._as_before(), document_id)
            return
        state.renewed()
        if state.settings is not None:
            yield from verify(state.desk(), state.settings, document_id)

    def repair(self, document_id: str | None = None) -> list[Problem]:
        """Put right what `verify` finds, and return what is left.

        Completes what was interrupted, derives missing and wrong points again, and removes strays. Chunks
        whose document has no root become a document again. A missing chunk, and an `ingest` that was
        interrupted, need `ingest` or `delete`: those problems are left. An index that the database itself
        cannot read any more is begun anew. On a back-filled collection, what is wrong is dropped and
        back-filled again, documents that the application changed as well; its own points stay as they are.

        Args:
            document_id: only this one; the whole store for None.

        Raises:
            FingerprintError: the store holds vectors of another merger; call `rebuild` instead, or
                ``backfill(anew=True)`` on a back-filled collection.
            ConflictError: a back-fill is at work, or wrote meanwhile.
            StoreError: the database fails; repeat the call.
        """
        self._backend.mend()
        state = self._state.open()
        if state.foreign is not None:
            try:
                return repair_backfilled(self._backend, self._as_before(), document_id)
            finally:
                self._state.reread()

        def mend(desk: Desk) -> list[Problem]:
            return [] if state.settings is None else repair(desk, state.settings, document_id)

        return state.write(mend)

    # -- merger ----------------------------------------------------------------------------------------

    @property
    def calibration_due(self) -> bool:
        """Whether the store has half as many chunks more than its calibration saw, or none; counts them."""
        return self._has_grown(GROWTH - 1)

    def calibrate(self, *, if_grown: float | None = None) -> SequenceMerger:
        """Calibrate the merger on the chunk vectors of this store, and derive every merged vector again.

        Reads all chunk vectors twice, and embeds nothing. The calibration stays with the store: opening it
        with the merger from before is enough. Worth repeating as the store grows.

        Others may go on meanwhile, in this process or another: searches answer from the old vectors, all of
        them, until the new ones take over, and then from those. Writers wait for that moment, which takes a
        read and a write for each document. Contextual chunk vectors are replaced one document after another
        afterwards; until that is done, the levels ``"contextual"`` and ``"fused"`` compare raw chunk vectors
        in their place.

        Args:
            if_grown: do nothing unless the chunks are more by this part than when the store was last
                calibrated, 0.5 being half as many again; or it never was.

        Returns:
            The merger at work now.

        Raises:
            EmptyInputError: the store is empty.
            InputError: `if_grown` is negative.
            StoreError: the database fails; interrupted, call it again.
            ConflictError: another `calibrate` or `rebuild` began after this one.
        """
        if if_grown is not None and not if_grown >= 0:
            raise InputError(f"if_grown is {if_grown!r}; it takes a number from 0 on, such as 0.5.")
        with self._calibrating:
            state = self._state.open()
            state.refuse_foreign("calibrate()")
            state.renewed()
            if state.settings is None:
                raise EmptyInputError(f"{self!r} holds no document; ingest some before calibrate().")
            if if_grown is not None and not self._has_grown(if_grown):
                return state.merger
            statistics = upkeep.gather(state.desk())
            calibrated = state.merger.calibrated(statistics)
            state.take_over(calibrated, statistics)
            return calibrated

    def calibrate_in_background(self, *, if_grown: float | None = None) -> Future[SequenceMerger]:
        """Let a thread of this store `calibrate`; several calls are done one after another.

        Returns:
            What `calibrate` returns or raises, as a future. `close` waits for it.
        """
        if self._background is None:
            self._background = ThreadPoolExecutor(1, thread_name_prefix="merger_plugins_calibrate")
        return self._background.submit(self.calibrate, if_grown=if_grown)

    def rebuild(self, *, calibrated: bool = True) -> None:
        """Derive every merged vector again from the stored chunk vectors, with the merger of this store.

        For a store that another merger wrote, one whose calibration was interrupted, or one that lost points
        of its companion collection. With another merger, others may go on as during `calibrate`; with the
        same, each document is put right by itself.

        Args:
            calibrated: False drops a stored calibration and goes back to the merger that was passed in.

        Raises:
            StoreError: the database fails; interrupted, call it again.
            ConflictError: as `calibrate`.
        """
        with self._calibrating:
            state = self._state.open()
            state.renewed()
            state.take_over(state.merger if calibrated else state.given)

    def _has_grown(self, part: float) -> bool:
        state = self._state.open()
        if state.settings is None or state.foreign is not None:
            return False
        state.renewed()
        seen = state.settings.calibration_vectors
        chunks = self._backend.count("chunks", Where())
        return chunks > 0 if not seen else chunks >= (1 + part) * seen

    def backfill(
        self,
        *,
        group_by: str | None = None,
        order_by: str | Sequence[str] | None = None,
        text: str | None = None,
        vector: str | None = None,
        contextual: ContextualPlace | None = None,
        contextual_vector: str | None = None,
        calibrate: bool | None = None,
        skip_missing: bool = False,
        anew: bool = False,
        scratch: str | os.PathLike[str] | None = None,
        one_process: bool = False,
        engine: Engine | None = None,
        progress: Callable[[BackfillProgress], object] | None = None,
    ) -> Backfilled:
        """Add section and root vectors to a collection that another application wrote.

        Everything goes into the companion collection; the application's own points are read and never
        written, but for the vector that ``contextual="named"`` names. Each point is read once a call. Where
        documents did not change since the last call, nothing is merged or written; interrupted, the same
        call goes on. Memory stays bounded, and a temporary file takes 4 d bytes a chunk and a few hundred
        more. Where neither a merger nor an embedder was passed to the store, nothing is known of the
        embedding model but what the collection's own vectors tell.

        Args:
            group_by: payload field that names a point's document, dots leading into mappings, such as
                ``"metadata.source"``. Recognised for None where LangChain or LlamaIndex wrote the points, or
                where the name of a field is a usual one.
            order_by: field or fields that order a document's chunks, the first deciding; ``"none"`` for the
                order of ids. Recognised for None as above, else an error names the fields that there are.
            text: field of the text; recognised for None.
            vector: name of the chunk vector, where points have several.
            contextual: ``"companion"`` puts contextual chunk vectors into the companion, ``"named"`` into a
                vector that the application's points have room for; ``"none"``, as None at first, makes none.
            contextual_vector: the name of that vector; ``"contextual"`` for None.
            calibrate: whether to calibrate the merger on the collection. None does where it is a
                `CalibratedMerger` without statistics, and again once there are half as many chunks more; all
                merged vectors are then made again, and searches answer from the old ones until that is done.
            skip_missing: leave out points that lack a field or a vector, in place of an error.
            anew: let other fields, or another merger, than those of the last call take over, in the same way.
            scratch: folder for the temporary file; the system's for None.
            one_process: whether to do without another process, in which the points of large collections are
                otherwise sorted and merged.
            engine: sorts and merges elsewhere, such as `merger_plugins.ray.RayEngine`.
            progress: called after every batch.

        Raises:
            InputError: something has to be said that is not recognised, or a field or vector is not there.
            FingerprintError: another merger than last time, and `anew` is off.
            StoreError: no such collection, or one that this package wrote; vectors that are not compared by
                cosine and do not all have length 1; points that lack something, or the database fails: what
                was written stays.
            ConflictError: another `backfill` is at work, or wrote meanwhile.
        """
        order = self._order(
            Wanted(group_by, order_by, text, vector, contextual, contextual_vector),
            calibrate=calibrate,
            skip_missing=skip_missing,
            anew=anew,
            scratch=scratch,
            one_process=one_process,
            engine=engine,
            progress=progress,
        )
        try:
            return backfill(self._backend, order)
        finally:
            self._state.reread()

    def refresh(
        self,
        document_ids: Sequence[str],
        *,
        group_by: str | None = None,
        order_by: str | Sequence[str] | None = None,
        skip_missing: bool = False,
    ) -> Backfilled:
        """Merge documents of a back-filled collection again, after their application changed their chunks.

        Reads the chunks of these documents alone. Where nothing was back-filled yet, a back-fill was
        interrupted, or there are half as many chunks more than the merger was calibrated on, it does all that
        `backfill` does. Waits for another `backfill` or `refresh` that is at work.

        Args:
            document_ids: names of the documents; those that have no chunk any more lose their merged vectors.
            group_by: as `backfill`, for the first time, like what follows.
            order_by: as above.
            skip_missing: as above.

        Raises:
            InputError, FingerprintError, StoreError: as `backfill`.
            ConflictError: others were at work for half a minute.
        """
        names = tuple(dict.fromkeys(checked_id(name) for name in document_ids))
        deadline = monotonic() + PATIENCE
        while True:
            state = self._state.open()
            known = () if state.settings is None else (state.merger,)
            order = self._order(
                Wanted(group_by, order_by), skip_missing=skip_missing, documents=names, known=known
            )
            try:
                return backfill(self._backend, order)
            except ConflictError:
                if monotonic() > deadline:
                    raise
                sleep(_WHILE)
            finally:
                self._state.reread()

    def documents_of(self, chunk_ids: Sequence[str], *, each: bool = False) -> list[str]:
        """The documents that chunk points of a back-filled collection belong to; none where nothing was.

        Args:
            chunk_ids: as the database has them; those of no point are passed over.
            each: refuse a point that belongs to no document.

        Raises:
            StoreError: the database fails; or there is such a point.
        """
        state = self._state.open()
        if state.foreign is None or not chunk_ids:
            return []
        chunks = state.chunks()
        stored = self._backend.fetch("chunks", list(chunk_ids))
        owners = {point_id: chunks.document(point.payload) for point_id, point in stored.items()}
        strays = sorted(point_id for point_id, name in owners.items() if name is None)
        if each and strays:
            field = state.foreign.edition.reading.group_by
            raise StoreError(
                f"{len(strays)} of {len(owners)} points in {self._backend.collection!r} belong to no "
                f"document: they have no text or whole number in the field {field!r} (such as {strays[0]}), "
                "so that they cannot be merged. Write them with it, or delete them."
            )
        return sorted({name for name in owners.values() if name is not None})

    def _as_before(self) -> Order:
        """A back-fill with the fields of the last one, and the merger at work."""
        return self._order(Wanted(), known=(self._state.merger,))

    def _order(self, wanted: Wanted, **more: Any) -> Order:
        given = self._state.chosen or self._texts.chosen
        return Order(
            wanted,
            base=self._state.given if given else None,
            others=() if self._state.chosen else (self._state.given,),
            **more,
        )
