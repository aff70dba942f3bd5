"""One back-fill of a collection at a time, wherever it runs."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Self
from uuid import uuid4

from merger_plugins.errors import ConflictError, StoreError
from merger_plugins.stores.backend import Backend, Swap
from merger_plugins.stores.commits import PATIENCE, sealed
from merger_plugins.stores.foreign import Foreign
from merger_plugins.stores.records import META_ID
from merger_plugins.stores.settings import Settings

_PROCESS = uuid4().hex
_ACTIVE: set[str] = set()
"""The holders in this process that are at work."""

_BEAT = 2.0
"""Seconds after which a holder says again that it is at work."""

_CERTAINTY = 0.3
"""Seconds after which a holder looks whether it is still the one, where others may be as fast."""

_POLL = 0.5
_RETRIES = (0.3, 1.0)


class Hold:
    """What a back-fill writes into the settings, which name it as the holder of the merged vectors.

    Every writing of the settings is a swap from the version that was read: whoever loses it has not seen what
    is there, and stops. A holder of this process that is not at work any more, or of another one where only
    this process can write, is dead; otherwise it is once its settings have not moved for `PATIENCE` seconds.

    Args:
        backend: the database.
        settings: as they are; None where there are none.

    Raises:
        ConflictError: somebody else holds them, and is at work.
    """

    def __init__(self, backend: Backend, settings: Settings | None) -> None:
        self.settings = settings
        self.held = False
        self._backend = backend
        self._name = f"{_PROCESS}.{uuid4().hex}"
        self._beaten = 0.0
        holder = _holder(settings)
        if holder is not None and self._is_alive(holder):
            raise ConflictError(
                f"Another back-fill of {backend.collection!r} is at work. Wait until it is done, and repeat "
                "this one if there is more to merge."
            )

    def __enter__(self) -> Self:
        _ACTIVE.add(self._name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.held and self.settings is not None:
                with suppress(StoreError):  # of two errors, the first one says what happened
                    self.save(self.settings, held=False)
        finally:
            _ACTIVE.discard(self._name)

    def save(self, settings: Settings, *, held: bool = True) -> None:
        """Write the settings, as the holder or for the last time.

        Raises:
            ConflictError: others changed them since they were read.
        """
        before = None if self.settings is None else self.settings.version
        foreign = {**(settings.foreign or {}), "holder": self._name if held else None}
        now = replace(settings, foreign=foreign, version=(before or 0) + 1)
        swap = Swap(sealed(now.point(), now.version), before)
        if not self._is_swapped(swap) or not (self.held or self._is_certain(swap)):
            self.held = False
            raise ConflictError(
                f"Another back-fill of {self._backend.collection!r} wrote since this one began, so that this "
                "one stopped. Wait until that is done, and repeat the call: it goes on from there."
            )
        self.settings, self.held, self._beaten = now, held, time.monotonic()

    def beat(self) -> None:
        """Say that this one is at work, and see that it still is the holder; to be called before a writing.

        Raises:
            ConflictError: as `save`.
        """
        assert self.settings is not None
        if not self.held or time.monotonic() - self._beaten > _BEAT:
            self.save(self.settings)

    def _is_swapped(self, swap: Swap) -> bool:
        """Whether the settings were swapped; a server that is making the collection may fail at first."""
        for wait in () if self.held or self._backend.exclusive else _RETRIES:
            try:
                return self._backend.swap([swap])[0]
            except StoreError:
                time.sleep(wait)
        return self._backend.swap([swap])[0]

    def _is_certain(self, swap: Swap) -> bool:
        """Whether settings that were swapped in stay; not every server decides between two at one moment."""
        if self._backend.exclusive:
            return True
        time.sleep(_CERTAINTY)
        stored = self._backend.fetch("merged", [META_ID], payload=["token"])
        return META_ID in stored and stored[META_ID].payload.get("token") == swap.point.payload["token"]

    def _is_alive(self, holder: str) -> bool:
        if holder.partition(".")[0] == _PROCESS:
            return holder in _ACTIVE
        if self._backend.exclusive:
            return False
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            time.sleep(_POLL)
            stored = self._backend.fetch("merged", [META_ID])
            if not stored or Settings.of(stored[META_ID]) != self.settings:
                return True
        return False


def _holder(settings: Settings | None) -> str | None:
    foreign = None if settings is None else Foreign.of(settings.foreign, "")
    return None if foreign is None else foreign.holder
