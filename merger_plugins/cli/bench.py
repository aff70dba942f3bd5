"""``merger-plugins bench``: any merger on every axis of quality, beside its rivals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated

import typer

from merger_plugins._extras import require
from merger_plugins.cli import options
from merger_plugins.cli.output import Output, running, table

if TYPE_CHECKING:
    from merger_plugins.finesse.bench import Progress
    from merger_plugins.finesse.bench_results import BenchResult, Step
    from merger_plugins.finesse.records import Record
    from merger_plugins.finesse.tasks import Task

DATA_VARIABLE = "MERGER_PLUGINS_DATA"
CACHE_VARIABLE = "MERGER_PLUGINS_CACHE"

_NAMED = "NAME|FOLDER|MODULE:ATTRIBUTE"
_BUNDLED = "all-MiniLM-L6-v2"
_RESULTS = "bench-results"
_DEFAULT_CACHE = "~/.cache/merger-plugins"
_COLUMNS, _CELL = 4, 16


def command(
    merger: Annotated[
        list[str] | None,
        typer.Option(
            metavar=_NAMED,
            help="Measure this merger; may be given several times. Without it, only its rivals are.",
        ),
    ] = None,
    embedder: Annotated[
        str,
        typer.Option(
            metavar=_NAMED,
            help="The embedding model whose vectors are merged: the bundled one by default, the folder of a "
            "sentence-transformers model, or the import path of an embedding object.",
        ),
    ] = _BUNDLED,
    max_tokens: Annotated[
        int | None, typer.Option(min=3, help="The embedder's context, where it does not tell.")
    ] = None,
    native: Annotated[
        list[str] | None,
        typer.Option(
            metavar=_NAMED,
            help="Measure this embedding model, too, on whole texts, as far as its context goes; may be "
            "given several times.",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer texts, samples and rivals: minutes.")] = False,
    data: Annotated[
        str | None,
        typer.Option(
            envvar=DATA_VARIABLE,
            metavar="FOLDER",
            help="The data sets; without any, the sample documents are measured on.",
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FOLDER",
            help="Only this data set, or a folder of your own: docs, queries and qrels as .jsonl; may be "
            "given several times.",
        ),
    ] = None,
    axis: Annotated[
        list[str] | None, typer.Option(help="Only this axis; may be given several times.")
    ] = None,
    rival: Annotated[
        list[str] | None, typer.Option(help="Only this rival beside it; may be given several times.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0,
    output: Annotated[str, typer.Option(metavar="FOLDER", help="Where result files are kept.")] = _RESULTS,
    cache: Annotated[
        str, typer.Option(envvar=CACHE_VARIABLE, metavar="FOLDER", help="Where vectors of texts are kept.")
    ] = _DEFAULT_CACHE,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what was measured.")] = False,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="A result file; exits with 1 where a figure falls below it by more than its interval.",
        ),
    ] = None,
    report: Annotated[
        str | None, typer.Option(metavar="PAGE", help="Show everything on an HTML page, written here.")
    ] = None,
    report_texts: Annotated[
        bool, typer.Option("--report-texts", help="With the texts of FINESSE's chunks on that page.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Measure mergers on every axis: FINESSE, retrieval, fidelity, associativity, order, follow-ups, cost ...

    Every step is kept in a result file; interrupted, the same command goes on.
    """
    hint = "The same command goes on after the last finished step."
    with running("bench", as_json=as_json, interrupted=hint) as shown:
        from merger_plugins.finesse.bench import Bench, chosen_rivals, dimension_of, left_out
        from merger_plugins.finesse.bench_results import BenchResult, load_bench
        from merger_plugins.finesse.comparing import check_alike
        from merger_plugins.finesse.embedding import Embeddings
        from merger_plugins.finesse.naming import native_named, rival_named
        from merger_plugins.finesse.plan import settings
        from merger_plugins.finesse.report import dissect_bench, write
        from merger_plugins.finesse.tasks import Source

        if report is not None:  # better missed now than after an hour
            require("plotly", extra="bench", purpose="The report")
            _check_page(Path(report))
        sizes = settings(quick=quick, seed=seed, axes=axis or ())
        stored = None if baseline is None else load_bench(Path(baseline))
        vectors = Path(cache).expanduser()
        folder, tasks, skipped = _data(data, task or (), vectors, quick=quick)
        for sentence in skipped:
            shown.note(sentence)
        with shown.waiting("loading mergers and embedders"):
            base = Embeddings.named(embedder, vectors, max_tokens=max_tokens)
            source = Source(folder, base)
            asked = [*map(rival_named, merger or ()), *(native_named(name, base) for name in native or ())]
            entries = chosen_rivals(
                asked, dimension_of(source), quick=quick, names=rival or (), ours=base.bundled
            )
            absent = [] if rival else left_out(entries, source, quick=quick)
            planned = Bench(sizes, tasks, source, entries, [*skipped, *absent])
        for sentence in planned.skipped[len(skipped) :]:
            shown.note(sentence)
        if stored is not None:
            list(check_alike(stored, BenchResult(planned.run)))  # better refused now than after an hour
        path = planned.path(Path(output))
        with shown.waiting("measuring"):
            result = planned.measure(path, _steps(shown), fresh=fresh)
        shown.document.update(
            file=str(path),
            complete=result.complete,
            skipped=result.reasons,
            peak_megabytes=result.peak_megabytes,
            scores_hash=result.scores_hash,
            records=[record.to_dict() for record in result.records],
        )
        _print_result(shown, result)
        measured = {record.rival for record in result.records}
        for row in result.run["rivals"]:
            if row["asked"] and row["name"] not in measured:
                shown.problem(f"{row['name']} could be measured on nothing; what was skipped says why.")
        shown.print(f"Kept in {path}.")
        if report is not None:
            with shown.waiting("writing the report"):
                samples, texts = dissect_bench(planned, result)
                write([path], report, anatomy=samples, texts=texts if report_texts else None)
            shown.document["report"] = report
            shown.print(f"Shown on {report}.")
        if stored is not None:
            _judge(shown, result, stored)


def _check_page(page: Path) -> None:
    from merger_plugins.errors import InputError

    if page.is_dir():
        raise InputError(f"--report is {str(page)!r}, a folder; name a file, such as {page / 'bench.html'}.")


def _data(
    data: str | None, names: Sequence[str], cache: Path, *, quick: bool
) -> tuple[Path, list[Task], list[str]]:
    """The data folder, the tasks whose files are there, and sentences on the others."""
    from merger_plugins.demo.tasks import demo_tasks
    from merger_plugins.errors import DataError
    from merger_plugins.finesse.plan import chosen_tasks
    from merger_plugins.finesse.tasks import available, tasks_of_folder

    if data and not Path(data).expanduser().is_dir():
        raise DataError(f"--data is {data!r}, and there is no such folder. Check the path, or leave it out.")
    own = [name for name in names if Path(name).is_dir()]
    others = [name for name in names if name not in own]
    known = [] if own and not others else chosen_tasks(others, quick=quick)
    folder = Path(data).expanduser() if data else Path("data")
    here, skipped = available(folder, known)
    here += [task for name in own for task in tasks_of_folder(Path(name))]
    if here:
        return folder, here, skipped
    if names:
        raise DataError(f"{'. '.join(skipped)}. Pass --data, the folder that holds the data sets.")
    said = (
        f"The folder {folder} holds none of the data sets, so the sample documents are measured on, "
        "which are too few to tell mergers apart. Pass --data, or --task with a folder of your own."
    )
    return cache / "demo", demo_tasks(cache / "demo"), [said]


def _steps(output: Output) -> Progress:
    """Says each step that was measured, or that an earlier run measured."""
    begun: set[str] = set()

    def progress(name: str, done: int, total: int, step: Step | None) -> None:
        if step is None:
            begun.add(name)
            return
        earlier = "" if name in begun else " (earlier)"
        output.note(f"[{done}/{total}] {step.skipped or f'{name}: {step.seconds:,.1f} s'}{earlier}")

    return progress


def _print_result(output: Output, result: BenchResult) -> None:
    """A table of the main metrics for each axis."""
    from merger_plugins.finesse.comparing import main_figures

    figures = main_figures(result.records)
    for axis, task in dict.fromkeys((record.axis, record.task) for record in figures):
        records = [record for record in figures if (record.axis, record.task) == (axis, task)]
        columns = list(dict.fromkeys(map(_column, records)))
        cells = {(record.rival, _column(record)): _cell(record) for record in records}
        for start in range(0, len(columns), _COLUMNS):
            part = columns[start : start + _COLUMNS]
            shown = table("rival", *part, right=part, title=f"{axis}, {task}")
            for name in dict.fromkeys(record.rival for record in records):
                shown.add_row(name, *(cells.get((name, column), "") for column in part))
            output.print(shown)


def _column(record: Record) -> str:
    at = f", {record.at:g} {record.along}" if record.along and record.at is not None else ""
    return fill(record.metric + at, _CELL)


def _cell(record: Record) -> str:
    digits = 1 if record.axis in ("finesse", "cost") else 3
    value = f"{record.value:.{digits}f}"
    if record.low is None or record.high is None:
        return value
    return f"{value} ± {(record.high - record.low) / 2:.{digits}f}"


def _judge(output: Output, result: BenchResult, baseline: BenchResult) -> None:
    from merger_plugins.finesse.comparing import judge

    judged = judge(result, baseline)
    output.document["baseline"] = {
        "judged": judged.judged,
        "falls": [fall.to_dict() for fall in judged.falls],
        "missing": list(judged.missing),
    }
    for note in judged.notes:
        output.note(note)
    for reason in (*map(str, judged.falls), *judged.missing):
        output.problem(reason)
    if not judged.falls and not judged.missing:
        output.print(f"None of {judged.judged:,} figures is below the baseline by more than its interval.")
