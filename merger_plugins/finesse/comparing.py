"""Two result files beside each other, and a run against a stored baseline."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from merger_plugins.errors import ResultError
from merger_plugins.finesse.bench_results import BenchResult
from merger_plugins.finesse.metrics import paired
from merger_plugins.finesse.records import Record

JUDGED: Final = (
    "finesse",
    "retrieval",
    "fidelity",
    "extrapolation",
    "associativity",
    "follow-ups",
    "robustness",
)
"""Axes whose figures are the better, the higher. Order has no better; costs depend on the machine."""

MAIN: Final = {
    "finesse": ("finesse", "rss", "srs"),
    "retrieval": ("ndcg@10", "ndcg@10, sections", "ndcg@10, passages"),
    "fidelity": ("teacher cosine, through the merger",),
    "extrapolation": ("members found first",),
    "associativity": ("cosine with the whole, nodes",),
    "order": ("change when shuffled",),
    "follow-ups": ("mrr@100",),
    "robustness": ("ndcg@10",),
    "cost": ("processor ms a thousand merges",),
}
"""The metrics of each axis that tables show."""

CHANCE: Final = 0.05
_SAME = 1e-6

Subject = tuple[str, str, str, str, float | None]


@dataclass(frozen=True)
class Difference:
    """A figure in two runs.

    Attributes:
        axis: as in `Record`, and so are task, rival, metric, along and at; the rival is that of the second.
        first: its value in the first run.
        second: in the second.
        difference: the second less the first.
        low: lower end of the difference's 95% interval; None where the items cannot be paired.
        high: upper end.
        p: of a paired permutation test, two-sided; None as above.
        apart: whether the runs differ by more than chance: p below `CHANCE`, or, where there is no test, that
            the intervals of the two do not overlap; None where there are none, or where a figure depends on
            the machine.
    """

    axis: str
    task: str
    rival: str
    metric: str
    along: str
    at: float | None
    first: float
    second: float
    difference: float
    low: float | None
    high: float | None
    p: float | None
    apart: bool | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


@dataclass(frozen=True)
class Compared:
    """Two runs beside each other.

    Attributes:
        differences: of the figures that both have.
        notes: sentences on what only one of them has.
    """

    differences: tuple[Difference, ...]
    notes: tuple[str, ...]


def compare_runs(
    first: BenchResult,
    second: BenchResult,
    *,
    rivals: Sequence[str] = (),
    against: str | None = None,
    everything: bool = False,
) -> Compared:
    """The second run less the first.

    Args:
        first: a run.
        second: another one with the same settings and embedder.
        rivals: only these of the second run; all for none.
        against: the rival of the first run that each is compared with, within one run all but itself; its own
            namesake for None.
        everything: every figure, not the main ones alone; of a full run that takes minutes.

    Raises:
        ResultError: the runs have other settings, embedders or revisions of data, a rival that is not there,
            or nothing in common.
    """
    notes = [*check_alike(first, second)]
    _check_named(second, rivals, "second")
    _check_named(first, [against] if against else [], "first")
    same_run = first.run == second.run and first.records == second.records
    before = {(record.rival, _subject(record)): record for record in first.records}
    found, alone = [], set()
    for record in second.records if everything else main_figures(second.records):
        base, way = parted(record)
        if rivals and base not in rivals:
            continue
        other = before.get(((against or base) + way, _subject(record)))
        if other is None:
            alone.add(base)
        elif not (same_run and base == against):
            found.append(_difference(other, record))
    if not found:
        raise ResultError("The two files have no figure in common: they are of other rivals or other data.")
    if alone:
        notes.append(f"There are figures in the second file alone, of: {', '.join(sorted(alone))}.")
    return Compared(tuple(found), tuple(notes))


@dataclass(frozen=True)
class Fall:
    """A figure below its baseline.

    Attributes:
        record: the figure now.
        baseline: what it was.
    """

    record: Record
    baseline: Record

    def __str__(self) -> str:
        now, then = self.record, self.baseline
        below = then.value - now.value
        at = f" at {now.at:g} {now.along}" if now.along and now.at is not None else ""
        return (
            f"{now.axis}, {now.task}, {now.rival}: {now.metric}{at} is {now.value:.4f}, {below:.4f} below "
            f"the baseline's {then.value:.4f}, whose interval begins at {then.low:.4f}"
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return self.record.to_dict() | {"baseline": self.baseline.value, "baseline_low": self.baseline.low}


@dataclass(frozen=True)
class Judged:
    """A run against its baseline.

    Attributes:
        judged: figures that were compared.
        falls: those that fell below the baseline's interval.
        missing: sentences on figures of the baseline that this run should have, and has not.
        notes: sentences on rivals of the baseline that are not in this run.
    """

    judged: int
    falls: tuple[Fall, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]


def judge(result: BenchResult, baseline: BenchResult) -> Judged:
    """Whether a run is as good as a stored one.

    A figure falls when it is below the lower end of the baseline's 95% interval. Figures without an interval,
    and axes that are not in `JUDGED`, are not judged.

    Raises:
        ResultError: as `compare_runs`.
    """
    notes = [*check_alike(baseline, result)]
    now = {(record.rival, _subject(record)): record for record in result.records}
    names, known = set(_names(result)), set(_names(baseline))
    axes = [axis for axis in JUDGED if axis in result.run["settings"]["axes"]]
    count, falls, lost, absent = 0, [], 0, set()
    for then in baseline.records:
        if then.axis not in axes or then.low is None:
            continue
        base, _ = parted(then)
        if base in known and base not in names:
            absent.add(base)
            continue
        found = now.get((then.rival, _subject(then)))
        if found is None:
            lost += 1
            continue
        count += 1
        if found.value < then.low - _SAME:
            falls.append(Fall(found, then))
    if absent:
        notes.append(f"Of the baseline, this run leaves out: {', '.join(sorted(absent))}.")
    if not count:
        raise ResultError("The baseline has no figure in common with this run, so nothing was judged.")
    missing = [f"{lost} figures of the baseline were not measured: is a data set missing?"] if lost else []
    return Judged(count, tuple(falls), tuple(missing), tuple(notes))


def main_figures(records: Iterable[Record]) -> list[Record]:
    """What tables show: the main metrics, as a whole, or else at the largest setting of what was varied.

    Where a rival has no figure as a whole, as one that FINESSE could not measure at every length, the others
    are shown at its largest setting, too.
    """
    main = [record for record in records if record.metric in MAIN[record.axis]]
    whole = {(record.rival, _subject(record)[:3]) for record in main if not record.along}
    most: dict[tuple[str, tuple[str, ...]], float] = {}
    for record in main:
        key = record.rival, (*_subject(record)[:3], record.along)
        if record.along and (record.rival, key[1][:3]) not in whole:
            most[key] = max(most.get(key, -math.inf), record.at or 0.0)
    shown = {(*what, at) for (_, what), at in most.items()}
    return [
        record for record in main if not record.along or (*_subject(record)[:4], record.at or 0.0) in shown
    ]


def _differences(one: Mapping[str, Any], other: Mapping[str, Any], within: str = "") -> Iterator[str]:
    for name in sorted({*one, *other}):
        mine, others = one.get(name), other.get(name)
        if isinstance(mine, dict) and isinstance(others, dict):
            yield from _differences(mine, others, f"{within}{name}.")
        elif mine != others:
            yield f"{within}{name} is {mine} in one and {others} in the other"


def check_alike(first: BenchResult, second: BenchResult, *, seeds: bool = True) -> Iterator[str]:
    """Sentences on what may differ; refuses what may not.

    Args:
        first: a run.
        second: another one.
        seeds: whether these must be the same, too.

    Raises:
        ResultError: the runs have other settings, embedders or revisions of data.
    """
    for part in ("settings", "embedder"):
        mine, others = _told(first.run[part], seeds=seeds), _told(second.run[part], seeds=seeds)
        if ways := list(_differences(mine, others)):
            raise ResultError(
                f"The files have other {part}: {'; '.join(ways)}. Measure both with the same ones."
            )
    tasks = [{task["name"]: task["revision"] for task in run.run["tasks"]} for run in (first, second)]
    for name in tasks[0].keys() & tasks[1].keys():
        if tasks[0][name] != tasks[1][name]:
            raise ResultError(
                f"The files have other revisions of {name}: {tasks[0][name]} and {tasks[1][name]}. Measure "
                "both on the same data."
            )
    for one, other, which in ((tasks[0], tasks[1], "first"), (tasks[1], tasks[0], "second")):
        if only := sorted(set(one) - set(other)):
            yield f"In the {which} file alone: {', '.join(only)}."
    for run, which in ((first, "first"), (second, "second")):
        if not run.complete:
            yield f"The {which} run is not complete."


def _difference(first: Record, second: Record) -> Difference:
    where = (second.axis, second.task, second.rival, second.metric, second.along, second.at)
    values = (first.value, second.value, second.value - first.value)
    if second.axis == "cost":
        return Difference(*where, *values, None, None, None, None)
    if pairable(first, second):
        assert first.each is not None
        assert second.each is not None
        test = paired(second.each, first.each, second.groups)
        apart = None if test.p is None else test.p < CHANCE
        return Difference(*where, *values, test.low, test.high, test.p, apart)
    ends = (first.low, first.high, second.low, second.high)
    if None in ends:
        return Difference(*where, *values, None, None, None, None)
    low, high, other_low, other_high = (float(end) for end in ends if end is not None)
    return Difference(*where, *values, None, None, None, other_low > high or other_high < low)


def _told(part: Mapping[str, Any], *, seeds: bool) -> dict[str, Any]:
    """What must be the same: an embedder is told by its fingerprint, and each axis is compared by itself."""
    told = {name: value for name, value in part.items() if name not in ("axes", "name")}
    if seeds or "seed" not in told:
        return told
    del told["seed"]
    return {
        name: _told(value, seeds=False) if isinstance(value, Mapping) else value
        for name, value in told.items()
    }


def pairable(first: Record, second: Record) -> bool:
    """Whether the items of two records are the same."""
    if first.each is None or second.each is None or first.n != second.n:
        return False
    mine, others = first.groups, second.groups
    return (mine is None and others is None) or (
        mine is not None and others is not None and np.array_equal(mine, others)
    )


def _subject(record: Record) -> Subject:
    return record.axis, record.task, record.metric, record.along, record.at


def parted(record: Record) -> tuple[str, str]:
    """The rival, and what it did with a follow-up question: ``": history"`` or nothing."""
    if record.axis != "follow-ups":
        return record.rival, ""
    base, colon, way = record.rival.partition(": ")
    return base, colon + way


def _names(result: BenchResult) -> list[str]:
    return [rival["name"] for rival in result.run["rivals"]]


def _check_named(result: BenchResult, names: Sequence[str], which: str) -> None:
    known = _names(result)
    if unknown := [name for name in names if name not in known]:
        raise ResultError(f"The {which} file has no rival {unknown[0]!r}; it has {', '.join(known)}.")
