"""How writers of one document get out of each other's way: versions, tokens, locks and patience."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from uuid import uuid4
from weakref import WeakValueDictionary

from merger_plugins.errors import ConflictError
from merger_plugins.stores.backend import Backend, Payload, Point, Swap

PATIENCE = 30.0
"""Seconds after which an operation that loses to other writers again and again gives up."""

MOMENT = 0.02
"""Seconds that another writer is given to complete what it began, before it is done for it."""

ABANDONED = 1.0
"""Seconds after which what another writer began, and nobody can complete for it, counts as left behind."""

_LONGEST_WAIT = 0.25


def version_of(point: Point) -> int:
    """The version of a stored point; 0 where it has none."""
    version: int = point.payload.get("version", 0)
    return version


def next_version(*points: Point) -> int:
    """A version that neither these points nor deleted ones have reached: microseconds since 1970, or more."""
    return max([time.time_ns() // 1_000, *(version_of(point) + 1 for point in points)])


def stamped(points: Iterable[Point], version: int) -> list[Point]:
    """The points with a version."""
    return [
        Point(point.id, {**point.payload, "version": version}, point.vector, point.contextual)
        for point in points
    ]


def sealed(point: Point, version: int, changes: Payload | None = None) -> Point:
    """A point to be swapped in: with a version, a token of its own, and these changes of its payload."""
    payload = {**point.payload, **(changes or {}), "version": version, "token": uuid4().hex}
    return Point(point.id, payload, point.vector, point.contextual)


def swapped(backend: Backend, point: Point, before: Point | None) -> bool:
    """Put a point in the place of another; returns whether that was still there."""
    return backend.swap([Swap(point, None if before is None else version_of(before))])[0]


class _DocumentLock:
    def __init__(self) -> None:
        self.lock = threading.RLock()


_LOCKS: WeakValueDictionary[tuple[str, str, str], _DocumentLock] = WeakValueDictionary()
_LOCKS_LOCK = threading.Lock()


@contextmanager
def alone(backend: Backend, document_ids: Iterable[str]) -> Iterator[None]:
    """Let the other threads that write these documents wait."""
    if not backend.queued:
        yield
        return
    with ExitStack() as held:
        for document_id in sorted(set(document_ids)):
            with _LOCKS_LOCK:
                key = (backend.place, backend.collection, document_id)
                lock = _LOCKS.get(key)
                if lock is None:
                    lock = _LOCKS[key] = _DocumentLock()
            lock.lock.acquire()
            held.callback(_release, lock)
        yield


def _release(lock: _DocumentLock) -> None:
    lock.lock.release()


class Tries:
    """How often, and for how long, one operation has met other writers.

    Args:
        backend: where.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._until = time.monotonic() + PATIENCE
        self._wait = 0.002
        self._seen: dict[str, tuple[int, float]] = {}

    def lost(self, document_id: str) -> None:
        """Wait a little, longer every time, because another writer was faster.

        Raises:
            ConflictError: that has gone on for `PATIENCE` seconds.
        """
        if time.monotonic() > self._until:
            raise ConflictError(
                f"Other writers changed {document_id!r} again and again for {PATIENCE:.0f} seconds, so that "
                "nothing was written. Repeat the call, or let fewer writers share one document."
            )
        time.sleep(random.uniform(0, self._wait))
        self._wait = min(2 * self._wait, _LONGEST_WAIT)

    def waited(self, unfinished: Point, seconds: float) -> bool:
        """Wait a little for the writer of an unfinished change; False once it has not moved for `seconds`.

        Where no other process writes, and the document's lock is held, such a writer is dead.
        """
        if self._backend.exclusive:
            return False
        now, version = time.monotonic(), version_of(unfinished)
        known = self._seen.get(unfinished.id)
        if known is None or known[0] != version:
            self._seen[unfinished.id] = (version, now)
        elif now - known[1] >= seconds:
            return False
        time.sleep(random.uniform(0.2, 1) * min(seconds, _LONGEST_WAIT))
        return True
