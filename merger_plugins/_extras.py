"""One wording for an optional package that is not installed."""

from importlib import import_module
from typing import Any

from merger_plugins.errors import MissingExtraError


def missing(package: str, *, extra: str, purpose: str) -> MissingExtraError:
    """The error for an absent package, with the exact command that installs it."""
    return MissingExtraError(
        f"{purpose} needs the package {package!r}, which is not installed. "
        f"Run: pip install 'merger-plugins[{extra}]'"
    )


def require(module: str, *, extra: str, purpose: str, package: str | None = None) -> Any:
    """Import `module` and return it.

    Args:
        module: dotted import path, e.g. ``"onnx.helper"``.
        extra: the extra of this package that installs it.
        purpose: what needs it, as the subject of a sentence.
        package: its name on the package index, where that differs from the module's.

    Raises:
        MissingExtraError: it is not installed; the message holds the pip command.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and not f"{module}.".startswith(f"{error.name}."):
            raise  # installed, but broken inside: that is not ours to reword
        raise missing(package or module.partition(".")[0], extra=extra, purpose=purpose) from error
