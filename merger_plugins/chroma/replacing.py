"""Putting points in the place of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import numpy as np
from chromadb import Collection

from merger_plugins._types import Vector
from merger_plugins.chroma.damage import got
from merger_plugins.chroma.flat import PREFIX, Flat
from merger_plugins.chroma.querying import at


@dataclass(frozen=True, eq=False)
class Stored:
    """A point as it is in Chroma; without a vector where the index has lost that."""

    flat: Mapping[str, Any]
    text: str | None
    vector: Vector | None

    @property
    def version(self) -> int:
        """0 where it has none."""
        return int(self.flat.get(f"{PREFIX}version", 0))


def stored_points(collection: Collection, ids: Sequence[str]) -> dict[str, Stored]:
    """Those of these points that are there, in one request."""
    if not ids:
        return {}
    answer = got(collection, ids, ["metadatas", "documents", "embeddings"])
    return {
        point_id: Stored(
            at(answer["metadatas"], row) or {},
            at(answer["documents"], row),
            None if vector is None else np.asarray(vector, np.float32),
        )
        for row, (point_id, vector) in enumerate(zip(answer["ids"], answer["embeddings"], strict=True))
    }


def replace(
    collection: Collection,
    rows: Sequence[tuple[str, Vector, Flat, str | None]],
    stored: Mapping[str, Stored],
) -> None:
    """Put (id, vector, metadata, document) in the place of what is stored, in this order.

    Chroma merges metadata with what is there, so that old keys and documents have to be taken away by name. A
    vector that stays is not sent: replacing one in the index costs much more than inserting it.
    """
    changes = []
    for point_id, vector, flat, text in rows:
        old = stored.get(point_id)
        stale: Flat = {} if old is None else dict.fromkeys(key for key in old.flat if key not in flat)
        moved = old is None or old.vector is None or not np.array_equal(old.vector, vector)
        document = None if text == (old.text if old else None) else text or ""
        changes.append((moved or document is not None, point_id, vector, flat | stale, document))
    for sent, group in groupby(changes, key=lambda change: change[0]):
        _, ids, vectors, flats, documents = zip(*group, strict=True)
        metadatas: Any = [flat or None for flat in flats]
        if sent:  # with the vector, as Chroma would make one for a document without
            collection.upsert(list(ids), list(vectors), metadatas, cast(Any, list(documents)))
        elif any(flats):
            collection.update(list(ids), metadatas=metadatas)
