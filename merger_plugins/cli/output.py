"""What every command shares: results on stdout, all else on stderr, and the exit code."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from merger_plugins.errors import MergerError

WIDTH_WHEN_PIPED = 100

FAILED, INTERRUPTED = 1, 130


class Output:
    """Results and messages of one command.

    Args:
        command: its name.
        as_json: whether stdout gets one JSON document in place of text.
    """

    def __init__(self, command: str, *, as_json: bool) -> None:
        self.as_json = as_json
        self.document: dict[str, Any] = {"command": command}
        self.errors: list[str] = []
        self._stdout = _console(stderr=False)
        self._stderr = _console(stderr=True)

    def print(self, *parts: RenderableType) -> None:
        """Show text or tables on stdout; nothing where JSON is asked for."""
        if not self.as_json:
            for part in parts:
                self._stdout.print(part, highlight=False, markup=False, soft_wrap=isinstance(part, str))

    def note(self, message: str) -> None:
        """Say something on stderr that is no part of the result."""
        self._stderr.print(Text(message), style="dim", soft_wrap=True, highlight=False)

    def problem(self, message: str) -> None:
        """Report on stderr what failed; the command goes on, and exits with 1."""
        self.errors.append(message)
        self._stderr.print(Text(f"error: {message}", style="red"), soft_wrap=True, highlight=False)

    @contextmanager
    def progress(self, label: str, total: int, unit: str | None = None) -> Iterator[Advance]:
        """A bar with rate and time left, on a terminal; nothing elsewhere.

        Args:
            label: what is being done.
            total: how many units there are.
            unit: their name, in the plural; None for bytes.
        """
        if not self._stderr.file.isatty():
            yield lambda _: None
            return
        counted = (
            (DownloadColumn(), TransferSpeedColumn()) if unit is None else (MofNCompleteColumn(), _Rate(unit))
        )
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            *counted,
            TimeRemainingColumn(),
            console=self._stderr,
            transient=True,
        )
        with bar:
            task = bar.add_task(label, total=total)
            yield lambda units: bar.advance(task, units)

    @contextmanager
    def waiting(self, label: str) -> Iterator[None]:
        """A sign of life while something takes as long as it takes, on a terminal; nothing elsewhere."""
        if not self._stderr.file.isatty():
            yield
            return
        with self._stderr.status(label):
            yield

    def close(self) -> None:
        """Print the JSON document, where it is asked for."""
        if self.as_json:
            document = {**self.document, "errors": self.errors}
            self._stdout.print(
                json.dumps(document, indent=2, ensure_ascii=True),
                soft_wrap=True,
                highlight=False,
                markup=False,
            )


Advance = Callable[[float], None]
"""Moves a bar on by so many units."""


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f} {self._unit}/s")


@contextmanager
def running(command: str, *, as_json: bool, interrupted: str = "Nothing was changed.") -> Iterator[Output]:
    """Run the body of a command, then end it with the exit code that it earned.

    Args:
        command: its name.
        as_json: whether JSON was asked for.
        interrupted: what to tell someone who pressed Ctrl-C.

    Raises:
        typer.Exit: with 1 after an error of ours or of the operating system, or after a reported problem;
            with 130 after Ctrl-C.
    """
    output = Output(command, as_json=as_json)
    code = 0
    try:
        with warnings.catch_warnings():
            # Other packages' warnings concern the user too, but not the line of code that they come from.
            warnings.showwarning = lambda message, *_, **__: output.note(f"warning: {message}")
            yield output
    except (MergerError, OSError) as error:
        output.problem(str(error))
    except KeyboardInterrupt:
        output.problem(f"interrupted. {interrupted}")
        code = INTERRUPTED
    output.close()
    if code or output.errors:
        raise typer.Exit(code or FAILED)


def table(*columns: str, right: Collection[str] = (), title: str | None = None) -> Table:
    """A plain table without rows.

    Args:
        columns: their headings.
        right: those that hold numbers.
        title: printed above.
    """
    made = Table(
        box=SIMPLE_HEAD,
        title=title,
        title_justify="left",
        title_style="bold",
        pad_edge=False,
        show_edge=False,
    )
    for column in columns:
        number = column in right
        made.add_column(column, justify="right" if number else "left", no_wrap=number)
    return made


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr)
    if not console.file.isatty() and "COLUMNS" not in os.environ:
        console.width = WIDTH_WHEN_PIPED
    return console
