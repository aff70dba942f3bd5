"""Results of every kind as records of one kind, and what the page says of their runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, get_args

import numpy as np

from merger_plugins.errors import InputError
from merger_plugins.finesse import bench_results, results
from merger_plugins.finesse.bench_results import BenchResult, bench_from_json, finesse_records
from merger_plugins.finesse.files import read_result
from merger_plugins.finesse.records import Record
from merger_plugins.finesse.results import FinesseResult, from_json
from merger_plugins.finesse.rivals import LIMIT, OWN_LIMIT

Result = str | os.PathLike[str] | BenchResult | FinesseResult | Record
"""A result file's path, a run of `bench` or of FINESSE, or a record of an axis."""

AXIS: Final = "finesse"
MERGING: Final = "ms a merge"
FULL: Final = "ms from text to merged vector"

_NATIVE = "the embedder itself"


@dataclass
class Contents:
    """What the page shows.

    Attributes:
        records: every figure.
        runs: what each run was, as pairs of words and facts; ``"run"`` is its heading.
        about: what rivals do, by name, where a run says so.
    """

    records: list[Record] = field(default_factory=list)
    runs: list[dict[str, str]] = field(default_factory=list)
    about: dict[str, str] = field(default_factory=dict)


def read(found: Iterable[Result], names: Mapping[str, str] | None = None) -> Contents:
    """Read results and check those that are files.

    Args:
        found: files of `bench` or of FINESSE, runs, or records.
        names: what to call mergers, by fingerprint, in runs of FINESSE alone; otherwise they have the name
            of their class.

    Returns:
        Where two runs measured a rival on the same, the later one has its number among `found` behind it.

    Raises:
        ResultError: a file is missing, damaged or was edited.
        InputError: something else than a result.
    """
    contents = Contents()
    opened = [_opened(result) if isinstance(result, str | os.PathLike) else result for result in found]
    named = iter(_names([result for result in opened if isinstance(result, FinesseResult)], names or {}))
    for number, result in enumerate(opened, 1):
        if isinstance(result, Record):
            contents.records.append(result)
        elif isinstance(result, FinesseResult):
            _add(contents, number, *_finesse(result, next(named)))
        elif isinstance(result, BenchResult):
            _add(contents, number, *_bench(result))
            contents.about |= {str(rival["name"]): str(rival["about"]) for rival in result.run["rivals"]}
        else:
            raise InputError(
                f"{type(result).__name__} is no result; pass paths of result files, runs or records."
            )
    return contents


def _opened(path: str | os.PathLike[str]) -> BenchResult | FinesseResult:
    newest = max(bench_results.FORMAT, results.FORMAT)
    document = read_result(path, (bench_results.BENCHMARK, *get_args(results.Benchmark)), newest)
    if document["benchmark"] == bench_results.BENCHMARK:
        return bench_from_json(document)
    return from_json(document)


def _add(contents: Contents, number: int, records: list[Record], facts: dict[str, str]) -> None:
    """Add a run; rivals that an earlier one measured on the same get the run's number behind their names."""
    seen = {_subject(record) for record in contents.records}
    double = {record.rival for record in records if _subject(record) in seen}
    for record in records:
        if record.rival not in double:
            contents.records.append(record)
        elif record.rival not in (LIMIT, OWN_LIMIT):
            contents.records.append(replace(record, rival=f"{record.rival} ({number})"))
    contents.runs.append(facts | {"run": f"{facts['run']} ({number})"} if double else facts)


def _subject(record: Record) -> tuple[str, str, str, str, str, float | None]:
    return record.axis, record.task, record.rival, record.metric, record.along, record.at


def _finesse(run: FinesseResult, name: str) -> tuple[list[Record], dict[str, str]]:
    task = _task(run)
    records = [*finesse_records(run, task, name), *_times(run, task, name)]
    return records, _finesse_facts(name, run)


def _bench(result: BenchResult) -> tuple[list[Record], dict[str, str]]:
    records = result.records
    for step in result.steps.values():
        for rival in dict.fromkeys(record.rival for record in step.records if step.axis == AXIS):
            if rival in result.finesse:
                records += _times(result.finesse[rival], step.task, rival)
    return records, _bench_facts(result)


def _names(runs: list[FinesseResult], names: Mapping[str, str]) -> list[str]:
    """Names that tell mergers apart: with the fingerprint where one class was measured several times."""
    marks = ["" if run.run["merger"] is None else str(run.run["merger"]["fingerprint"]) for run in runs]
    plain = [
        names.get(mark) or (_NATIVE if run.run["merger"] is None else str(run.run["merger"]["name"]))
        for mark, run in zip(marks, runs, strict=True)
    ]
    shared = {name: {mark for one, mark in zip(plain, marks, strict=True) if one == name} for name in plain}
    return [
        name if len(shared[name]) == 1 else f"{name} {mark[:6]}"
        for name, mark in zip(plain, marks, strict=True)
    ]


def _times(run: FinesseResult, task: str, rival: str) -> list[Record]:
    """Medians of the timed samples, with the least and the most in place of an interval."""
    found = []
    for length, scores in run.lengths.items():
        for metric, times in ((MERGING, scores.merging_ms), (FULL, scores.full_ms)):
            if times:
                low, high = (min(times), max(times)) if len(times) > 1 else (None, None)
                value = float(np.median(times))
                found.append(
                    Record(AXIS, task, rival, metric, value, low, high, len(times), "chunks", float(length))
                )
    return found


def _task(run: FinesseResult) -> str:
    data, embedder = run.run["data"], run.run["embedder"]
    return f"{data['probes']} probes {data['revision'][:8]}, {embedder['name']}"


def _finesse_facts(name: str, run: FinesseResult) -> dict[str, str]:
    data, settings, merger = run.run["data"], run.run["settings"], run.run["merger"]
    languages = ", ".join(
        f"{count} {language or 'of no stated language'}" for language, count in data["languages"].items()
    )
    return {
        "run": f"FINESSE of {name}",
        "merger": _NATIVE if merger is None else f"{merger['name']} {merger['fingerprint']}",
        "embedder": _embedder(run.run),
        "texts": f"{data['probes']} probes of {data['tokens']} tokens ({languages}), "
        f"revision {data['revision']}",
        "mean cosine between probes": f"{data['mean_cosine']} "
        + (
            "(independent)"
            if data["independent"]
            else "(above 0.1: to this embedder they are not independent)"
        ),
        "samples": f"{settings['samples']} of each length {', '.join(map(str, settings['lengths']))}; "
        f"seed {settings['seed']}",
        "skipped": "; ".join(run.skipped.values()) or "nothing",
        **_rest(run.run, run.complete, run.scores_hash),
    }


def _bench_facts(result: BenchResult) -> dict[str, str]:
    run = result.run
    tasks = "; ".join(
        f"{task['name']} ({task['source']}, {task['licence']}, revision {task['revision']})"
        for task in run["tasks"]
    )
    return {
        "run": "Bench of " + ", ".join(str(rival["name"]) for rival in run["rivals"]),
        "settings": "; ".join(_settings(run["settings"])),
        "embedder": _embedder(run),
        "tasks": tasks or "none",
        "skipped": " ".join(result.reasons) or "nothing",
        **_rest(run, result.complete, result.scores_hash),
    }


def _settings(values: Mapping[str, Any], of: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{of}{name} ")
        elif isinstance(value, bool):
            yield f"{of}{name}: {'yes' if value else 'no'}"
        else:
            yield f"{of}{name}: {', '.join(map(str, value)) if isinstance(value, list) else value}"


def _embedder(run: Mapping[str, Any]) -> str:
    return f"{run['embedder']['name']}, {run['embedder']['dimension']} dimensions"


def _rest(run: Mapping[str, Any], complete: bool, scores_hash: str) -> dict[str, str]:
    hardware, versions = run["hardware"], run["versions"]
    return {
        "finished": "yes" if complete else "no: a part is missing",
        "machine": f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['system']}",
        "versions": ", ".join(f"{package} {version}" for package, version in versions.items()),
        "hash of the scores": scores_hash,
    }
