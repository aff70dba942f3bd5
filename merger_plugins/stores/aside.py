"""A workshop in a process of its own, so that taking points apart and merging keep no reader waiting.

The client of a database gives vectors as Python objects, which takes a core by itself. The other process is a
plain interpreter at the end of two pipes: nothing of the caller's program is imported there, and when the
pipes end, for whatever reason, so does it, and its temporary files with it.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Literal

from merger_plugins.errors import MergerError, StoreError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.calibrated import CalibratedMerger
from merger_plugins.mergers.calibration import CalibrationStatistics
from merger_plugins.mergers.mean import MeanMerger
from merger_plugins.stores.backend import Backend, Where
from merger_plugins.stores.extracting import Sheet
from merger_plugins.stores.foreign import Edition
from merger_plugins.stores.gathering import read
from merger_plugins.stores.records import PointIds
from merger_plugins.stores.workshop import Step, Taken, Task, Workshop

logger = logging.getLogger(__name__)

_WORTH_IT = 20_000
"""Points from which on a second process gains more than its start takes."""

_AHEAD = 2
"""Calls that may be under way before their answers are awaited."""

_PIPE = 1 << 20
"""Bytes that wait between the two, where the system lets us say so: half a page, or points of a few hundred
chunks, so that neither keeps the other waiting for every 64 kB."""

_GOODBYE = 10.0
"""Seconds that the other process has to remove its files."""

_CHILD = "from merger_plugins.stores.aside import serve; serve()"
_READY = b"ready\n"

_Answer = tuple[Literal["item", "done", "error"], Any]


def workshop_for(task: Task, mergers: Sequence[SequenceMerger], *, one_process: bool) -> Workshop | Aside:
    """A workshop in another process where that is of use and possible, else one in this process.

    Args:
        task: what it is set up for.
        mergers: that may be asked to merge; a process of its own needs those that are only arrays.
        one_process: whether to do without another process.

    Raises:
        InputError, StoreFullError: as `Workshop`.
    """
    reason = "one process was asked for" if one_process else _hindrance(task, mergers)
    if reason is None:
        try:
            return Aside(task)
        except OSError as error:
            reason = f"no other process could be started ({error})"
            logger.warning("Back-filling %r in this process: %s.", task.collection, reason)
    else:
        logger.debug("Back-filling %r in this process: %s.", task.collection, reason)
    return Workshop(task)


def _hindrance(task: Task, mergers: Sequence[SequenceMerger]) -> str | None:
    if task.expected < _WORTH_IT:
        return "the points are few"
    if any(type(merger) not in (CalibratedMerger, MeanMerger) for merger in mergers):
        return "a merger cannot be handed to another process"
    if _cores() < 2:
        return "there is one core"
    if not sys.executable or getattr(sys, "frozen", False):
        return "there is no Python interpreter to start"
    return None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Aside:
    """A `Workshop` in another process; the methods are the same.

    What goes wrong in `take` and `know` may come to light some calls later.

    Raises:
        OSError: the process cannot be started.
        InputError, StoreFullError: as `Workshop`.
        StoreError: the process came to an end; of any method.
    """

    def __init__(self, task: Task) -> None:
        self._owed = 0
        self._dimension = task.dimension
        self._folder: str | None = None
        paths = [path or str(Path.cwd()) for path in sys.path]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pipesize=_PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        try:
            if self._answers.read(len(_READY)) != _READY:
                raise OSError(f"{sys.executable} did not answer")
            self._folder = self._ask("open", task)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the process."""
        for pipe in (self._requests, self._answers):
            with suppress(OSError):  # a process that is gone takes nothing more
                pipe.close()
        try:
            self._process.wait(_GOODBYE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._folder is not None:  # is still there where the process was killed
            shutil.rmtree(self._folder, ignore_errors=True)

    def gather(self, backend: Backend, where: Where, progress: Callable[[int], object]) -> None:
        """As `Workshop.gather`; the other process takes in what this one reads."""
        read(backend, where, self._dimension, self.take, progress)

    def take(self, sheet: Sheet) -> None:
        """As `Workshop.take`."""
        self._post("take", sheet)

    def know(self, stored: Sequence[tuple[str, str, int]]) -> None:
        """As `Workshop.know`."""
        self._post("know", stored)

    def taken(self) -> Taken:
        """As `Workshop.taken`."""
        taken: Taken = self._ask("taken")
        return taken

    def settle(self) -> int:
        """As `Workshop.settle`."""
        ties: int = self._ask("settle")
        return ties

    def calibrating(self) -> Iterator[int]:
        """As `Workshop.calibrating`."""
        return self._each("calibrating")

    def statistics(self) -> CalibrationStatistics:
        """As `Workshop.statistics`."""
        statistics: CalibrationStatistics = self._ask("statistics")
        return statistics

    def merging(self, merger: SequenceMerger, edition: Edition, ids: PointIds) -> Iterator[Step]:
        """As `Workshop.merging`; what comes next is made while this is written."""
        return self._each("merging", merger, edition, ids)

    def gone(self) -> list[str]:
        """As `Workshop.gone`."""
        names: list[str] = self._ask("gone")
        return names

    def sizes(self, documents: Sequence[str]) -> list[int]:
        """As `Workshop.sizes`."""
        sizes: list[int] = self._ask("sizes", documents)
        return sizes

    def _post(self, name: str, *arguments: Any) -> None:
        """A call whose answer is awaited later."""
        self._send(name, arguments, owed=_AHEAD - 1)
        self._owed += 1

    def _ask(self, name: str, *arguments: Any) -> Any:
        self._send(name, arguments)
        _, value = self._answer()
        return value

    def _each(self, name: str, *arguments: Any) -> Iterator[Any]:
        self._send(name, arguments)
        while True:
            kind, value = self._answer()
            if kind == "done":
                return
            yield value

    def _send(self, name: str, arguments: tuple[Any, ...], *, owed: int = 0) -> None:
        """Call, once no more than this many answers are owed."""
        while self._owed > owed:
            self._owed -= 1
            self._answer()
        try:
            _put(self._requests, (name, arguments))
        except OSError as error:
            raise self._ended() from error

    def _answer(self) -> _Answer:
        try:
            answer: _Answer = pickle.load(self._answers)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise self._ended() from error
        if answer[0] == "error":
            raise answer[1]
        return answer

    def _ended(self) -> StoreError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        return StoreError(
            f"The process that merges for a back-fill came to an end (exit status {self._process.poll()}; "
            "negative is a signal, -9 often a lack of memory). What was written stays; repeat the call, and "
            "it goes on from there, or pass one_process=True (--one-process)."
        )


def _put(pipe: Any, message: Any) -> None:
    pickle.dump(message, pipe, pickle.HIGHEST_PROTOCOL)
    pipe.flush()


def serve() -> None:
    """The other process: calls come from the standard input, answers go to the standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller, who gets it too, decides
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else may write there
    answers.write(_READY)
    answers.flush()
    with suppress(EOFError, BrokenPipeError):  # the caller is gone
        name, (task,) = pickle.load(requests)
        try:
            workshop = Workshop(task)
        except Exception as error:  # noqa: BLE001 - the caller raises it
            _put(answers, ("error", _portable(error)))
            return
        with closing(workshop):
            _put(answers, ("done", workshop.spool.folder))
            while True:
                name, arguments = pickle.load(requests)
                for answer in _answers(workshop, name, arguments):
                    _put(answers, answer)


def _answers(workshop: Workshop, name: str, arguments: tuple[Any, ...]) -> Iterator[_Answer]:
    try:
        result = getattr(workshop, name)(*arguments)
        if isinstance(result, Iterator):
            for item in result:
                yield "item", item
            result = None
    except Exception as error:  # noqa: BLE001 - the caller raises it
        yield "error", _portable(error)
    else:
        yield "done", result


def _portable(error: Exception) -> Exception:
    """An error of ours as it is; of any other what is known of it, as its class may not travel."""
    if isinstance(error, MergerError):
        return error
    return RuntimeError("".join(traceback.format_exception(error)))
