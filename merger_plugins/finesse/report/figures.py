"""What the page has to know of figures: what they are called, whether less is better, what limits them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from merger_plugins.finesse.metrics import DEPTH
from merger_plugins.finesse.records import Record
from merger_plugins.finesse.rivals import LIMIT, orthogonal_limit
from merger_plugins.finesse.scoring import (
    ORDER_SCALE,
    Gap,
    bottom_up,
    finesse,
    robust_separation,
    top_down,
)

ALONG: Final = "chunks"
MEDIANS: Final = ", medians"

LABELS: Final = {
    "ndcg@10": "nDCG@10",
    f"mrr@{DEPTH}": f"MRR@{DEPTH}",
    "finesse": "FINESSE",
    "rss": "RSS, (td + bu) × 500",
    "td": "td, Top-Down",
    "bu": "bu, Bottom-Up",
    "srs": f"SRS, order × {ORDER_SCALE:.0f}",
}
"""What the page calls figures whose names are short, before any comma."""

_LOW_IS_GOOD = re.compile(r"^(processor )?ms |^MB |^vectors a document|lost")
_POINTS = 24


def labels(metrics: Iterable[str]) -> dict[str, str]:
    """What the page calls each figure."""
    found = {}
    for metric in metrics:
        name, mark, rest = metric.partition(", ")
        found[metric] = LABELS.get(name, name) + mark + rest
    return found


def low_is_good(metric: str) -> bool:
    """Whether less of a figure is better: times, space, losses."""
    return _LOW_IS_GOOD.search(metric) is not None


def limits(records: Iterable[Record]) -> list[Record]:
    """What n orthogonal chunks allow, for figures measured over chunks; enough points to draw a curve.

    A vector's mean cosine with n orthogonal chunks is at most 1/√n, which their mean reaches. Of FINESSE's
    figures the limit is what that mean scores.
    """
    lengths: dict[tuple[str, str, str], set[float]] = {}
    for record in records:
        if record.along == ALONG and record.at is not None:
            lengths.setdefault((record.axis, record.task, record.metric), set()).add(record.at)
    found = []
    for (axis, task, metric), measured in lengths.items():
        for length in _grid(measured):
            value = limit_of(metric, length)
            if value is not None:
                found.append(Record(axis, task, LIMIT, metric, value, None, None, 0, ALONG, float(length)))
    return found


def _orthogonal_similarities(length: int) -> NDArray[np.float64]:
    """(n, n): what `scoring.similarities` gives for the mean of orthogonal chunks."""
    rows = np.arange(1, length + 1, dtype=np.float64)[:, None] ** -0.5
    return np.tril(np.broadcast_to(rows, (length, length)))


def limit_of(metric: str, length: int) -> float | None:
    """What the mean of so many orthogonal chunks has of this figure; None for one without such a limit."""
    if metric == "member cosine":
        return orthogonal_limit(length)
    name, medians, _ = metric.partition(MEDIANS)
    if name not in ("finesse", "rss", "td", "bu") or length < 3:
        return None
    gap: Gap = "q2q2" if medians else "q1q3"
    matrix = _orthogonal_similarities(length)
    td, bu = top_down(matrix, gap), bottom_up(matrix, gap)
    return {"td": td, "bu": bu, "finesse": finesse(td, bu), "rss": robust_separation(td, bu)}[name]


def _grid(measured: set[float]) -> list[int]:
    """Lengths to draw a limit at: those measured, and some between."""
    between = np.geomspace(max(min(measured), 1), max(measured), _POINTS).round().astype(int)
    return sorted({*(int(length) for length in measured), *between.tolist()})
