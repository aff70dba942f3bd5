"""Ray itself: started where it is not, its errors in our words."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, Generic, ParamSpec, TypeVar
from uuid import uuid4

import ray
from ray.data import DataContext
from ray.exceptions import RayError

from merger_plugins.errors import ClusterError, InputError, MergerError

T = TypeVar("T")
P = ParamSpec("P")

ATTEMPTS = 3
"""How often Ray runs a task whose workers die; its own default for data is without end."""

_WORKERS_KEPT = 4
"""Idle processes that Ray keeps for each CPU, as a shuffle has three kinds of them, and one takes a second or
more to start."""

_KEPT_VARIABLE = "RAY_num_workers_soft_limit"

_SHUFFLED_AT_ONCE = 128 << 20
"""Bytes that one task of a shuffle takes: Ray's default of 1 GB leaves few tasks where there are few GB."""

_KEPT = 8
_UNKNOWN: Any = object()
_resident: dict[str, Any] = {}


@contextmanager
def cluster(*, workers: int | None = None, address: str | None = None) -> Iterator[int]:
    """Ray, started here where this process has none yet, and stopped afterwards; gives how many CPUs it has.

    Args:
        workers: how many CPUs to use; all of them for None.
        address: of a cluster that runs, as `ray.init` takes it; None for the one that the variable
            RAY_ADDRESS names, or else for this machine.

    Raises:
        InputError: more workers than CPUs, or none.
        ClusterError: there is no cluster at this address.
    """
    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}; at least one is needed.")
    begun = not ray.is_initialized()
    if begun:
        _start(workers, address)
    try:
        cpus = int(ray.cluster_resources().get("CPU", 0))
        if workers is not None and workers > cpus:
            raise InputError(
                f"{workers} workers were asked for, and the Ray cluster has {cpus} CPUs. Ask for {cpus} at "
                "the most, or add machines to it."
            )
        yield workers or cpus
    finally:
        if begun:
            ray.shutdown()


def _start(workers: int | None, address: str | None) -> None:
    options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False}
    if address is None and not os.environ.get("RAY_ADDRESS"):
        here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if workers is not None and workers > here:
            raise InputError(
                f"{workers} workers were asked for, and this machine has {here} CPUs. Ask for {here} at the "
                "most, or name a cluster: address= (--address)."
            )
        options["num_cpus"] = workers or here
        os.environ.setdefault(_KEPT_VARIABLE, str(_WORKERS_KEPT * options["num_cpus"]))
    else:
        options = {"address": address, "log_to_driver": False}
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises plain ones too, as where its processes start too slowly
        raise ClusterError(
            f"Ray could not be started or reached ({error}). Check the address, and that `ray status` "
            "answers there."
        ) from error


@contextmanager
def translated(what: str) -> Iterator[None]:
    """What fails in a worker becomes an error of ours: the one that was raised there, or a `ClusterError`."""
    try:
        yield
    except MergerError as error:
        raise _inner(error) or error from None
    except RayError as error:
        found = _inner(error)
        if found is not None:
            raise found from None
        first = str(error).strip().partition("\n")[0]
        raise ClusterError(
            f"{what} failed on Ray, which ran each part up to {ATTEMPTS} times ({first}). What was "
            "written stays: repeat the call, and it goes on from there. A worker that is killed again and "
            "again often lacks memory: pass a larger partitions=, so that each part is smaller."
        ) from error


def _inner(error: BaseException) -> MergerError | None:
    """The error of ours that a worker raised; Ray makes one of it that is of both kinds."""
    seen: BaseException | None = error
    while seen is not None:
        cause = getattr(seen, "cause", None)
        if isinstance(cause, MergerError) and not isinstance(cause, RayError):
            return cause
        seen = cause if isinstance(cause, BaseException) else seen.__cause__
    return None


def context(*, waits: bool = True) -> DataContext:
    """Settings for data sets of ours: vectors do not compress, and a few GB are work for all workers.

    Args:
        waits: whether Ray reserves memory and CPUs for each operator, so that workers wait where results are
            taken slowly. It leaves CPUs idle on small machines; without it, all of them work.
    """
    made = DataContext.get_current().copy()
    made.shuffle_compression = "none"
    made.shuffle_input_batch_bytes = _SHUFFLED_AT_ONCE
    made.enable_progress_bars = False
    made.isolate_read_workers = False
    made.op_resource_reservation_enabled &= waits
    return made


def in_worker(work: Callable[P, Any]) -> Callable[P, Iterator[Any]]:
    """What Ray runs on batches, as a generator: of those Ray passes an error on as it is.

    The generator raises:
        ClusterError: Ray has run this task `ATTEMPTS` times, and each time the worker died.
    """

    @wraps(work)
    def run(*arguments: P.args, **options: P.kwargs) -> Iterator[Any]:
        core = ray._private.worker.global_worker.core_worker
        if core.get_current_task_attempt_number() >= ATTEMPTS:
            raise ClusterError(
                f"The workers that ran one part died {ATTEMPTS} times. They may lack memory: pass a larger "
                "partitions=, so that each part is smaller. What was written stays; a repeat goes on from "
                "there."
            )
        result = work(*arguments, **options)
        if isinstance(result, Iterator):
            yield from result
        else:
            yield result

    return run


def resident(ref: Shared[T]) -> T:
    """What the driver shared, fetched once a worker and not once a task: so a model is loaded once."""
    known: T = _resident.get(ref.name, _UNKNOWN)
    if known is _UNKNOWN:
        if len(_resident) >= _KEPT:
            _resident.clear()
        known = _resident[ref.name] = ray.get(ref.ref)
    return known


@dataclass(frozen=True)
class Shared(Generic[T]):
    """An object that the driver put where workers find it; small enough to go along with every task."""

    name: str
    ref: Any

    @classmethod
    def of(cls, value: T) -> Shared[T]:
        """Put it there."""
        return cls(uuid4().hex, ray.put(value))
