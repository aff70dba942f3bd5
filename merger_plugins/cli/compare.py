"""``merger-plugins compare``: the result files of two runs of ``bench`` beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from merger_plugins.cli import options
from merger_plugins.cli.output import running, table

if TYPE_CHECKING:
    from merger_plugins.finesse.comparing import Difference


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
    as_json: options.Json = False,
) -> None:
    """Show B less A with 95% intervals, question by question where both runs have the same ones.

    A star marks what chance alone does once in twenty times, so that of many differences some have one.
    """
    with running("compare", as_json=as_json) as output:
        from merger_plugins.finesse.bench_results import load_bench
        from merger_plugins.finesse.comparing import compare_runs

        found = compare_runs(
            load_bench(Path(first)),
            load_bench(Path(second)),
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


def _metric(each: Difference) -> str:
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
