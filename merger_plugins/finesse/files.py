"""Result files: JSON written whole or not at all, with a hash over the contents that tells edits.

The hash finds mistakes and edits. It is no signature: who edits a file can compute it anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from merger_plugins.errors import ResultError


def document_hash(document: Mapping[str, Any]) -> str:
    """SHA-256 over a document as JSON, keys sorted."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def sealed(document: dict[str, Any]) -> dict[str, Any]:
    """The document with its ``content_hash``."""
    return document | {"content_hash": document_hash(document)}


def write_result(document: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a sealed document, whole or not at all."""
    write_whole(json.dumps(document, indent=1, allow_nan=False) + "\n", path)


def write_whole(text: str, path: str | os.PathLike[str]) -> None:
    """Write a file, whole or not at all; its folder is made where it is missing."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        fresh = Path(scratch, "fresh")
        with fresh.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(target)


def read_result(path: str | os.PathLike[str], benchmarks: Collection[str], newest: int) -> dict[str, Any]:
    """Read what `write_result` wrote, and check that nobody edited it.

    Args:
        path: the file.
        benchmarks: the names of what it may be a result of.
        newest: the latest format that the caller reads.

    Returns:
        The document without its ``content_hash``.

    Raises:
        ResultError: the file is missing, damaged, edited, of a newer format or of another benchmark.
    """
    source = Path(path)
    try:
        document = json.loads(source.read_bytes())
    except FileNotFoundError as error:
        raise ResultError(f"There is no result file at {source}. Check the path.") from error
    except OSError as error:
        raise ResultError(f"{source} cannot be read ({error}). Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise ResultError(f"{source} is damaged: {error}. Run the benchmark again.") from error
    if not isinstance(document, dict) or not isinstance(document.get("format"), int):
        raise ResultError(f"{source} states no format, so it is no result file of FINESSE.")
    if document["format"] > newest:
        raise ResultError(
            f"{source} has format {document['format']}, and this version reads up to {newest}. "
            "Run: pip install --upgrade merger-plugins"
        )
    if document.get("benchmark") not in benchmarks:
        raise ResultError(
            f"{source} is a result of the benchmark {document.get('benchmark')!r}, and one of "
            f"{', '.join(map(repr, benchmarks))} is read here. Name another file."
        )
    stored = document.pop("content_hash", None)
    if stored != (found := document_hash(document)):
        raise ResultError(
            f"{source} was edited or damaged: its contents have the hash {found}, and it states {stored}. "
            "Restore the file, or run the benchmark again."
        )
    return document
