"""The command line ``merger-plugins``; one module a command."""

import io
import sys

from merger_plugins._extras import missing

_NEEDED = ("typer", "click", "rich")


def main() -> None:
    """Run the command line; exits with 0 (done), 1 (something failed), 2 (usage) or 130 (Ctrl-C)."""
    try:
        from merger_plugins.cli.app import app
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _NEEDED:
            raise
        print(missing(package, extra="cli", purpose="The command line"), file=sys.stderr)
        sys.exit(1)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a document may hold what the terminal cannot show
    app(prog_name="merger-plugins")
