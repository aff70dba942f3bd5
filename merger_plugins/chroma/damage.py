"""What is left of a vector index that Chroma was saving when its process was killed or its disk was full.

Chroma saves an index in place: it may be unreadable afterwards, have lost vectors, or crash the process that
opens it. Ids, metadata and documents are in its SQLite database, which no crash harms; so are the newest
vectors, those that were written since the last save.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from chromadb import Collection

_UNREADABLE = ("hnsw segment", "hnsw index", "pickle file")
_LOST = ("error finding id", "error getting embedding")
ASIDE = ".damaged"
"""What the name of a folder with an unreadable index ends in."""

_HEADER = struct.Struct("<iQQQQQQiIQQQdQ")
"""How hnswlib's `header.bin` begins: version, where level 0 begins, room, elements, bytes of an element,
where its label and its vector are, highest level, entry point, three limits of neighbours, a factor, ef."""

_VERSION = 1
_LINKS_AT_MOST = 1_000
"""Bytes that the links of an element take on the higher levels, on average; it is about ten."""


def torn(folder: Path) -> list[Path]:
    """The indexes in a folder whose files do not fit together; Chroma must not open them.

    Raises:
        OSError: they cannot be read.
    """
    return [
        header.parent
        for header in sorted(folder.glob("*/header.bin"))
        if ASIDE not in header.parent.name and _is_torn(header)
    ]


def _is_torn(header: Path) -> bool:
    data = header.read_bytes()
    if len(data) < _HEADER.size:
        return True
    version, _, room, elements, size, _, _, _, entry, most, most_below, neighbours, _, _ = (
        _HEADER.unpack_from(data)
    )
    if version != _VERSION:
        return False  # of another form, which Chroma knows
    if elements > room or 0 in (size, most, most_below, neighbours) or (elements and entry >= elements):
        return True
    names = ("data_level0.bin", "length.bin", "link_lists.bin")
    files = [header.with_name(name) for name in names]
    if not all(file.exists() for file in files):
        return True
    level0, lengths, links = (file.stat().st_size for file in files)
    if not elements <= level0 // size <= room or not elements <= lengths // 4 <= room:
        return True
    if links > elements * _LINKS_AT_MOST:
        return True
    return not _holds_lists(files[2].read_bytes(), elements)


def _holds_lists(data: bytes, count: int) -> bool:
    """Whether these are so many lists, the length of each in front of it."""
    place, end = 0, len(data)
    for _ in range(count):
        if place + 4 > end:
            return False
        place += 4 + int.from_bytes(data[place : place + 4], "little")
    return place == end


def is_unreadable(text: str) -> bool:
    """Whether an error of Chroma's says that an index cannot be read."""
    return any(sign in text.lower() for sign in _UNREADABLE)


def has_lost(text: str) -> bool:
    """Whether an error of Chroma's says that an index has not all the vectors that it should have."""
    return any(sign in text.lower() for sign in _LOST)


def got(collection: Collection, ids: Sequence[str], include: Iterable[str]) -> Any:
    """As `Collection.get`; None for each vector that the index has lost, which it may say or give zeros."""
    wanted: Any = sorted(set(include))
    try:
        answer: Any = collection.get(list(ids), include=wanted)
        vectors = answer["embeddings"]
        if vectors is None or np.all(np.any(vectors, axis=-1)):
            return answer
        return {**answer, "embeddings": [vector if vector.any() else None for vector in vectors]}
    except Exception as error:
        if "embeddings" not in wanted or not has_lost(str(error)):
            raise
    wanted.remove("embeddings")
    answer = dict(collection.get(list(ids), include=wanted))
    known: dict[str, Any] = {}
    _look_up(collection, answer["ids"], known)
    return {**answer, "embeddings": [known.get(point_id) for point_id in answer["ids"]]}


def _look_up(collection: Collection, ids: Sequence[str], known: dict[str, Any]) -> None:
    """Read the vectors that there are, by halves."""
    try:
        answer: Any = collection.get(list(ids), include=["embeddings"])
    except Exception as error:
        if not has_lost(str(error)):
            raise
        if len(ids) > 1:
            middle = len(ids) // 2
            _look_up(collection, ids[:middle], known)
            _look_up(collection, ids[middle:], known)
    else:
        known |= zip(answer["ids"], answer["embeddings"], strict=True)


def is_readable(collection: Collection) -> bool:
    """Whether Chroma can open the index of a collection."""
    try:
        collection.count()
    except Exception as error:
        if is_unreadable(str(error)):
            return False
        raise
    return True


def indexes_of(folder: Path, collections: Iterable[str]) -> list[Path]:
    """Where the indexes of collections are, which are given by their ids.

    Raises:
        sqlite3.Error: the database cannot be read.
    """
    found: list[Path] = []
    place = quote(str(folder / "chroma.sqlite3"))
    with closing(sqlite3.connect(f"file:{place}?mode=ro", uri=True)) as database:
        for collection in collections:
            rows = database.execute(
                "SELECT id FROM segments WHERE collection = ? AND scope = 'VECTOR'", [collection]
            )
            found += [folder / segment for (segment,) in rows.fetchall()]
    return found


def set_aside(indexes: Iterable[Path]) -> None:
    """Take indexes away, so that Chroma begins new ones, with the newest vectors alone.

    They stay beside under another name. Chroma must not be at work there.

    Raises:
        OSError: the folder cannot be written.
    """
    for index in indexes:
        if index.exists():
            number = sum(1 for _ in index.parent.glob(f"{index.name}{ASIDE}*"))
            index.rename(index.with_name(f"{index.name}{ASIDE}{number or ''}"))
