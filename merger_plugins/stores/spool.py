"""Chunk vectors on disk, put in the order of their documents however they arrive."""

from __future__ import annotations

import errno
import math
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merger_plugins._types import Matrix
from merger_plugins.errors import InputError, StoreError, StoreFullError
from merger_plugins.stores.backend import Payload
from merger_plugins.stores.extracting import Page, shared

_BYTES_OF_ROW = 600
"""About what the table needs for a point, with room for sorting."""

_LARGEST = 2**63

_COLUMNS = "row, document, id, mass, digest, metadata"


@dataclass(eq=False)
class Gathered:
    """The chunks of one document in reading order; their vectors stay on disk.

    Attributes:
        name: the document.
        ids: of the points.
        masses: (n,).
        content: hash of everything that was read of them, and of their order.
        metadata: what all of them share.
        rows: (n,) places in the file of vectors.
        first: place of the first one; above 0 where only some chunks of the document are here.
    """

    name: str
    ids: list[str] = field(default_factory=list)
    masses: list[float] = field(default_factory=list)
    content: str = ""
    metadata: Payload = field(default_factory=dict)
    rows: list[int] = field(default_factory=list)
    first: int = 0

    def __len__(self) -> int:
        return len(self.ids)


class Spool:
    """A table and a file of vectors in a folder of its own, gone when it is closed.

    Memory stays small however many chunks there are; the disk takes 4 d bytes a chunk and a few hundred more.

    Args:
        dimension: d.
        keys: how many fields order the chunks of a document.
        folder: where to put it; the system's folder for temporary files for None.
        expected: how many chunks will come, to see beforehand whether there is room.

    Raises:
        InputError: there is no such folder, or it cannot be written.
        StoreFullError: there is not enough room.
    """

    def __init__(
        self, dimension: int, keys: int, *, folder: str | os.PathLike[str] | None, expected: int
    ) -> None:
        self.dimension = dimension
        self.chunks = 0
        self._keys = keys
        self._text_keys: list[bool] = []
        self._kinds: list[set[str]] = [set() for _ in range(keys)]
        self._names: set[bool] = set()
        parent = Path(tempfile.gettempdir() if folder is None else folder)
        if not parent.is_dir():
            raise InputError(f"The folder for temporary files {parent} does not exist.")
        needed = expected * (4 * dimension + _BYTES_OF_ROW)
        free = shutil.disk_usage(parent).free
        if free < needed:
            raise StoreFullError(
                f"{parent} has {free / 1e9:.1f} GB free, and {expected:,} chunks of dimension {dimension} "
                f"need {needed / 1e9:.1f} GB there for a while. Name a folder with more room: scratch= "
                "(--scratch)."
            )
        try:
            self._folder = tempfile.TemporaryDirectory(prefix="merger-plugins-", dir=parent)
        except OSError as error:
            raise InputError(
                f"The folder for temporary files {parent} cannot be written ({error}). Name another one: "
                "scratch= (--scratch)."
            ) from error
        self._file = (Path(self._folder.name) / "vectors").open("w+b", buffering=0)
        self._db = sqlite3.connect(
            Path(self._folder.name) / "chunks",
            isolation_level=None,
            check_same_thread=False,  # `verify` goes on in whichever thread asks for the next problem
        )
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -65536", "temp_store = FILE"):
            self._db.execute(f"PRAGMA {pragma}")
        keys_sql = "".join(f", n{i} REAL, t{i} TEXT" for i in range(keys))
        self._db.execute(
            "CREATE TABLE chunks (row INTEGER PRIMARY KEY, document TEXT, whole INTEGER, id TEXT, "
            f"number INTEGER, mass REAL, digest BLOB, metadata TEXT{keys_sql})"
        )
        self._db.execute("CREATE TABLE known (document TEXT PRIMARY KEY, content TEXT, stop INTEGER)")
        self._db.execute("CREATE TABLE made (document TEXT PRIMARY KEY, size INTEGER)")
        self._db.execute("CREATE TABLE points (id TEXT PRIMARY KEY) WITHOUT ROWID")

    @property
    def folder(self) -> str:
        """Where it is."""
        return self._folder.name

    def close(self) -> None:
        """Remove the folder."""
        self._db.close()
        self._file.close()
        self._folder.cleanup()

    def add(self, page: Page) -> None:
        """Take chunks in, in whatever order they come."""
        if not len(page):
            return
        keys = [compared([order[key] for order in page.order], self._kinds[key]) for key in range(self._keys)]
        self._names.update(page.whole)
        rows = zip(
            range(self.chunks, self.chunks + len(page)),
            page.documents,
            page.whole,
            page.ids,
            [int(each) if each.isdecimal() and len(each) <= 18 else None for each in page.ids],
            page.masses,
            page.digests,
            page.metadata,
            *(column for pair in keys for column in pair),
            strict=True,
        )
        marks = ", ".join("?" * (8 + 2 * self._keys))
        with self._disk():
            data = page.vectors.data.cast("B")
            while data:
                data = data[self._file.write(data) :]
            self._db.execute("BEGIN")
            self._db.executemany(f"INSERT INTO chunks VALUES ({marks})", rows)
            self._db.execute("COMMIT")
        self.chunks += len(page)

    def settle(self, order_by: Sequence[str]) -> int:
        """Decide how the fields of the order compare, once all chunks are in; returns how many points tie.

        Args:
            order_by: names of the fields, for messages.

        Raises:
            InputError: a field of the order holds numbers and text that is none, or two documents have one
                name: once as a number, once as text.
        """
        if len(self._names) > 1:
            self._refuse_twins()
        self._text_keys = as_text(order_by, self._kinds)
        if not self._keys:
            return 0
        keys = ", ".join(["document", *self._sorted_keys()])
        with self._disk():
            (ties,) = self._db.execute(
                f"SELECT coalesce(sum(count), 0) FROM (SELECT count(*) AS count FROM chunks GROUP BY {keys}) "
                "WHERE count > 1"
            ).fetchone()
        return int(ties)

    def know(self, stored: Iterable[tuple[str, str, int]]) -> None:
        """Take in what is merged already: document, content and number of chunks of each."""
        with self._disk():
            self._db.execute("BEGIN")
            self._db.executemany("INSERT OR REPLACE INTO known VALUES (?, ?, ?)", stored)
            self._db.execute("COMMIT")

    def documents(self) -> Iterator[Gathered]:
        """Every document with its chunks in reading order, by name."""
        order = ", ".join(["document", *self._sorted_keys(), "number", "id"])
        with self._disk():
            ordered = self._db.execute(f"SELECT {_COLUMNS} FROM chunks ORDER BY {order}")
        for name, group in groupby(ordered, key=itemgetter(1)):
            yield gathered(name, group)

    def rows(self) -> Iterator[list[int]]:
        """The rows of every document, by name; in the order in which they came, as that sorts faster."""
        with self._disk():
            ordered = self._db.execute("SELECT row, document FROM chunks ORDER BY document, row")
        for _, group in groupby(ordered, key=itemgetter(1)):
            yield [row for row, _ in group]

    def is_known(self, document: Gathered) -> tuple[bool, int]:
        """Whether a document is merged in this very form, and how many chunks it had when it last was."""
        row = self._db.execute(
            "SELECT content, stop FROM known WHERE document = ?", (document.name,)
        ).fetchone()
        return (False, 0) if row is None else (row[0] == document.content, row[1])

    def note(self, documents: Iterable[Gathered]) -> None:
        """Keep how many chunks documents have."""
        with self._disk():
            self._db.execute("BEGIN")
            self._db.executemany(
                "INSERT OR REPLACE INTO made VALUES (?, ?)", [(one.name, len(one)) for one in documents]
            )
            self._db.execute("COMMIT")

    def size_of(self, document: str) -> int:
        """How many chunks a document has, as noted; 0 where there is no such document."""
        row = self._db.execute("SELECT size FROM made WHERE document = ?", (document,)).fetchone()
        return 0 if row is None else int(row[0])

    def is_noted(self, document: str) -> bool:
        """Whether `note` was told of it."""
        found = self._db.execute("SELECT 1 FROM made WHERE document = ?", (document,)).fetchone()
        return found is not None

    def gone(self) -> Iterator[str]:
        """Documents that are known and have no chunk any more."""
        rows = self._db.execute(
            "SELECT document FROM known WHERE document NOT IN (SELECT document FROM chunks) ORDER BY document"
        )
        return (row[0] for row in rows.fetchall())

    def expect(self, ids: Iterable[str]) -> None:
        """Keep ids of points that belong into the companion."""
        with self._disk():
            self._db.execute("BEGIN")
            self._db.executemany("INSERT OR IGNORE INTO points VALUES (?)", [(one,) for one in ids])
            self._db.execute("COMMIT")

    def is_expected(self, point_id: str) -> bool:
        """Whether a point belongs there."""
        found = self._db.execute("SELECT 1 FROM points WHERE id = ?", (point_id,)).fetchone()
        return found is not None

    def vectors(self, rows: Sequence[int]) -> Matrix:
        """(n, d) float32, the vectors in these rows."""
        matrix: NDArray[np.float32] = np.empty((len(rows), self.dimension), "<f4")
        size = 4 * self.dimension
        data = matrix.data.cast("B")
        ends = [*np.flatnonzero(np.diff(np.asarray(rows)) != 1) + 1, len(rows)]
        start = 0
        for end in ends:  # rows that follow one another are read at once
            self._file.seek(rows[start] * size)
            self._file.readinto(data[start * size : end * size])
            start = end
        return matrix

    def _sorted_keys(self) -> list[str]:
        return [f"{'t' if text else 'n'}{i}" for i, text in enumerate(self._text_keys)]

    def _refuse_twins(self) -> None:
        with self._disk():
            twins = self._db.execute(
                "SELECT document FROM chunks GROUP BY document HAVING min(whole) < max(whole) LIMIT 3"
            ).fetchall()
        if twins:
            raise twins_error([name for (name,) in twins])

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """What goes wrong with the disk becomes an error of ours."""
        try:
            yield
        except (OSError, sqlite3.OperationalError) as error:
            full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "full" in str(error)
            if not full:
                raise StoreError(
                    f"The temporary files in {self._folder.name} failed ({error}). Repeat the call, or name "
                    "another folder: scratch= (--scratch)."
                ) from error
            raise StoreFullError(
                f"No space is left in {self._folder.name} for sorting the chunks ({error}). Name a folder "
                "with more room: scratch= (--scratch)."
            ) from error


def compared(values: list[str | int | float], kinds: set[str]) -> tuple[list[Any], list[Any]]:
    """The values of a field of the order as numbers, where they are any, and as text, where they are.

    Args:
        values: of some points.
        kinds: takes in what they are: ``"number"``, ``"text"``, or ``"either"`` for text that is a number.
    """
    if not any(type(value) is str for value in values):
        kinds.add("number")
        return [_number(value) for value in values], [None] * len(values)
    numbers = [_number(value) for value in values]
    for value, number in zip(values, numbers, strict=True):
        kinds.add("number" if type(value) is not str else "text" if number is None else "either")
    return numbers, [value if type(value) is str else None for value in values]


def as_text(order_by: Sequence[str], kinds: Sequence[set[str]]) -> list[bool]:
    """Whether each field of the order compares as text, by what `compared` found of all points.

    Raises:
        InputError: a field holds numbers and text that is none.
    """
    for name, found in zip(order_by, kinds, strict=True):
        if {"number", "text"} <= found:
            raise InputError(
                f"The field {name!r} holds numbers on some points and text on others, which have no "
                "common order. Name another field with order_by= (--order-by), or make them alike."
            )
    return ["text" in found for found in kinds]


def twins_error(names: Sequence[str]) -> InputError:
    """The error for documents of which each has the name of another."""
    return InputError(
        f"Two documents have one name, once as a number and once as text: {', '.join(names)}. "
        "Give one of them another name, or name another field with group_by= (--group-by)."
    )


def _number(value: str | int | float) -> float | int | None:
    if not isinstance(value, str):
        return _storable(value)
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _storable(value: int | float) -> int | float:
    """As the table takes it: whole numbers of at most 64 bits."""
    return value if -_LARGEST <= value < _LARGEST else float(value)


def gathered(name: str, rows: Iterable[tuple[Any, ...]]) -> Gathered:
    """A document of its chunks, (row, name, id, mass, digest, metadata) each, in reading order."""
    made = Gathered(name)
    digest = blake2b(digest_size=16)
    last, common = None, set[str]()
    for row, _, point_id, mass, own, metadata in rows:
        made.ids.append(point_id)
        made.masses.append(mass)
        made.rows.append(row)
        digest.update(own)
        if last is None:
            common.update(metadata.split("\n"))
        elif metadata != last:
            common.intersection_update(metadata.split("\n"))
        last = metadata
    made.metadata = shared("\n".join(sorted(common)))
    made.content = digest.hexdigest()
    return made
