"""The command line put together."""

from typing import Annotated

import typer

from merger_plugins import __version__
from merger_plugins.cli import (
    backfill,
    bench,
    calibrate,
    chat,
    compare,
    demo,
    export,
    ingest,
    inspect,
    report,
    search,
    train,
    verify,
)

app = typer.Typer(
    name="merger-plugins",
    help="Merge stored chunk vectors into one vector per section, document or conversation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for _module in (
    demo,
    ingest,
    search,
    chat,
    calibrate,
    backfill,
    inspect,
    verify,
    export,
    train,
    bench,
    compare,
    report,
):
    app.command(_module.__name__.rpartition(".")[2])(_module.command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"merger-plugins {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
