"""Calibration statistics as an aggregation: parts are gathered wherever their rows are, then added up."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from ray.data import Dataset
from ray.data.aggregate import AggregateFnV2

from merger_plugins._types import Matrix
from merger_plugins.mergers.calibration import CalibrationStatistics
from merger_plugins.ray.engine import Shared, in_worker, resident
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

    def add_part(self, document: Any, vectors: Matrix) -> None:
        """Add (n, d) chunk vectors of a long document."""
        total = self.statistics.add_part(vectors)
        before, counted = self.open.get(document, (0.0, 0))
        self.open[document] = (before + total, counted + len(vectors))

    def packed(self) -> dict[str, Any]:
        """As a row of a data set."""
        return {_GATHERED: [pickle.dumps(self)]}


class _Sum(AggregateFnV2):
    """Adds up a column of gatherings, wherever Ray finds it best."""

    def __init__(self) -> None:
        super().__init__(_GATHERED, lambda: None, on=_GATHERED, ignore_nulls=True)

    def aggregate_block(self, block: pa.Table) -> bytes | None:
        return _added(block.column(_GATHERED).to_pylist())

    def combine(self, current_accumulator: bytes | None, new: bytes | None) -> bytes | None:
        return _added([current_accumulator, new])


def _added(packed: list[bytes | None]) -> bytes | None:
    known = [one for one in packed if one is not None]
    if len(known) < 2:
        return known[0] if known else None
    total: Gathering = pickle.loads(known[0])
    for one in known[1:]:
        total = total + pickle.loads(one)
    return pickle.dumps(total)


def added_up(partial: Dataset) -> CalibrationStatistics:
    """The statistics of all rows, of a data set of packed gatherings."""
    result = partial.aggregate(_Sum())
    assert result is not None
    total: Gathering = pickle.loads(result[_GATHERED])
    return total.completed()


def gathered(parts: Dataset, extent: Extent) -> CalibrationStatistics:
    """The statistics of checked rows, as one process gathers them of whole documents."""
    partial = parts.map_batches(
        _gather,
        batch_size=None,
        batch_format="pyarrow",
        fn_kwargs={"extent": Shared.of(extent)},
    )
    return added_up(partial)


@in_worker
def _gather(table: pa.Table, extent: Shared[Extent]) -> dict[str, Any]:
    return gathering_of(table, resident(extent)).packed()


def gathering_of(table: pa.Table, extent: Extent) -> Gathering:
    """The statistics of checked rows."""
    made = Gathering(CalibrationStatistics(extent.dimension))
    rows = Sorted.of(table, extent)
    for lot in rows.lots():
        made.statistics.update_many(rows.vectors(lot), [len(one) for one in lot])
    for piece in rows.pieces:
        made.add_part(piece.document, rows.vectors([piece]))
    return made
