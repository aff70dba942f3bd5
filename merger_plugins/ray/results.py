"""Results of workers, taken as they come."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any

import pyarrow as pa
from ray.data import Dataset

_BEAT = 2.0
"""Seconds without a result after which the caller is told that work goes on."""


def results_of(made: Dataset) -> Iterator[Any]:
    """What workers made, as it comes; None each time that nothing did for a while.

    A thread waits for Ray, which keeps workers from running ahead of what is taken here.
    """
    results: Queue[Any] = Queue(1)
    ended = Event()

    def put(item: Any) -> None:
        while not ended.is_set():
            try:
                results.put(item, timeout=_BEAT)
            except Full:
                continue
            return

    def run() -> None:
        try:
            for batch in tables_of(made):
                for data in batch.column("made"):
                    put(pickle.loads(data.as_py()))
                if ended.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - raised where the results are taken
            put(error)
        else:
            put(_END)

    thread = Thread(target=run, name="merger_plugins_ray", daemon=True)
    thread.start()
    try:
        while True:
            try:
                result = results.get(timeout=_BEAT)
            except Empty:
                yield None
                continue
            if result is _END:
                return
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        ended.set()
        thread.join()


_END = object()


def tables_of(dataset: Dataset) -> Iterator[pa.Table]:
    """The blocks of a data set that hold anything."""
    batches_ = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    return (batch for batch in batches_ if batch.num_rows)
