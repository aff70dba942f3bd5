"""Do two runs put the rivals in the same order, such as runs with two seeds?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from merger_plugins._extras import require
from merger_plugins.errors import ResultError
from merger_plugins.finesse.bench_results import BenchResult
from merger_plugins.finesse.comparing import CHANCE, JUDGED, check_alike, main_figures, pairable, parted
from merger_plugins.finesse.metrics import paired
from merger_plugins.finesse.records import Record


@dataclass(frozen=True)
class Ranking:
    """The rivals of two runs by one figure.

    Attributes:
        axis: as in `Record`, and so are task, metric, along and at.
        first: names in the first run, the best one first; those that both runs have.
        second: the same in the second run.
        tau: Kendall's rank correlation, 1 for the same order; None where all are alike.
        swapped: pairs of rivals that are in another order.
        contradicted: those of them that each run tells apart by more than chance.
    """

    axis: str
    task: str
    metric: str
    along: str
    at: float | None
    first: tuple[str, ...]
    second: tuple[str, ...]
    tau: float | None
    swapped: tuple[tuple[str, str], ...]
    contradicted: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


@dataclass(frozen=True)
class Rankings:
    """Two runs by all of their main figures.

    Attributes:
        rankings: of each figure that both have for two rivals at least.
        notes: sentences on what only one of them has.
    """

    rankings: tuple[Ranking, ...]
    notes: tuple[str, ...]


def compare_rankings(first: BenchResult, second: BenchResult, *, rivals: Sequence[str] = ()) -> Rankings:
    """The order of the rivals in two runs, which may have other seeds, by their main figures.

    Args:
        first: a run.
        second: another one with the same settings, seeds aside, and embedder.
        rivals: only these; all for none.

    Raises:
        ResultError: the runs have other settings, embedders or revisions of data, or nothing in common.
        MissingExtraError: scipy is not installed.
    """
    notes = tuple(check_alike(first, second, seeds=False))
    mine, others = _by_figure(first), _by_figure(second)
    found = []
    for figure in mine.keys() & others.keys():
        both = [record for name, record in mine[figure].items() if name in others[figure]]
        names = [record.rival for record in both if not rivals or parted(record)[0] in rivals]
        if len(names) > 1:
            pairs = [(mine[figure][name], others[figure][name]) for name in names]
            found.append(_ranking(*figure, pairs))
    if not found:
        raise ResultError("The two files have no figure of the same two rivals in common.")
    order = list(mine)
    found.sort(key=lambda each: order.index((each.axis, each.task, each.metric, each.along, each.at)))
    return Rankings(tuple(found), notes)


_Figure = tuple[str, str, str, str, float | None]


def _by_figure(result: BenchResult) -> dict[_Figure, dict[str, Record]]:
    """The records of each main figure of the axes that have a better, by rival."""
    found: dict[_Figure, dict[str, Record]] = {}
    for record in main_figures(result.records):
        if record.axis in JUDGED:
            figure = record.axis, record.task, record.metric, record.along, record.at
            found.setdefault(figure, {})[record.rival] = record
    return found


def _ranking(
    axis: str, task: str, metric: str, along: str, at: float | None, pairs: Sequence[tuple[Record, Record]]
) -> Ranking:
    firsts, seconds = ([pair[run] for pair in pairs] for run in (0, 1))
    swapped, contradicted = [], []
    for (one, then), (other, later) in combinations(pairs, 2):
        if (one.value - other.value) * (then.value - later.value) < 0:
            swapped.append((one.rival, other.rival))
            if _apart(one, other) and _apart(then, later):
                contradicted.append((one.rival, other.rival))
    stats = require("scipy.stats", extra="bench", purpose="Comparing rankings")
    tau = float(stats.kendalltau([r.value for r in firsts], [r.value for r in seconds]).statistic)
    return Ranking(
        axis,
        task,
        metric,
        along,
        at,
        _ordered(firsts),
        _ordered(seconds),
        None if np.isnan(tau) else tau,
        tuple(swapped),
        tuple(contradicted),
    )


def _ordered(records: Sequence[Record]) -> tuple[str, ...]:
    return tuple(record.rival for record in sorted(records, key=lambda record: -record.value))


def _apart(one: Record, other: Record) -> bool:
    """Whether a run tells two rivals apart by more than chance."""
    if not pairable(one, other) or one.each is None or other.each is None:
        return False
    p = paired(one.each, other.each, one.groups).p
    return p is not None and p < CHANCE
