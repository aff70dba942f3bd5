"""What does a merge take: milliseconds, and megabytes at once? What is stored stands with retrieval.

Timings depend on the machine and on what else it does; nothing is asserted about them.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from merger_plugins.finesse.collections import Collection, Level, by_group, units
from merger_plugins.finesse.records import Record
from merger_plugins.finesse.rivals import Rival

AXIS = "cost"
REPEATS = 5


def cost(
    rivals: Sequence[Rival],
    collection: Collection,
    *,
    level: Level = "sections",
    repeats: int = REPEATS,
) -> list[Record]:
    """Time mergers over a collection.

    Args:
        rivals: those that do not merge are left out.
        collection: all of it is merged at every repeat.
        level: what is merged, as `units` cuts it.
        repeats: the value is their median; `low` and `high` are the least and the most of them.

    Returns:
        For each rival ``ms a thousand merges`` and ``processor ms a thousand merges``; ``ms to fit``, what it
        takes to make the merger for this collection, once; and ``MB at once``, the most that arrays took
        while everything was merged (what ONNX Runtime holds is not seen).

    Raises:
        InputError: a merger of another dimension.
    """
    cut = units(collection, level)
    sequences, masses = by_group(collection.chunks, cut.group), by_group(collection.masses, cut.group)
    sample = collection.sequences()
    thousands = len(sequences) / 1e3
    found = []
    for rival in rivals:
        began = time.perf_counter()
        merger = rival.merger(sample)
        if merger is None:
            continue
        fit = np.array([1e3 * (time.perf_counter() - began)])
        work = partial(merger.merge_many, sequences, masses=masses)
        peak = _megabytes(work)  # and what is loaded at the first merge is loaded now
        wall, processor = _milliseconds(work, repeats)
        for name, values in (
            ("ms a thousand merges", wall / thousands),
            ("processor ms a thousand merges", processor / thousands),
            ("ms to fit", fit),
            ("MB at once", peak),
        ):
            several = len(values) > 1
            found.append(
                Record(
                    AXIS,
                    collection.name,
                    rival.name,
                    name,
                    value=float(np.median(values)),
                    low=float(values.min()) if several else None,
                    high=float(values.max()) if several else None,
                    n=len(values),
                )
            )
    return found


def _milliseconds(
    work: Callable[[], object], repeats: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """By the clock and of the processor, (repeats,) each."""
    wall, processor = np.empty(repeats), np.empty(repeats)
    for index in range(repeats):
        began, used = time.perf_counter(), time.process_time()
        work()
        wall[index] = 1e3 * (time.perf_counter() - began)
        processor[index] = 1e3 * (time.process_time() - used)
    return wall, processor


def _megabytes(work: Callable[[], object]) -> NDArray[np.float64]:
    """The most that was allocated at once above what was there before, (1,)."""
    if tracemalloc.is_tracing():
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        work()
        return np.array([(tracemalloc.get_traced_memory()[1] - before) / 1e6])
    tracemalloc.start()
    try:
        work()
        return np.array([tracemalloc.get_traced_memory()[1] / 1e6])
    finally:
        tracemalloc.stop()
