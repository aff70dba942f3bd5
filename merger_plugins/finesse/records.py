"""What a measurement gives: plain records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merger_plugins.finesse.metrics import interval


@dataclass(frozen=True)
class Record:
    """One figure.

    Attributes:
        axis: what kind of quality it is about.
        task: the name of the data.
        rival: what was measured.
        metric: the name of the figure.
        value: the figure; a mean over items unless the metric's name says otherwise.
        low: lower end of its 95% interval; None where there is none.
        high: upper end.
        n: items.
        along: what was varied, such as ``"chunks"``; empty for nothing.
        at: its value.
        each: (n,) the items' own values, from which two records are compared; not part of `to_dict`.
        groups: (n,) which items belong together; None for each by itself.
    """

    axis: str
    task: str
    rival: str
    metric: str
    value: float
    low: float | None
    high: float | None
    n: int
    along: str = ""
    at: float | None = None
    each: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)
    groups: NDArray[Any] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        axis: str,
        task: str,
        rival: str,
        metric: str,
        each: NDArray[Any],
        groups: NDArray[Any] | None = None,
        *,
        along: str = "",
        at: float | None = None,
        seed: int = 0,
    ) -> Record:
        """The mean of items with its interval.

        Raises:
            InputError: as `interval`.
            MissingExtraError: scipy is not installed.
        """
        values = np.asarray(each, np.float64)
        low, high = interval(values, groups, seed=seed) or (None, None)
        value = float(values.mean())
        return cls(axis, task, rival, metric, value, low, high, len(values), along, at, values, groups)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in _ITEMS}


_ITEMS = ("each", "groups")
