"""What the tests of the stores share: an embedder, backends that count or fail, looks into the store."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from qdrant_client import QdrantClient

from merger_plugins import CalibratedMerger, CalibrationStatistics, MeanMerger, SequenceMerger
from merger_plugins.errors import StoreUnavailableError
from merger_plugins.qdrant import QdrantBackend
from merger_plugins.stores.backend import Backend, Point, Shelf, Swap, Where
from tests.strategies import Array, NarrowCalibrated, NarrowMean, WindowedMean, chunk_vectors

DIMENSION = 16


class HashingEmbedder:
    """A vector a text: the sum of one fixed random vector a word. Keeps what it embedded."""

    def __init__(self, dimension: int = DIMENSION) -> None:
        self.dimension = dimension
        self.seen: list[str] = []

    def embed_documents(self, texts: Sequence[str]) -> Array:
        self.seen += texts
        return np.stack([self._embed(text) for text in texts])

    def embed_query(self, text: str) -> Array:
        return self._embed(text)

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def _embed(self, text: str) -> Array:
        words = re.findall(r"\w+", text.lower())
        vectors = [
            np.random.default_rng(
                int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
            ).standard_normal(self.dimension)
            for word in words
        ]
        return np.sum(vectors, axis=0, dtype=np.float64).astype(np.float32) * np.float32(3)


class CountingBackend(QdrantBackend):
    """Counts requests and the points written by them."""

    def __init__(self, client: QdrantClient, collection: str = "documents") -> None:
        super().__init__(client, collection)
        self.reads: Counter[str] = Counter()
        self.written: Counter[str] = Counter()
        self.swapped = 0
        self.requests = 0

    def fetch(self, shelf: Shelf, ids: Sequence[str], **options: Any) -> dict[str, Point]:
        self.requests += 1
        self.reads[shelf] += len(ids)
        return super().fetch(shelf, ids, **options)

    def write(self, shelf: Shelf, points: Sequence[Point], *, below: int | None = None) -> None:
        self.requests += 1
        self.written[shelf] += len(points)
        super().write(shelf, points, below=below)

    def swap(
        self, swaps: Sequence[Swap], *, first: Sequence[Point] = (), below: int | None = None
    ) -> list[bool]:
        """As a server has it: one request, and another to read back."""
        self.requests += 1
        self.written["merged"] += len(first)
        self.swapped += len(swaps)
        return super().swap(swaps, first=first, below=below)

    def reset(self) -> None:
        self.swapped = 0
        self.reads, self.written, self.requests = Counter(), Counter(), 0


class Failing(Backend):
    """Goes away after a number of changes: each point written or deleted counts, as in a crash."""

    changes_left: int | None

    def _spend(self) -> None:
        if self.changes_left is not None:
            if not self.changes_left:
                raise StoreUnavailableError("gone")
            self.changes_left -= 1

    def write(self, shelf: Shelf, points: Sequence[Point], *, below: int | None = None) -> None:
        for point in points:
            self._spend()
            super().write(shelf, [point], below=below)

    def delete(self, shelf: Shelf, ids: Sequence[str], *, below: int | None = None) -> None:
        for point_id in ids:
            self._spend()
            super().delete(shelf, [point_id], below=below)

    def swap(
        self, swaps: Sequence[Swap], *, first: Sequence[Point] = (), below: int | None = None
    ) -> list[bool]:
        self.write("merged", first, below=below)
        done = []
        for one in swaps:
            self._spend()
            done += super().swap([one])
        return done

    def delete_document(self, shelf: Shelf, document_id: str, *, below: int | None = None) -> None:
        self._spend()
        super().delete_document(shelf, document_id, below=below)


class FailingBackend(Failing, QdrantBackend):
    """`Failing` over Qdrant."""

    def __init__(self, client: QdrantClient, collection: str = "documents") -> None:
        super().__init__(client, collection)
        self.changes_left = None


def unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


def informed(kind: type[CalibratedMerger] = CalibratedMerger) -> CalibratedMerger:
    """A calibrated merger that has statistics from the start."""
    sample = np.random.default_rng(5).standard_normal((300, DIMENSION)) * np.linspace(0.2, 1.5, DIMENSION)
    statistics = CalibrationStatistics.of((sample + 0.4).astype(np.float32))
    return kind(dimension=DIMENSION, statistics=statistics)


MERGERS: dict[str, SequenceMerger] = {
    "mean": MeanMerger(),
    "narrow mean": NarrowMean(),
    "windowed mean": WindowedMean(),
    "calibrated": informed(),
    "narrow calibrated": informed(NarrowCalibrated),
}
"""Of each kind of tree: wide and narrow nodes, a window, statistics."""


def documents(seed: int, *lengths: int) -> dict[str, Array]:
    """Chunk vectors of documents of these lengths, each with a direction of its own."""
    return {f"d{i}": chunk_vectors(1000 * seed + i, n, DIMENSION) for i, n in enumerate(lengths)}


def metadata_of(index: int) -> dict[str, Any]:
    """What `FILTERS` choose by."""
    return {"even": index % 2 == 0, "n": index, "tag": f"t{index % 3}", "share": index / 4}


FILTERS: list[tuple[dict[str, Any], Callable[[dict[str, Any]], bool]]] = [
    ({"even": True}, lambda m: m["even"]),
    ({"n": 3}, lambda m: m["n"] == 3),
    ({"tag": ["t1", "t2"]}, lambda m: m["tag"] in ("t1", "t2")),
    ({"even": True, "tag": "t0"}, lambda m: m["even"] and m["tag"] == "t0"),
    ({"share": 1.25}, lambda m: m["share"] == 1.25),
    ({"n": [1, 5]}, lambda m: m["n"] in (1, 5)),
]
"""Filters on what `metadata_of` gives, each with what it keeps."""


def stored(client: QdrantClient | Backend, collection: str, shelf: Shelf) -> dict[str, Point]:
    """All points of a collection with their vectors, by id; of a backend, which has its own collection."""
    backend = client if isinstance(client, Backend) else QdrantBackend(client, collection)
    backend.layout()
    ids = [point.id for point in backend.scan(shelf, Where())]
    return backend.fetch(shelf, ids, vectors=True)


def merged(
    client: QdrantClient | Backend, collection: str = "documents"
) -> dict[tuple[str, str, int, int], Point]:
    """Sections and roots by (document, kind, level, position)."""
    points = {
        (p.payload["document_id"], p.payload["kind"], p.payload["level"], p.payload["position"]): p
        for p in stored(client, collection, "merged").values()
        if p.payload["kind"] in ("section", "root")
    }
    assert len(points) == sum(
        p.payload["kind"] in ("section", "root") for p in stored(client, collection, "merged").values()
    )
    return points


def assert_document(
    client: QdrantClient | Backend,
    merger: SequenceMerger,
    document_id: str,
    vectors: Array,
    masses: Sequence[float] | None = None,
    collection: str = "documents",
    empty: Collection[int] = (),
) -> None:
    """The store holds these chunks of the document, the merges over them, and nothing more.

    `vectors` and `masses` have a row for each place, those that are `empty` included.
    """
    chunks = [
        point
        for point in stored(client, collection, "chunks").values()
        if point.payload["document_id"] == document_id
    ]
    chunks.sort(key=lambda point: point.payload["position"])
    filled = [place for place in range(len(vectors)) if place not in empty]
    assert [point.payload["position"] for point in chunks] == filled
    np.testing.assert_allclose(np.stack([p.vector for p in chunks]), unit(vectors[filled]), atol=1e-5)

    rolling = merger.rolling()
    rolling.extend(vectors, masses=masses)
    for place in empty:
        rolling.remove(place)
    fanout, places = merger.fanout, len(vectors)
    expected = {}
    level = 1
    while fanout**level <= places or (level == 1 and places > fanout):
        for index, vector in enumerate(rolling.sections(level)):
            start, stop = index * fanout**level, min((index + 1) * fanout**level, places)
            if (level == 1 or stop == (index + 1) * fanout**level) and vector.any():
                expected["section", level, start] = (vector, stop)
        level += 1
    expected["root", level, 0] = (rolling.vector, places)

    found = {key[1:]: point for key, point in merged(client, collection).items() if key[0] == document_id}
    assert found.keys() == expected.keys()
    for key, (vector, stop) in expected.items():
        np.testing.assert_allclose(found[key].vector, vector, atol=1e-5)
        assert found[key].payload["stop"] == stop
        assert found[key].payload["count"] == len([place for place in filled if key[2] <= place < stop])
        assert found[key].payload["fingerprint"] == merger.fingerprint
