"""What a measurement gives: plain records, and comparisons between them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merger_plugins.errors import InputError
from merger_plugins.finesse.metrics import interval, paired


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


@dataclass(frozen=True)
class Comparison:
    """A record against another one of the same items.

    Attributes:
        record: what is compared.
        against: the rival it is compared with.
        difference: the record's value minus the other's.
        low: lower end of the difference's 95% interval; None where there is none.
        high: upper end.
        p: of a paired permutation test, two-sided.
    """

    record: Record
    against: str
    difference: float
    low: float | None
    high: float | None
    p: float | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it: the record's fields with those of the comparison."""
        own = {name: getattr(self, name) for name in ("against", "difference", "p")}
        return self.record.to_dict() | own | {"difference_low": self.low, "difference_high": self.high}


def compare(record: Record, other: Record, *, seed: int = 0) -> Comparison:
    """Compare two rivals' records item by item.

    Raises:
        InputError: they are not about the same items, or do not have them.
        MissingExtraError: scipy is not installed.
    """
    if _subject(record) != _subject(other) or record.n != other.n:
        raise InputError(f"{record} and {other} are not about the same items.")
    if record.each is None or other.each is None:
        raise InputError(f"{record} has no items of its own: only a fresh measurement can be compared.")
    found = paired(record.each, other.each, record.groups, seed=seed)
    return Comparison(record, other.rival, found.difference, found.low, found.high, found.p)


def compare_all(records: Iterable[Record], against: str, *, seed: int = 0) -> list[Comparison]:
    """Compare every record with the record of one rival about the same items, where there is one."""
    known = list(records)
    bases = {_subject(record): record for record in known if record.rival == against}
    return [
        compare(record, base, seed=seed)
        for record in known
        if (base := bases.get(_subject(record))) is not None
        and record is not base
        and record.n == base.n
        and record.each is not None
        and base.each is not None
    ]


def _subject(record: Record) -> tuple[Any, ...]:
    return record.axis, record.task, record.metric, record.along, record.at
