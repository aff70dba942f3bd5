"""Rows of data files, checked: what is wrong is said with file, line, what arrived and what was expected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from merger_plugins.errors import DocumentError
from merger_plugins.finesse.embedding import jsonl_rows

_KINDS: Final[Mapping[type, str]] = {
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


@dataclass(frozen=True)
class Row:
    """One object of a JSON-lines file.

    Attributes:
        path: the file.
        line: from 1 on.
        fields: what it holds.
    """

    path: Path
    line: int
    fields: Mapping[str, Any]

    def text(self, name: str, *, empty: bool = False) -> str:
        """A field that holds a text.

        Args:
            name: of the field.
            empty: whether it may be empty or blank.

        Raises:
            DocumentError: it holds something else, or what no file could hold as UTF-8.
        """
        value: str = self._of(name, str, "a text")
        if not empty and not value.strip():
            raise self.wrong(f'"{name}" is empty, where a text was expected')
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.wrong(
                f'"{name}" is no valid Unicode: half a character, {value[error.start]!r}, at {error.start}'
            ) from error
        return value

    def name(self, name: str) -> str:
        """A field that names something: a text, or a whole number, which stands for its digits.

        Raises:
            DocumentError: it holds something else.
        """
        value = str(self._of(name, (str, int), "a text or a whole number"))
        if not value:
            raise self.wrong(f'"{name}" is empty, where a name was expected')
        return value

    def number(self, name: str, below: int, what: str) -> int:
        """A field that holds a number from 0 on.

        Args:
            name: of the field.
            below: what it must be smaller than.
            what: there are so many of, in the plural.

        Raises:
            DocumentError: it holds something else.
        """
        value: int = self._of(name, int, "a whole number")
        if not 0 <= value < below:
            raise self.wrong(f'"{name}" is {value}, and there are {below} {what}, numbered from 0')
        return value

    def wrong(self, sentence: str) -> DocumentError:
        """The error that says where this row is."""
        return DocumentError(f"{self.path}, line {self.line}: {sentence}.")

    def _of(self, name: str, kinds: type | tuple[type, ...], expected: str) -> Any:
        if name not in self.fields:
            held = ", ".join(f'"{known}"' for known in self.fields) or "nothing"
            raise self.wrong(f'expected an object with a "{name}", and this one holds {held}')
        value = self.fields[name]
        if isinstance(value, bool) or not isinstance(value, kinds):
            arrived = _KINDS.get(type(value), type(value).__name__)
            raise self.wrong(f'"{name}" is {arrived} ({value!r:.60}), where {expected} was expected')
        return value


def checked_rows(path: Path) -> Iterator[Row]:
    """The rows of a .jsonl or .jsonl.gz file, one after the other; raises as `jsonl_rows`."""
    return (Row(path, number, fields) for number, fields in jsonl_rows(path))


def numbered(rows: Sequence[Row], name: str) -> dict[str, int]:
    """The number of each row by a field that no two of them share, in their order.

    Raises:
        DocumentError: two rows share it, or as `Row.name`.
    """
    found: dict[str, int] = {}
    for number, row in enumerate(rows):
        value = row.name(name)
        if value in found:
            raise row.wrong(
                f'"{name}" is {value!r:.60}, as in line {rows[found[value]].line}; one line each was expected'
            )
        found[value] = number
    return found
