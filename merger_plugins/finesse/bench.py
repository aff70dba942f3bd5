"""One run of any mergers on every axis, beside their rivals; see `bench_results` for what it writes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from merger_plugins._extras import require
from merger_plugins.errors import EmptyInputError, InputError, ResultError
from merger_plugins.finesse.bench_results import BenchResult, Step, load_bench, save_bench
from merger_plugins.finesse.environment import environment
from merger_plugins.finesse.files import document_hash
from merger_plugins.finesse.laboratory import Laboratory
from merger_plugins.finesse.naming import Entry, entry
from merger_plugins.finesse.plan import QUICK_RIVALS, BenchSettings, Planned, steps, task_record
from merger_plugins.finesse.rivals import Rival, rivals, unfit
from merger_plugins.finesse.tasks import Source, Task

Progress = Callable[[str, int, int, Step | None], None]
"""Told a step's name, how many are done, how many there are, and the step once it is measured or was kept."""

_TOO_SMALL = (InputError, EmptyInputError)
"""What an axis raises, exactly, of data that it cannot draw from; errors of mergers are subclasses."""


def chosen_rivals(
    asked: Sequence[Rival],
    dimension: int,
    *,
    quick: bool,
    names: Iterable[str] = (),
    ours: bool = True,
) -> list[Entry]:
    """The rivals of a run: those that the user asked for first.

    Args:
        asked: by the user, with `rival_named` or `native_named`.
        dimension: of the base embedder's vectors.
        quick: whether the few of the quick run are put beside them, or all.
        names: put these beside them instead.
        ours: whether the base embedder is the bundled one, for which bundled models are.

    Raises:
        DimensionError: a merger that was asked for has another dimension.
        InputError: two rivals of one name, or an unknown name.
    """
    own = {rival.name: rival for rival in asked}
    if len(own) < len(asked):
        raise InputError(f"Two of {', '.join(rival.name for rival in asked)} have one name. Rename one.")
    if chosen := list(names):
        beside = rivals(chosen)
    else:
        absent = unfit(dimension, ours=ours)
        fit = (rival for rival in rivals() if rival.name not in absent)
        beside = [rival for rival in fit if not quick or rival.name in QUICK_RIVALS]
    others = [rival for rival in beside if own.get(rival.name) is not rival]
    if double := [rival.name for rival in others if rival.name in own]:
        raise InputError(f"{double[0]!r} is the name of a known rival; give the merger another one.")
    return [
        *(entry(rival, dimension, asked=True) for rival in asked),
        *(entry(rival, dimension, asked=False) for rival in others),
    ]


def left_out(entries: Sequence[Entry], source: Source, *, quick: bool) -> list[str]:
    """Sentences on the known rivals that such a base embedder, or this installation, leaves out.

    Args:
        entries: of the run.
        source: with the base embedder.
        quick: as `chosen_rivals` takes it.
    """
    there = {entry.rival.name for entry in entries}
    absent = unfit(dimension_of(source), ours=source.embed.bundled)
    return [
        f"skipped: the rival {name}: {reason}"
        for name, reason in absent.items()
        if name not in there and (not quick or name in QUICK_RIVALS)
    ]


class Bench:
    """A run that is planned.

    Args:
        settings: the sizes.
        tasks: all whose files are there.
        source: where they are, and the base embedder.
        entries: the rivals.
        skipped: sentences on what is left out from the start.

    Attributes:
        run: what a resumed run must share.
        laboratory: loaded data and rivals.
        skipped: what is left out, axes that no task serves included.
        planned: the steps.

    Raises:
        InputError: no task serves the axes.
        MissingExtraError: scipy or ir-measures is not installed.
    """

    def __init__(
        self,
        settings: BenchSettings,
        tasks: Sequence[Task],
        source: Source,
        entries: Sequence[Entry],
        skipped: Sequence[str] = (),
    ) -> None:
        require("scipy", extra="bench", purpose="The benchmark")  # better missed now than after an hour
        require("ir_measures", extra="bench", purpose="The benchmark", package="ir-measures")
        self.settings, self.tasks = settings, tuple(tasks)
        self.laboratory = Laboratory(source, entries)
        self.planned = steps(settings, tasks, self.laboratory)
        served = {planned.axis for planned in self.planned}
        unserved = [
            f"skipped: {axis}: no data set of the kind it needs"
            for axis in settings.axes
            if axis not in served
        ]
        self.skipped = (*skipped, *unserved)
        embed = source.embed
        self.run: dict[str, Any] = {
            "settings": settings.to_dict(),
            "rivals": [
                {
                    "name": found.rival.name,
                    "about": found.rival.about,
                    "fingerprint": found.fingerprint,
                    "output": found.output,
                    "asked": found.asked,
                }
                for found in entries
            ],
            "tasks": [task_record(task) for task in tasks],
            "embedder": {
                "name": embed.name,
                "fingerprint": embed.fingerprint,
                "dimension": dimension_of(source),
                "context": embed.context,
            },
            **environment(),
        }

    def path(self, folder: Path) -> Path:
        """Where a run like this one is kept: the same for the same settings, rivals, data and versions."""
        kind = "quick" if self.settings.quick else "full"
        return folder / f"{kind}-{document_hash(self.run)[:8]}.json"

    def measure(
        self, path: Path, progress: Progress = lambda *_: None, *, fresh: bool = False
    ) -> BenchResult:
        """Measure what is not measured yet.

        Args:
            path: the result file, written after each step. The steps of a file that is there are kept.
            progress: told before and after each step.
            fresh: measure everything, and write over a file that is there.

        Raises:
            ResultError: the file was edited, or is that of another run.
        """
        result = self._resumed(path) if path.exists() and not fresh else BenchResult(self.run, self.skipped)
        for done, planned in enumerate(self.planned):
            if planned.name not in result.steps:
                progress(planned.name, done, len(self.planned), None)
                self._measure(planned, result)
                save_bench(result, path)
            progress(planned.name, done + 1, len(self.planned), result.steps[planned.name])
        if not result.complete:
            result.complete = True
            save_bench(result, path)
        return result

    def _measure(self, planned: Planned, result: BenchResult) -> None:
        began = time.perf_counter()
        try:
            measured = planned.measure()
        except _TOO_SMALL as error:
            if type(error) not in _TOO_SMALL:
                raise
            reason = f"skipped: {planned.name}: {error}"
            result.steps[planned.name] = Step(
                planned.axis, planned.task, time.perf_counter() - began, skipped=reason
            )
            return
        result.steps[planned.name] = Step(
            planned.axis, planned.task, time.perf_counter() - began, tuple(measured.records)
        )
        result.finesse |= measured.finesse
        held = peak_megabytes()
        result.peak_megabytes = max(filter(None, (held, result.peak_megabytes)), default=None)

    def _resumed(self, path: Path) -> BenchResult:
        try:
            result = load_bench(path)
        except ResultError as error:
            raise ResultError(f"{error} To measure all of it again: --fresh, or delete the file.") from error
        for part, value in self.run.items():
            if result.run.get(part) != value:
                raise ResultError(
                    f"{path} is the result of another run: its {part} differ from this run's. Name another "
                    "file, or delete it."
                )
        return result


def dimension_of(source: Source) -> int:
    """The dimension of the base embedder's vectors."""
    known = getattr(source.embed.embedder, "dimension", None)
    return int(known) if known else int(source.embed.queries("dimension", ["one"]).shape[1])


def peak_megabytes() -> float | None:
    """The most memory that this process has held; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(held / (1e6 if sys.platform == "darwin" else 1e3), 1)
