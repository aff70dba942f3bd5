"""Chunk vectors on disk, put in the order of their documents however they arrive."""

from __future__ import annotations

import errno
import json
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
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from merger_plugins._types import Matrix, Vector
from merger_plugins.errors import InputError, StoreFullError
from merger_plugins.stores.backend import Payload

_BYTES_OF_ROW = 600
"""About what the table needs for a point, with room for sorting."""

_encode = json.JSONEncoder(sort_keys=True, default=str).encode
_decode = json.JSONDecoder().decode

_COLUMNS = "row, document, id, mass, digest, metadata"


@dataclass(frozen=True, eq=False)
class Chunk:
    """A point as it was read.

    Attributes:
        id: of the point.
        document: its document.
        order: the values of the fields that order it.
        vector: (d,) as stored.
        mass: of its text.
        text: None where it has none.
        metadata: JSON values.
    """

    id: str
    document: str
    order: Sequence[str | int | float]
    vector: Vector
    mass: float
    text: str | None
    metadata: Payload


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
    """

    name: str
    ids: list[str] = field(default_factory=list)
    masses: list[float] = field(default_factory=list)
    content: str = ""
    metadata: Payload = field(default_factory=dict)
    rows: list[int] = field(default_factory=list)

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
        self._folder = tempfile.TemporaryDirectory(prefix="merger-plugins-", dir=parent)
        self._file = (Path(self._folder.name) / "vectors").open("w+b", buffering=0)
        self._db = sqlite3.connect(Path(self._folder.name) / "chunks", isolation_level=None)
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -65536", "temp_store = FILE"):
            self._db.execute(f"PRAGMA {pragma}")
        keys_sql = "".join(f", n{i} REAL, t{i} TEXT" for i in range(keys))
        self._db.execute(
            "CREATE TABLE chunks (row INTEGER PRIMARY KEY, document TEXT, id TEXT, number INTEGER, "
            f"mass REAL, digest BLOB, metadata TEXT{keys_sql})"
        )
        self._db.execute("CREATE TABLE known (document TEXT PRIMARY KEY, content TEXT, stop INTEGER)")
        self._db.execute("CREATE TABLE made (document TEXT PRIMARY KEY, size INTEGER)")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the folder."""
        self._db.close()
        self._file.close()
        self._folder.cleanup()

    def add(self, chunks: Sequence[Chunk]) -> None:
        """Take chunks in, in whatever order they come."""
        if not chunks:
            return
        matrix = np.stack([chunk.vector for chunk in chunks]).astype("<f4", copy=False)
        rows = [
            self._row(self.chunks + index, chunk, vector)
            for index, (chunk, vector) in enumerate(zip(chunks, matrix, strict=True))
        ]
        marks = ", ".join("?" * (7 + 2 * self._keys))
        with self._disk():
            data = memoryview(matrix.tobytes())
            while data:
                data = data[self._file.write(data) :]
            self._db.execute("BEGIN")
            self._db.executemany(f"INSERT INTO chunks VALUES ({marks})", rows)
            self._db.execute("COMMIT")
        self.chunks += len(chunks)

    def settle(self, order_by: Sequence[str]) -> int:
        """Decide how the fields of the order compare, once all chunks are in; returns how many points tie.

        Args:
            order_by: names of the fields, for messages.

        Raises:
            InputError: a field holds numbers and text that is none.
        """
        for name, kinds in zip(order_by, self._kinds, strict=True):
            if {"number", "text"} <= kinds:
                raise InputError(
                    f"The field {name!r} holds numbers on some points and text on others, which have no "
                    "common order. Name another field with order_by= (--order-by), or make them alike."
                )
        self._text_keys = ["text" in kinds for kinds in self._kinds]
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
        for name, group in groupby(self._ordered(_COLUMNS), key=itemgetter(1)):
            yield _gathered(name, group)

    def rows(self) -> Iterator[list[int]]:
        """The rows of every document in reading order, by name."""
        for _, group in groupby(self._ordered("row, document"), key=itemgetter(1)):
            yield [row for row, _ in group]

    def _ordered(self, columns: str) -> Iterator[tuple[Any, ...]]:
        order = ", ".join(["document", *self._sorted_keys(), "number", "id"])
        with self._disk():
            return self._db.execute(f"SELECT {columns} FROM chunks ORDER BY {order}")

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

    def gone(self) -> Iterator[str]:
        """Documents that are known and have no chunk any more."""
        rows = self._db.execute(
            "SELECT document FROM known WHERE document NOT IN (SELECT document FROM chunks) ORDER BY document"
        )
        return (row[0] for row in rows.fetchall())

    def vectors(self, rows: Sequence[int]) -> Matrix:
        """(n, d) float32, the vectors in these rows."""
        matrix: NDArray[np.float32] = np.empty((len(rows), self.dimension), "<f4")
        size = 4 * self.dimension
        for row, target in zip(rows, matrix, strict=True):
            self._file.seek(row * size)
            self._file.readinto(target.data)
        return matrix

    def _sorted_keys(self) -> list[str]:
        return [f"{'t' if text else 'n'}{i}" for i, text in enumerate(self._text_keys)]

    def _row(self, row: int, chunk: Chunk, vector: Vector) -> tuple[Any, ...]:
        metadata = _encode(chunk.metadata)
        said = _encode([chunk.id, chunk.text, *chunk.order])
        digest = blake2b(vector.tobytes(), digest_size=16)
        digest.update(f"{said}{metadata}".encode())
        keys: list[Any] = []
        for kinds, value in zip(self._kinds, chunk.order, strict=True):
            number = _number(value)
            kinds.add("number" if not isinstance(value, str) else "text" if number is None else "either")
            keys += [number, value if isinstance(value, str) else None]
        own = int(chunk.id) if chunk.id.isdecimal() and len(chunk.id) <= 18 else None
        return (row, chunk.document, chunk.id, own, chunk.mass, digest.digest(), metadata, *keys)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """What goes wrong with the disk becomes an error of ours."""
        try:
            yield
        except (OSError, sqlite3.OperationalError) as error:
            full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "full" in str(error)
            if not full:
                raise
            raise StoreFullError(
                f"No space is left in {self._folder.name} for sorting the chunks ({error}). Name a folder "
                "with more room: scratch= (--scratch)."
            ) from error


def _number(value: str | int | float) -> float | int | None:
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return None
        return number if math.isfinite(number) else None
    return value


def _gathered(name: str, rows: Iterable[tuple[Any, ...]]) -> Gathered:
    made = Gathered(name)
    digest = blake2b(digest_size=16)
    last: str | None = None
    for row, _, point_id, mass, own, metadata in rows:
        made.ids.append(point_id)
        made.masses.append(mass)
        made.rows.append(row)
        digest.update(own)
        if last is None:
            made.metadata = _decode(metadata)
        elif metadata != last and made.metadata:
            other = _decode(metadata)
            made.metadata = {k: v for k, v in made.metadata.items() if k in other and other[k] == v}
        last = metadata
    made.content = digest.hexdigest()
    return made
