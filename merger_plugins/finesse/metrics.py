"""Ranking metrics by ir-measures; intervals and paired tests by scipy.

Figures are means over items (questions, windows, documents). Items of one group, such as the questions about
one document, are not independent: intervals resample whole groups, and tests flip whole groups.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from merger_plugins._extras import require
from merger_plugins.errors import DimensionError, EmptyInputError, InputError, NonFiniteError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

DEPTH: Final = 100
"""How many results of a question are looked at."""

RANKING: Final = {
    "ndcg@10": "nDCG@10",
    f"mrr@{DEPTH}": "RR",
    "recall@1": "R@1",
    "recall@10": "R@10",
}
"""Our names of the metrics, and those of ir-measures."""

LEVEL, DRAWS, FLIPS = 0.95, 2_000, 9_999


def ranking_metrics(
    scores: NDArray[Any], relevant: Bools, names: Iterable[str] = tuple(RANKING)
) -> dict[str, Floats]:
    """How well scores rank what answers each question.

    Ties count against the scores: among equals, what is not relevant comes first.

    Args:
        scores: (q, t) of t targets for q questions, larger is better; -inf for a target that is not found.
        relevant: (q, t) True where a target answers; at least one a question.
        names: of `RANKING`.

    Returns:
        (q,) of each metric, by name. Recall is over all right targets of a question.

    Raises:
        InputError: shapes that differ, a question without right target, NaN, or an unknown metric.
        MissingExtraError: ir-measures is not installed.
    """
    wanted = list(names)
    if unknown := [name for name in wanted if name not in RANKING]:
        raise InputError(f"{unknown[0]!r} is no metric of a ranking; choose from {', '.join(RANKING)}.")
    if scores.ndim != 2 or scores.shape != relevant.shape or not scores.size:
        raise DimensionError(
            f"scores have shape {scores.shape} and relevant has {relevant.shape}; both must be (q, t), and "
            "not empty."
        )
    if np.isnan(scores).any():
        raise NonFiniteError("scores hold NaN; a target that is not found has -inf.")
    if not relevant.any(axis=1).all():
        row = int(np.argmin(relevant.any(axis=1)))
        raise InputError(f"Question {row} of {len(scores)} has no right target; leave it out.")
    measures = require("ir_measures", extra="bench", purpose="Measuring rankings", package="ir-measures")
    parsed = {measures.parse_measure(RANKING[name]): name for name in wanted}
    best = np.lexsort((relevant, -scores), axis=1)[:, :DEPTH]
    run = {
        str(query): {
            str(target): float(DEPTH - place)  # ties are broken here, not by the names of the targets
            for place, target in enumerate(row.tolist())
            if scores[query, target] > -np.inf
        }
        for query, row in enumerate(best)
    }
    judged = {
        str(query): {str(target): 1 for target in np.flatnonzero(row).tolist()}
        for query, row in enumerate(relevant)
    }
    found = {name: np.zeros(len(scores)) for name in wanted}
    for metric in measures.iter_calc(list(parsed), judged, run):
        found[parsed[metric.measure]][int(metric.query_id)] = metric.value
    return found


def interval(
    values: NDArray[Any], groups: NDArray[Any] | None = None, *, seed: int = 0
) -> tuple[float, float] | None:
    """The 95% bootstrap interval (percentiles) of a mean.

    Args:
        values: (n,).
        groups: (n,) the group of each value; every value by itself for None.
        seed: of the resampling.

    Returns:
        Its ends; None where there is only one group, which tells nothing of the spread.

    Raises:
        InputError: no values, NaN, or groups of another number.
        MissingExtraError: scipy is not installed.
    """
    sums, sizes = _grouped(values, groups)
    if len(sums) < 2:
        return None
    stats = require("scipy.stats", extra="bench", purpose="An interval")
    found = stats.bootstrap(
        (sums, sizes),
        lambda total, size, axis: total.sum(axis=axis) / size.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=DRAWS,
        batch=256,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


@dataclass(frozen=True)
class Paired:
    """A paired comparison of two means.

    Attributes:
        difference: the first minus the second.
        low: lower end of its bootstrap interval; None where there is only one group.
        high: upper end.
        p: two-sided, of a permutation test that flips the signs of whole groups; None as above.
    """

    difference: float
    low: float | None
    high: float | None
    p: float | None


def paired(
    values: NDArray[Any],
    others: NDArray[Any],
    groups: NDArray[Any] | None = None,
    *,
    seed: int = 0,
) -> Paired:
    """Compare two measurements of the same items.

    Args:
        values: (n,).
        others: (n,) of the same items in the same order.
        groups: (n,), as in `interval`.
        seed: of both resamplings.

    Raises:
        InputError: numbers of items that differ; otherwise as `interval`.
        MissingExtraError: scipy is not installed.
    """
    first, second = np.asarray(values, np.float64), np.asarray(others, np.float64)
    if first.shape != second.shape:
        raise DimensionError(f"{first.shape} and {second.shape} values cannot be paired.")
    gains = first - second
    sums, sizes = _grouped(gains, groups)
    ends = interval(gains, groups, seed=seed)
    if ends is None:
        return Paired(float(gains.mean()), None, None, None)
    if not sums.any():
        return Paired(0.0, *ends, 1.0)
    stats = require("scipy.stats", extra="bench", purpose="A paired test")
    test = stats.permutation_test(
        (sums,),
        lambda total, axis: total.sum(axis=axis) / sizes.sum(),
        permutation_type="samples",
        vectorized=True,
        n_resamples=FLIPS,  # all of them where there are fewer
        batch=256,
        rng=np.random.default_rng(seed),
    )
    return Paired(float(gains.mean()), *ends, float(test.pvalue))


def _grouped(values: NDArray[Any], groups: NDArray[Any] | None) -> tuple[Floats, Floats]:
    """The sum of each group's values, and how many they are."""
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not len(array):
        raise EmptyInputError(f"values have shape {array.shape}; at least one is needed, as (n,).")
    if not np.isfinite(array).all():
        raise NonFiniteError(f"{int((~np.isfinite(array)).sum())} of {len(array)} values are not finite.")
    if groups is None:
        return array, np.ones(len(array))
    if np.shape(groups) != array.shape:
        raise DimensionError(f"groups have shape {np.shape(groups)}, and values {array.shape}.")
    number = np.unique(np.asarray(groups), return_inverse=True)[1]
    sums: Floats = np.bincount(number, array).astype(np.float64)
    return sums, np.bincount(number).astype(np.float64)
