"""The result file of `bench`: one run of many rivals on every axis.

::

    format         1
    benchmark      "bench"
    run            what a resumed run must share:
      settings     the plan: quick, seed, axes, sizes (`BenchSettings`)
      rivals       for each: name, about, fingerprint and output (see `Entry`; null for one that does not
                   merge), asked (true where the user named it)
      tasks        for each: name, kind, files, revision, split, metric, language, licence, source
      embedder     name, fingerprint, dimension, context (tokens, or null)
      versions, hardware
    skipped        sentences: what was not measured, and why
    steps          by name, such as "retrieval, covidqa" or "finesse, mean", in the order measured:
      axis, task, seconds, skipped (a sentence where there are no records, or null)
      records      each: axis, task, rival, metric, value, low, high (95%), n, along, at (see `Record`),
                   items and groups (ids in arrays, or null)
    finesse        by rival: the whole document of `results.py`, for td and bu of every sample; in native mode
                   where an embedder of whole texts was measured
    arrays         by id: base64 of zlib of little-endian float32 (items) or int32 (groups)
    peak_megabytes the most memory that the process held, null where the system does not tell
    complete       false while a run goes on
    scores_hash    SHA-256 over what data and seed determine: no times, costs, intervals, versions, hardware
    content_hash   SHA-256 over everything above

Records of the axis ``"finesse"`` have ``along = "chunks"``, ``at`` the length, and the metrics ``finesse``,
``rss``, ``td``, ``bu`` (q1q3) with ``finesse, medians`` and so on (q2q2), ``srs``; without ``along`` they are
averages over all lengths, which a rival that was not measured at all of them does not have. Items of two
rivals at the same subject are of the same samples.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from merger_plugins.finesse.files import document_hash, read_result, sealed, write_result
from merger_plugins.finesse.records import Record
from merger_plugins.finesse.results import FinesseResult, from_json
from merger_plugins.finesse.scoring import GAPS, Gap
from merger_plugins.finesse.settings import FinesseSettings

FORMAT: Final = 1
BENCHMARK: Final = "bench"

_UNDETERMINED: Final = ("versions", "hardware")
_GAP_NAMES: Final[Mapping[Gap, str]] = {"q1q3": "", "q2q2": ", medians"}
_DIGITS = 6
_ITEMS, _GROUPS = "<f4", "<i4"


@dataclass(frozen=True)
class Step:
    """One axis on one task, or FINESSE of one rival: what an interrupted run keeps.

    Attributes:
        axis: what was measured.
        task: on what.
        seconds: it took.
        records: the figures.
        skipped: why there are none; None where there are.
    """

    axis: str
    task: str
    seconds: float
    records: tuple[Record, ...] = ()
    skipped: str | None = None


@dataclass
class BenchResult:
    """A run, finished or under way.

    Attributes:
        run: settings, rivals, tasks, embedder, versions and hardware.
        skipped: what was not measured, and why; steps that were skipped have their own sentence.
        steps: by name.
        finesse: by rival.
        peak_megabytes: the most memory that the process held.
        complete: whether nothing is left to do.
    """

    run: dict[str, Any]
    skipped: tuple[str, ...] = ()
    steps: dict[str, Step] = field(default_factory=dict)
    finesse: dict[str, FinesseResult] = field(default_factory=dict)
    peak_megabytes: float | None = None
    complete: bool = False

    @property
    def records(self) -> list[Record]:
        """All figures, in the order measured."""
        return [record for step in self.steps.values() for record in step.records]

    @property
    def reasons(self) -> list[str]:
        """Everything that was not measured, and why."""
        lengths = (
            f"skipped: finesse, {name}: {reason}"
            for name, result in self.finesse.items()
            for reason in result.skipped.values()
        )
        return [*self.skipped, *(step.skipped for step in self.steps.values() if step.skipped), *lengths]

    @property
    def scores_hash(self) -> str:
        """Tells whether two runs found the same: over everything that data and seed determine."""
        figures = {
            name: [
                [record.rival, record.metric, record.along, record.at, _rounded(record.value), record.n]
                for record in step.records
            ]
            for name, step in sorted(self.steps.items())
            if step.axis != "cost"
        }
        run = {key: value for key, value in self.run.items() if key not in _UNDETERMINED}
        finesse = {name: result.scores_hash for name, result in sorted(self.finesse.items())}
        return document_hash({"run": run, "figures": figures, "finesse": finesse})

    def to_json(self) -> dict[str, Any]:
        """The contents of a result file."""
        arrays: dict[str, str] = {}
        document = {
            "format": FORMAT,
            "benchmark": BENCHMARK,
            "run": self.run,
            "skipped": list(self.skipped),
            "steps": {name: _written(step, arrays) for name, step in self.steps.items()},
            "finesse": {name: result.to_json() for name, result in self.finesse.items()},
            "arrays": arrays,
            "peak_megabytes": self.peak_megabytes,
            "complete": self.complete,
            "scores_hash": self.scores_hash,
        }
        return sealed(document)


def save_bench(result: BenchResult, path: Path) -> None:
    """Write a result file, whole or not at all."""
    write_result(result.to_json(), path)


def load_bench(path: Path) -> BenchResult:
    """Read a result file and check that nobody edited it.

    Raises:
        ResultError: the file is missing, damaged, edited, of a newer version or of another benchmark.
    """
    return bench_from_json(read_result(path, (BENCHMARK,), FORMAT))


def bench_from_json(document: Mapping[str, Any]) -> BenchResult:
    """The result that `BenchResult.to_json` wrote."""
    arrays = document["arrays"]
    return BenchResult(
        run=document["run"],
        skipped=tuple(document["skipped"]),
        steps={name: _read(step, arrays) for name, step in document["steps"].items()},
        finesse={name: from_json(part) for name, part in document["finesse"].items()},
        peak_megabytes=document["peak_megabytes"],
        complete=document["complete"],
    )


def finesse_records(
    result: FinesseResult, task: str, rival: str, asked: FinesseSettings | None = None
) -> list[Record]:
    """The figures of a FINESSE run as records, so that they are compared as all others are.

    Args:
        result: the run of one merger, or of an embedder.
        task: the name of the articles.
        rival: the name of the merger.
        asked: an average over lengths is given where all of these settings' lengths were measured; those of
            the run for None.
    """
    settings = result.run["settings"]
    seed = int(settings["seed"])
    lengths = settings["lengths"] if asked is None else asked.lengths
    order_lengths = settings["order_lengths"] if asked is None else asked.order_lengths
    found: list[Record] = []

    def add(metric: str, each: Mapping[int, Sequence[float]], whole: Iterable[int]) -> None:
        where = ("finesse", task, rival, metric)
        if each and set(each) >= set(whole):
            found.append(
                Record.of(*where, np.concatenate([np.asarray(part) for part in each.values()]), seed=seed)
            )
        for length, part in each.items():
            found.append(Record.of(*where, np.asarray(part), along="chunks", at=length, seed=seed))

    for gap in GAPS:
        suffix = _GAP_NAMES[gap]
        parts = result.lengths.items()
        add(f"finesse{suffix}", {length: part.finesse(gap) for length, part in parts}, lengths)
        add(f"rss{suffix}", {length: part.rss(gap) for length, part in parts}, lengths)
        add(f"td{suffix}", {length: part.td[gap] for length, part in parts}, lengths)
        add(f"bu{suffix}", {length: part.bu[gap] for length, part in parts}, lengths)
        add(f"srs{suffix}", {length: part.srs(gap) for length, part in result.orders.items()}, order_lengths)
    return found


def _written(step: Step, arrays: dict[str, str]) -> dict[str, Any]:
    records = []
    for record in step.records:
        plain = record.to_dict()
        for name in ("value", "low", "high"):
            plain[name] = None if plain[name] is None else _rounded(plain[name])
        plain["items"] = _kept(record.each, _ITEMS, arrays)
        groups = None if record.groups is None else np.unique(record.groups, return_inverse=True)[1]
        plain["groups"] = _kept(groups, _GROUPS, arrays)
        records.append(plain)
    return {
        "axis": step.axis,
        "task": step.task,
        "seconds": round(step.seconds, 1),
        "skipped": step.skipped,
        "records": records,
    }


def _kept(values: NDArray[Any] | None, kind: str, arrays: dict[str, str]) -> str | None:
    if values is None:
        return None
    raw = values.astype(kind).tobytes()
    key = hashlib.sha256(kind.encode() + raw).hexdigest()[:16]
    if key not in arrays:
        arrays[key] = base64.b64encode(zlib.compress(raw, 9)).decode()
    return key


def _array(key: str | None, kind: str, arrays: Mapping[str, str]) -> NDArray[Any] | None:
    return None if key is None else np.frombuffer(zlib.decompress(base64.b64decode(arrays[key])), kind)


def _read(step: Mapping[str, Any], arrays: Mapping[str, str]) -> Step:
    return Step(
        step["axis"],
        step["task"],
        step["seconds"],
        tuple(_records(step["records"], arrays)),
        step["skipped"],
    )


def _records(rows: Iterable[Mapping[str, Any]], arrays: Mapping[str, str]) -> Iterable[Record]:
    for row in rows:
        plain = {name: value for name, value in row.items() if name not in ("items", "groups")}
        each = _array(row["items"], _ITEMS, arrays)
        yield Record(
            **plain,
            each=None if each is None else each.astype(np.float64),
            groups=_array(row["groups"], _GROUPS, arrays),
        )


def _rounded(value: float) -> float:
    return round(float(value), _DIGITS) + 0.0  # no minus before a zero
