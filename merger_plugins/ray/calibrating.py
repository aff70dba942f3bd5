"""Calibration statistics as an aggregation: parts are gathered wherever their rows are, then added up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from ray.data import Dataset
from ray.data.aggregate import AggregateFnV2

from merger_plugins.mergers.calibration import CalibrationStatistics
from merger_plugins.ray.engine import ATTEMPTS_MORE, Shared, resident
from merger_plugins.ray.rows import Extent
from merger_plugins.ray.sequences import Sorted

_GATHERED = "gathered"


@dataclass
class Gathering:
    """Statistics of some rows, and the sums of long documents that others may have parts of.

    Attributes:
        statistics: without the sums below.
        open: document -> the (d,) sum of its unit vectors so far, and their number.
    """

    statistics: CalibrationStatistics
    open: dict[Any, tuple[NDArray[np.float64], int]] = field(default_factory=dict)

    def __add__(self, other: Gathering) -> Gathering:
        both = Gathering(self.statistics + other.statistics, dict(self.open))
        for name, (total, count) in other.open.items():
            before, counted = both.open.get(name, (0.0, 0))
            both.open[name] = (before + total, counted + count)
        return both

    def completed(self) -> CalibrationStatistics:
        """The statistics of all rows, once all are in."""
        made = self.statistics.copy()
        for total, count in self.open.values():
            made.end_sequence(total, count)
        return made


class _Sum(AggregateFnV2):
    """Adds up a column of gatherings, wherever Ray finds it best."""

    def __init__(self) -> None:
        super().__init__(_GATHERED, lambda: None, on=_GATHERED, ignore_nulls=True)

    def aggregate_block(self, block: pa.Table) -> Gathering | None:
        gathered = block.column(_GATHERED).to_pylist()
        return _added(gathered)

    def combine(self, current_accumulator: Gathering | None, new: Gathering | None) -> Gathering | None:
        return _added([current_accumulator, new])


def _added(gathered: list[Gathering | None]) -> Gathering | None:
    known = [one for one in gathered if one is not None]
    total = known[0] if known else None
    for one in known[1:]:
        assert total is not None
        total = total + one
    return total


def gathered(parts: Dataset, extent: Extent) -> CalibrationStatistics:
    """The statistics of checked rows, as one process gathers them of whole documents."""
    partial = parts.map_batches(
        _gather,
        batch_size=None,
        batch_format="pyarrow",
        fn_kwargs={"extent": Shared.of(extent)},
        max_retries=ATTEMPTS_MORE,
    )
    result = partial.aggregate(_Sum())
    assert result is not None
    total: Gathering = result[_GATHERED]
    return total.completed()


def _gather(table: pa.Table, extent: Shared[Extent]) -> dict[str, Any]:
    measures = resident(extent)
    made = Gathering(CalibrationStatistics(measures.dimension))
    rows = Sorted.of(table, measures)
    for span in rows.lots():
        made.statistics.update_many(rows.vectors(span), [len(one) for one in span])
    for piece in rows.pieces:
        total = made.statistics.add_part(rows.vectors([piece]))
        before, counted = made.open.get(piece.document, (0.0, 0))
        made.open[piece.document] = (before + total, counted + len(piece))
    return {_GATHERED: [made]}
