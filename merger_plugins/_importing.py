"""Objects by import path, as somebody writes them on a command line."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from merger_plugins.errors import InputError


def imported(module: str, attribute: str, *, what: str) -> Any:
    """The object ``module:attribute``; the module may lie in the current folder, as with ``python -m``.

    Args:
        module: dotted.
        attribute: of it, dotted where it is one of a class.
        what: how the message calls it, such as "embedder".

    Raises:
        InputError: there is none, or its module fails.
    """
    if "" in (*module.split("."), *attribute.split(".")):
        raise InputError(
            f"{f'{module}:{attribute}'!r} is no import path; 'module:attribute' was expected of the {what}."
        )
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever the module's own code raises
        said = f"{error}" if isinstance(error, (ImportError, AttributeError)) else f"{error!r}"
        raise InputError(f"The {what} {f'{module}:{attribute}'!r} cannot be imported: {said}.") from error
    return found
