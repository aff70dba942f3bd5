"""What every part of a store has: the database, the texts, the state."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import RLock
from types import TracebackType
from typing import Any, Self, TypedDict

from merger_plugins._types import Vector, VectorLike
from merger_plugins.chunking import Chunker
from merger_plugins.embedders import Embedder
from merger_plugins.errors import DimensionError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.stores.ages import HalfLife, checked_pause
from merger_plugins.stores.backend import Backend
from merger_plugins.stores.records import METADATA
from merger_plugins.stores.sittings import PAUSE
from merger_plugins.stores.state import StoreState
from merger_plugins.stores.texts import Texts


class StoreOptions(TypedDict, total=False):
    """What every store takes beside its place; `MergedStore` says what each is."""

    merger: SequenceMerger | None
    embedder: Any
    chunker: Chunker | None
    contextual: bool
    half_life: float | timedelta | None
    pause: float | timedelta


class StoreBase:
    """A store that can be opened and closed; `MergedStore` says what the arguments are."""

    def __init__(
        self,
        backend: Backend,
        *,
        merger: SequenceMerger | None = None,
        embedder: Any = None,
        chunker: Chunker | None = None,
        contextual: bool = False,
        half_life: float | timedelta | None = None,
        pause: float | timedelta = PAUSE,
    ) -> None:
        self._backend = backend
        self._texts = Texts(embedder, chunker)
        self._background: ThreadPoolExecutor | None = None
        self._calibrating = RLock()
        self._state = StoreState(
            backend,
            merger,
            default=self._texts.default_merger,
            wants_contextual=contextual,
            embed=self._texts.embed,
            half_life=HalfLife.given(half_life),
            pause=checked_pause(pause),
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._backend.place!r}, collection={self._backend.collection!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database, once a calibration in the background is done; of no use afterwards."""
        if self._background is not None:
            self._background.shutdown()
        self._backend.close()

    @property
    def merger(self) -> SequenceMerger:
        """The merger at work, calibrated where the store is; opens the store."""
        return self._state.open().merger

    @property
    def embedder(self) -> Embedder:
        """The embedder at work; the bundled one is loaded here."""
        return self._texts.embedder

    @property
    def metadata_field(self) -> str | None:
        """The field of chunk points that holds metadata, for the database's own filters; None for no field.

        None where the metadata is beside everything else that a point says. Opens the store.
        """
        foreign = self._state.open().foreign
        return METADATA if foreign is None else foreign.edition.reading.metadata

    def _vector_of(self, query: str | VectorLike) -> Vector:
        """A query's raw vector, of the collection's dimension where there is one."""
        vector = self._texts.query(query)
        layout = self._state.layout
        if layout is not None and len(vector) != layout.dimension:
            raise DimensionError(
                f"The query has dimension {len(vector)}, and the collection {self._backend.collection!r} has "
                f"{layout.dimension}. Use the embedding model that it was made with."
            )
        return vector
