"""``merger-plugins compare``: the result files of two runs of ``bench`` beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from merger_plugins.cli import options
from merger_plugins.cli.output import Output, running, table

if TYPE_CHECKING:
    from merger_plugins.finesse.bench_results import BenchResult
    from merger_plugins.finesse.comparing import Difference
    from merger_plugins.finesse.rankings import Ranking


def command(
    first: Annotated[str, typer.Argument(metavar="A", help="The result file of a run.")],
    second: Annotated[str, typer.Argument(metavar="B", help="That of another one, or the same.")],
    rival: Annotated[
        list[str] | None, typer.Option(help="Only this rival of B; may be given several times.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="NAME", help="Compare with this rival of A, not with its namesake.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every metric, and every figure that something was varied for.")
    ] = False,
    ranking: Annotated[
        bool,
        typer.Option("--ranking", help="Compare the order of the rivals instead; the seeds may differ."),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Show B less A with 95% intervals, question by question where both runs have the same ones.

    A star marks what chance alone does once in twenty times, so that of many differences some have one.
    """
    with running("compare", as_json=as_json) as output:
        from merger_plugins.errors import InputError
        from merger_plugins.finesse.bench_results import load_bench
        from merger_plugins.finesse.comparing import compare_runs

        runs = load_bench(Path(first)), load_bench(Path(second))
        if ranking:
            if against is not None:
                raise InputError("--ranking compares all rivals with each other: leave --against out.")
            _rank(output, *runs, rival or ())
            return
        found = compare_runs(
            *runs,
            rivals=rival or (),
            against=against,
            everything=everything,
        )
        for note in found.notes:
            output.note(note)
        output.document.update(
            first=first,
            second=second,
            against=against,
            notes=list(found.notes),
            differences=[each.to_dict() for each in found.differences],
        )
        numbers = ["A", "B", "B - A", "95%", "p"]
        for axis, task in dict.fromkeys((each.axis, each.task) for each in found.differences):
            shown = table("rival", "metric", *numbers, "", right=numbers, title=f"{axis}, {task}")
            for each in found.differences:
                if (each.axis, each.task) == (axis, task):
                    shown.add_row(each.rival, _metric(each), *_numbers(each))
            output.print(shown)


def _rank(output: Output, first: BenchResult, second: BenchResult, rivals: Sequence[str]) -> None:
    from merger_plugins.finesse.rankings import compare_rankings

    found = compare_rankings(first, second, rivals=rivals)
    for note in found.notes:
        output.note(note)
    output.document.update(notes=list(found.notes), rankings=[each.to_dict() for each in found.rankings])
    numbers = ["rivals", "tau", "swapped", "against both"]
    shown = table(
        "figure", "best in A", "best in B", *numbers, right=numbers, title="The order of the rivals"
    )
    for each in found.rankings:
        shown.add_row(
            f"{each.axis}, {each.task}: {_metric(each)}",
            each.first[0],
            each.second[0],
            str(len(each.first)),
            "" if each.tau is None else f"{each.tau:.2f}",
            str(len(each.swapped)),
            str(len(each.contradicted)),
        )
    output.print(shown)
    pairs = sum(len(each.first) * (len(each.first) - 1) // 2 for each in found.rankings)
    swapped, against = (
        sum(len(part) for part in parts)
        for parts in zip(*((each.swapped, each.contradicted) for each in found.rankings), strict=True)
    )
    output.print(
        f"Of {pairs:,} pairs, {swapped:,} are in another order, {against:,} of which each run tells apart by "
        "more than chance."
    )


def _metric(each: Difference | Ranking) -> str:
    return each.metric if each.at is None else f"{each.metric}, {each.at:g} {each.along}"


def _numbers(each: Difference) -> list[str]:
    interval = "" if each.low is None or each.high is None else f"{each.low:+.3f} to {each.high:+.3f}"
    return [
        f"{each.first:.3f}",
        f"{each.second:.3f}",
        f"{each.difference:+.3f}",
        interval,
        "" if each.p is None else "<0.001" if each.p < 0.0005 else f"{each.p:.3f}",
        "*" if each.apart else "",
    ]
