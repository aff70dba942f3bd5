"""``merger-plugins report``: result files as a page to look at."""

from __future__ import annotations

from typing import Annotated

import typer

from merger_plugins.cli import options
from merger_plugins.cli.output import running


def command(
    results: Annotated[
        list[str], typer.Argument(metavar="RESULT...", help="Result files of bench or of FINESSE.")
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="PAGE", help="Where the page is written.")
    ] = "quality.html",
    title: Annotated[str | None, typer.Option(help="Of the page.")] = None,
    note: Annotated[str, typer.Option(help="What was run, in a sentence, at the top of the page.")] = "",
    as_json: options.Json = False,
) -> None:
    """Show result files on one HTML page: leaderboard, costs, curves over length.

    The page holds all that it needs and asks for nothing from a network. What the anatomy of a score needs is
    not in result files: bench --report shows that, too.
    """
    with running("report", as_json=as_json) as shown:
        from merger_plugins.finesse.report import write
        from merger_plugins.finesse.report.page import TITLE

        page = write(results, output, title=title or TITLE, note=note)
        shown.document.update(page=str(page), results=results)
        shown.print(f"Shown on {page}.")
