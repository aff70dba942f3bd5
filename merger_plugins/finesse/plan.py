"""What a run of `bench` measures: settings, and the steps that follow from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from merger_plugins.errors import InputError
from merger_plugins.finesse.axes.associativity import TREES, associativity
from merger_plugins.finesse.axes.cost import REPEATS
from merger_plugins.finesse.axes.extrapolation import extrapolation
from merger_plugins.finesse.axes.fidelity import fidelity
from merger_plugins.finesse.axes.order import order
from merger_plugins.finesse.axes.retrieval import retrieval
from merger_plugins.finesse.axes.windows import PER_COUNT
from merger_plugins.finesse.collections import Level
from merger_plugins.finesse.laboratory import Laboratory, Measured
from merger_plugins.finesse.settings import FinesseSettings
from merger_plugins.finesse.tasks import TASKS, Task

AXES: Final = (
    "finesse",
    "retrieval",
    "fidelity",
    "extrapolation",
    "associativity",
    "order",
    "follow-ups",
    "robustness",
    "cost",
)

QUICK_TASKS: Final = ("wiki_en", "covidqa", "xquad_en", "convqa_trec_cast-follow-ups")

QUICK_RIVALS: Final = (
    "truncation",
    "mean",
    "centred mean",
    "whitened mean",
    "calibrated",
    "calibrated, tree",
    "synthesizer",
    "every chunk",
    "every chunk, fused",
)
"""Those that are taken where they can take part here."""

CLOSELY: Final = 2
"""Of the collections, the first so many that every axis looks at; retrieval looks at all."""

_COLLECTIONS = ("retrieval", "loose passages")


@dataclass(frozen=True)
class BenchSettings:
    """The sizes of a run.

    Attributes:
        quick: whether it is the quick run; for the record, the other fields say what it means.
        seed: of everything that is drawn.
        axes: of `AXES`.
        levels: that retrieval stores and finds; passages only of collections that have them.
        per_count: windows of each number of chunks, for fidelity and order.
        trees: for associativity.
        repeats: for cost.
        recut: whether robustness cuts texts anew, which embeds them again, and mixes languages, too.
        finesse: lengths and samples; smaller ones are taken where there are too few articles.
        native_chunks: FINESSE gives embedders of whole texts, which take long, sequences up to this length.
    """

    quick: bool = False
    seed: int = 0
    axes: tuple[str, ...] = AXES
    levels: tuple[Level, ...] = ("documents", "sections", "passages")
    per_count: int = PER_COUNT
    trees: int = TREES
    repeats: int = REPEATS
    recut: bool = True
    finesse: FinesseSettings = field(default_factory=FinesseSettings)
    native_chunks: int = 64

    def __post_init__(self) -> None:
        if unknown := [axis for axis in self.axes if axis not in AXES]:
            raise InputError(f"{unknown[0]!r} is no axis; choose from {', '.join(AXES)}.")

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


def settings(*, quick: bool, seed: int = 0, axes: Iterable[str] = ()) -> BenchSettings:
    """The sizes of the full or of the quick run.

    Args:
        quick: which of the two.
        seed: of everything that is drawn.
        axes: only these; all for none.

    Raises:
        InputError: an unknown axis.
    """
    chosen = tuple(axes) or AXES
    if not quick:
        return BenchSettings(seed=seed, axes=chosen, finesse=FinesseSettings(seed=seed))
    return BenchSettings(
        quick=True,
        seed=seed,
        axes=chosen,
        levels=("documents",),
        per_count=15,
        trees=50,
        repeats=3,
        recut=False,
        finesse=FinesseSettings(samples=10, timed=2, order_lengths=(4, 8), order_samples=3, seed=seed),
        native_chunks=16,
    )


def chosen_tasks(names: Sequence[str], *, quick: bool) -> list[Task]:
    """The tasks of these names, or those of a run without any.

    Raises:
        InputError: no such task.
    """
    for name in names:
        if name not in TASKS:
            raise InputError(
                f"{name!r} is no task, and no folder here with docs, queries and qrels; there are "
                f"{', '.join(TASKS)}."
            )
    return [TASKS[name] for name in names or (QUICK_TASKS if quick else TASKS)]


@dataclass(frozen=True)
class Planned:
    """A step to come.

    Attributes:
        name: of the step.
        axis: what it measures.
        task: on what.
        measure: does it.
    """

    name: str
    axis: str
    task: str
    measure: Callable[[], Measured]


def steps(chosen: BenchSettings, tasks: Sequence[Task], lab: Laboratory) -> list[Planned]:
    """The steps of a run, in their order.

    Every collection is measured on retrieval; the first two on the other axes as well, but cost on the first
    alone, and robustness, which stores it many times over, on the second (or the only one). FINESSE takes the
    first set of articles.
    """
    planned = [step for axis in AXES if axis in chosen.axes for step in _of_axis(axis, chosen, tasks, lab)]
    if not planned:
        raise InputError(
            f"None of the tasks {', '.join(task.name for task in tasks) or '(none)'} serves the axes "
            f"{', '.join(chosen.axes)}. Name other tasks or axes."
        )
    return planned


def _of_axis(axis: str, chosen: BenchSettings, tasks: Sequence[Task], lab: Laboratory) -> Iterator[Planned]:
    collections = [task for task in tasks if task.kind in _COLLECTIONS]
    closely = collections[:CLOSELY]
    seed = chosen.seed
    if axis == "finesse":
        scored = partial(lab.finesse, settings=chosen.finesse, native_chunks=chosen.native_chunks)
        for task in _of_kind("articles", tasks)[:1]:
            for rival in lab.scored:
                yield Planned(f"finesse, {rival.name}", axis, task.name, partial(scored, task, rival))
    elif axis == "retrieval":
        for task in collections:
            yield _on(axis, task, lab.on_levels(retrieval, task, chosen.levels, seed=seed))
    elif axis in ("fidelity", "order"):
        measure = fidelity if axis == "fidelity" else order
        for task in closely:
            yield _on(axis, task, lab.on(measure, task, per_count=chosen.per_count, seed=seed))
    elif axis == "extrapolation":
        for task in closely:
            yield _on(axis, task, lab.on(extrapolation, task, seed=seed))
    elif axis == "associativity":
        for task in closely:
            yield _on(axis, task, lab.on(associativity, task, trees=chosen.trees, seed=seed))
    elif axis == "cost":
        for task in closely[:1]:
            yield _on(axis, task, partial(lab.cost, task, repeats=chosen.repeats))
    elif axis == "follow-ups":
        for task in _of_kind("follow-ups", tasks):
            yield _on(axis, task, partial(lab.follow_ups, task, seed=seed))
    else:
        for task in closely[-1:]:
            yield _on(axis, task, partial(lab.robustness, task, seed=seed))
            if chosen.recut:
                yield _on(axis, task, partial(lab.recut, task, seed=seed), ": chunks")
            languages = _by_language(task, _of_kind("retrieval", tasks))
            if chosen.recut and len(languages) > 1:
                yield _on(axis, task, partial(lab.languages, languages, seed=seed), ": languages")


def _on(axis: str, task: Task, measure: Callable[[], Measured], suffix: str = "") -> Planned:
    return Planned(f"{axis}{suffix}, {task.name}", axis, task.name, measure)


def _by_language(first: Task, others: Sequence[Task]) -> list[Task]:
    """A task, and the first one of each other language."""
    found = {first.language: first}
    for task in others:
        found.setdefault(task.language, task)
    return list(found.values())


def _of_kind(kind: str, tasks: Sequence[Task]) -> list[Task]:
    return [task for task in tasks if task.kind == kind]


def task_record(task: Task) -> dict[str, Any]:
    """What a result file says of a task; of a file outside of the data folder its name alone."""
    record = asdict(task)
    record["files"] = [Path(file).name if Path(file).is_absolute() else file for file in task.files]
    return record
