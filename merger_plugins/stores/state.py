"""What is known of a store once it has been opened, and how its merger changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Self, TypeVar

from merger_plugins._types import Matrix
from merger_plugins.errors import ConflictError, DimensionError, FingerprintError, InputError, StoreError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.calibrated import CalibratedMerger
from merger_plugins.mergers.calibration import CalibrationStatistics
from merger_plugins.stores.ages import HalfLife
from merger_plugins.stores.backend import Backend, ChunkForm, Layout, Swap
from merger_plugins.stores.chunks import ChunkPoints, ForeignChunks, OwnChunks
from merger_plugins.stores.commits import PATIENCE, next_version, sealed
from merger_plugins.stores.desk import Desk
from merger_plugins.stores.editions import take_over
from merger_plugins.stores.foreign import Foreign
from merger_plugins.stores.records import META_ID, PointIds, namespace_of
from merger_plugins.stores.settings import EditionError, Settings, check, resolved
from merger_plugins.stores.sittings import PAUSE

T = TypeVar("T")

_POLL = 0.02


@dataclass(frozen=True)
class _Held:
    """Settings and the merger that belongs to them, which change together."""

    settings: Settings | None = None
    merger: SequenceMerger | None = None


class StoreState:
    """The collections, the settings and the merger of one store.

    Args:
        backend: the database.
        given: the merger that was passed in, or None.
        default: makes one where none was passed in; called when the store is opened.
        wants_contextual: whether chunk points of a new collection get a contextual vector.
        embed: texts -> (n, d) chunk vectors.
        half_life: of the conversations of a new store; None for no fading, or that of a store that exists.
        pause: seconds without a turn that end a sitting.

    Attributes:
        chosen: whether a merger was passed in.
        layout: of the collections; None where they do not exist yet.
        foreign: what they say of a collection that another application wrote; None for one of our own.
    """

    def __init__(
        self,
        backend: Backend,
        given: SequenceMerger | None,
        *,
        default: Callable[[], SequenceMerger],
        wants_contextual: bool,
        embed: Callable[[Sequence[str]], Matrix],
        half_life: HalfLife | None = None,
        pause: float = PAUSE,
    ) -> None:
        self.backend = backend
        self._given = given
        self.chosen = given is not None
        self.foreign: Foreign | None = None
        self._default = default
        self._wants_contextual = wants_contextual
        self._embed = embed
        self._half_life = half_life
        self._pause = pause
        self._held = _Held()
        self._lock = Lock()
        self.layout: Layout | None = None

    @property
    def settings(self) -> Settings | None:
        """As stored, when they were read last."""
        return self._held.settings

    @property
    def merger(self) -> SequenceMerger:
        """The merger at work; known once the store is open."""
        merger = self._held.merger
        assert merger is not None
        return merger

    @property
    def given(self) -> SequenceMerger:
        """The merger that was passed in, or the default."""
        if self._given is None:
            self._given = self._default()
        return self._given

    @property
    def contextual(self) -> bool:
        """Whether chunk points have contextual vectors, or will have."""
        if self.foreign is not None:
            return self.foreign.edition.reading.contextual != "none"
        return self.layout.contextual if self.layout else self._wants_contextual

    @property
    def ids(self) -> PointIds:
        """Of the collection."""
        return self.settings.ids if self.settings else PointIds(namespace_of(self.backend.collection))

    def open(self) -> Self:
        """Read the settings and find the merger that belongs to them; once, as soon as there are any."""
        if self.settings is not None:
            return self
        merger = self.given
        stored = self.backend.fetch("merged", [META_ID]) if self.backend.has_companion() else {}
        settings = Settings.of(stored[META_ID]) if stored else None
        self.foreign = Foreign.of(settings.foreign, self.backend.place) if settings else None
        if self.foreign is not None:
            self.backend.form = self.foreign.edition.reading.form
        layout = self.backend.layout()
        if layout is None:
            settings, self.foreign = None, None
        elif self.foreign is not None:
            merger = self._of_foreign(settings, layout, merger)
        else:
            self._fits(layout, merger)
        if settings is not None:
            self._check_half_life(settings)
        try:
            merger = resolved(settings, merger, self.backend)
        except StoreError:
            if settings is None or self._stored() in (None, settings):
                raise
            return self.open()  # it was calibrated again just now
        self.layout, self._held = layout, _Held(settings, merger)
        return self

    def forget(self) -> None:
        """Read the settings again when they are needed next."""
        self._held, self.layout, self.foreign = _Held(), None, None
        self.backend.form = ChunkForm()

    def switched(self) -> bool:
        """Whether a back-fill of this collection made what was opened here obsolete; opens what it made."""
        if self.foreign is None:
            return False
        before = self.foreign.edition.name
        self.reread()
        return self.open().foreign is not None and self.foreign.edition.name != before

    def reread(self) -> None:
        """Take over what a back-fill made; searches of other threads go on with what was read before."""
        settings = self._stored() if self.backend.has_companion() else None
        foreign = Foreign.of(settings.foreign, self.backend.place) if settings else None
        before, layout = self.foreign, self.layout
        same = foreign and before and foreign.edition.reading == before.edition.reading
        if not same or foreign is None or layout is None:
            self.forget()
        elif foreign.edition.fingerprint != self.merger.fingerprint:
            base = self._of_foreign(settings, layout, self.given)
            self.foreign, self._held = foreign, _Held(settings, resolved(settings, base, self.backend))
        else:
            self.foreign, self._held = foreign, _Held(settings, self.merger)

    def renewed(self, since: Settings | None = None) -> bool:
        """Read the settings of a collection of our own again; whether other vectors are to be searched now.

        Args:
            since: what was read before; the last that was read for None.

        Raises:
            StoreError: the database fails, or the calibration is damaged.
        """
        before = since or self._held.settings
        if self.foreign is not None or before is None:
            return False
        now = self._stored()
        if now is None or now.version == before.version:
            return False
        try:
            merger = self._merger_for(now)
        except StoreError:
            if self._stored() == now:
                raise
            return self.renewed(before)  # it was calibrated again just now
        self._adopt(now, merger)
        return _searched(now) != _searched(before)

    def write(self, operation: Callable[[Desk], T]) -> T:
        """Let an operation write, again where other merged vectors took over before it wrote anything.

        Raises:
            ConflictError: they have been about to take over for too long.
        """
        while True:
            desk, before = self.open().desk(), self.settings
            try:
                return operation(desk)
            except EditionError:
                self._await_switch()
            except (FingerprintError, StoreError) as error:  # what it read may have been removed meanwhile
                if type(error) not in (FingerprintError, StoreError) or not self.renewed(before):
                    raise

    def _await_switch(self) -> None:
        until = time.monotonic() + PATIENCE
        while self.renewed() or (self.settings is not None and self.settings.switching):
            if time.monotonic() > until:
                raise ConflictError(
                    f"New merged vectors have been about to take over in {self.backend.place} for "
                    f"{PATIENCE:.0f} seconds. If no calibrate() or rebuild() is running, one was "
                    "interrupted: repeat it. Then repeat this call."
                )
            time.sleep(_POLL)

    def _stored(self) -> Settings | None:
        stored = self.backend.fetch("merged", [META_ID])
        return Settings.of(stored[META_ID]) if stored else None

    def _merger_for(self, settings: Settings) -> SequenceMerger:
        held = self._held.merger
        if held is not None and held.fingerprint == settings.fingerprint:
            return held
        return resolved(settings, self.given, self.backend)

    def _adopt(self, settings: Settings, merger: SequenceMerger) -> None:
        with self._lock:
            held = self._held.settings
            if held is None or held.version <= settings.version:
                self._held = _Held(settings, merger)

    def chunks(self) -> ChunkPoints:
        """The chunk points, as searches read them."""
        if self.foreign is not None:
            edition, settings = self.foreign.edition, self.settings
            assert settings is not None
            ids = edition.ids(settings.namespace)
            return ForeignChunks(self.backend, edition, ids, settings.fanout)
        held = self._held
        assert held.merger is not None
        if held.settings is None:
            return OwnChunks(
                self.backend, self.ids, held.merger.fanout, held.merger.fingerprint, contextual=False
            )
        ready = held.settings.context in (None, held.settings.fingerprint)
        return OwnChunks(
            self.backend,
            held.settings.ids,
            held.settings.fanout,
            held.settings.fingerprint,
            contextual=self.contextual and ready,
        )

    def check(self) -> None:
        """Make sure that this merger made what the store holds; raises `FingerprintError` if not."""
        if self.foreign is not None and self.foreign.current is None:
            raise StoreError(
                f"The back-fill of {self.backend.collection!r} was not completed. Run backfill() again: it "
                "goes on where it stopped. Until then only the level 'chunk' can be searched."
            )
        settings = self.settings
        if settings is not None:
            if settings.fingerprint != self.merger.fingerprint:
                self.renewed()
            check(self.settings or settings, self.merger, self.backend.place)

    def refuse_foreign(self, operation: str) -> None:
        """Refuse to write into a collection that this package did not write; raises `StoreError`."""
        if self.foreign is not None:
            raise StoreError(
                f"{operation} would write into {self.backend.collection!r}, whose chunk points another "
                "application wrote, and only the companion collection belongs to this store. Let that "
                "application write, then run backfill() again; or use a collection of your own."
            )

    def desk(self) -> Desk:
        """What ingestion needs."""
        self.refuse_foreign("This operation")
        held = self._held
        assert held.merger is not None
        return Desk(
            backend=self.backend,
            ids=held.settings.ids if held.settings else self.ids,
            merger=held.merger,
            contextual=self.contextual,
            exists=lambda: self.settings is not None,
            embed=self._embed,
            prepare=self._prepare,
            pause=self._pause,
            fading=lambda: HalfLife.of(self.settings.half_life) if self.settings else self._half_life,
        )

    def take_over(self, merger: SequenceMerger, statistics: CalibrationStatistics | None = None) -> None:
        """Derive every merged vector again with this merger, and let it work from now on; see `editions`.

        Args:
            merger: takes over.
            statistics: what it was calibrated with just now; None where it was not.
        """
        self.refuse_foreign("This operation")
        if self.settings is None:
            return
        self.renewed()
        take_over(self.desk(), merger, statistics, self._adopt)

    def _of_foreign(
        self, settings: Settings | None, layout: Layout, merger: SequenceMerger
    ) -> SequenceMerger:
        """The merger that was passed in, or else the one that a back-filled collection was made with."""
        if self.chosen:
            self._fits(layout, merger)
            return merger
        candidates = [merger] if merger.dimension in (None, layout.dimension) else []
        candidates.append(CalibratedMerger(dimension=layout.dimension))
        for candidate in candidates:
            found = resolved(settings, candidate, self.backend)
            if settings is None or found.fingerprint == settings.fingerprint:
                return found
        return candidates[0]

    def _check_half_life(self, settings: Settings) -> None:
        stored = HalfLife.of(settings.half_life)
        if self._half_life not in (None, stored):
            made = "without fading" if stored is None else f"with a half-life of {stored}"
            raise InputError(
                f"The conversations of {self.backend.collection!r} were made {made}, and half_life= asks for "
                f"{self._half_life}. Leave half_life out, or choose another collection."
            )

    def _fits(self, layout: Layout, merger: SequenceMerger) -> None:
        if merger.dimension not in (None, layout.dimension):
            raise DimensionError(
                f"The collection {self.backend.collection!r} has dimension {layout.dimension}, and "
                f"{merger!r} works in dimension {merger.dimension}. Pass a merger for the embedding model "
                "that made the collection, or choose another collection."
            )
        if self._wants_contextual and not layout.contextual:
            raise StoreError(
                f"The collection {self.backend.collection!r} was made without contextual vectors, and "
                "contextual=True asks for them. Choose another collection, or leave contextual out."
            )

    def _prepare(self, dimension: int) -> None:
        """Make the collections and the settings, or see to it that the dimension fits those that exist."""
        if self.layout is not None and self.layout.dimension != dimension:
            raise DimensionError(
                f"The vectors have dimension {dimension}, and the collection {self.backend.collection!r} "
                f"has {self.layout.dimension}. Use the embedding model that it was made with, or another "
                "collection."
            )
        if self.settings is not None:
            return
        if self.open().settings is not None:  # another writer made the store in the meantime
            self.check()
            self._prepare(dimension)
            return
        merger = self.merger
        if merger.dimension not in (None, dimension):
            raise DimensionError(
                f"The vectors have dimension {dimension}, and {merger!r} works in dimension "
                f"{merger.dimension}. Use the embedding model that the merger was made for."
            )
        contextual = self.contextual
        self.backend.create(dimension, contextual=contextual)
        self.layout = Layout(dimension, contextual, merged=True)
        settings = Settings(
            namespace=str(namespace_of(self.backend.collection)),
            fingerprint=merger.fingerprint,
            fanout=merger.fanout,
            contextual=contextual,
            half_life=None if self._half_life is None else self._half_life.payload(),
        )
        if not self._swapped(settings, None):
            self.layout = None
            self._prepare(dimension)

    def _swapped(self, settings: Settings, expected: int | None) -> bool:
        """Store settings in the place of those of this version; returns whether that worked."""
        settings = replace(settings, version=next_version())
        (mine,) = self.backend.swap([Swap(sealed(settings.point(), settings.version), expected)])
        if mine:
            self._held = _Held(settings, self._held.merger)
        return mine


def _searched(settings: Settings) -> tuple[str | None, ...]:
    """What decides which vectors a search compares."""
    return settings.edition, settings.fingerprint, settings.context
