"""Documents as data sets of chunks, split and in any order, and mergers that fail on purpose."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from merger_plugins import MeanMerger, SequenceMerger
from merger_plugins._types import Matrix
from merger_plugins.errors import DocumentError
from tests.strategies import Array, chunk_vectors

DIMENSION = 12


def documents(sizes: list[int], seed: int = 0) -> dict[str, tuple[Array, Array]]:
    """Name -> vectors and masses."""
    rng = np.random.default_rng(seed)
    return {
        f"d{i}": (chunk_vectors(seed + i, size, DIMENSION), rng.integers(1, 90, size).astype(np.float32))
        for i, size in enumerate(sizes)
    }


def rows_of(texts: dict[str, tuple[Array, Array]], seed: int = 0) -> list[dict[str, Any]]:
    """One row a chunk, in random order."""
    rows = [
        {"document_id": name, "position": place, "vector": vector.tolist(), "tokens": float(mass)}
        for name, (vectors, masses) in texts.items()
        for place, (vector, mass) in enumerate(zip(vectors, masses, strict=True))
    ]
    order = np.random.default_rng(seed).permutation(len(rows))
    return [rows[place] for place in order]


def tables_of(rows: list[dict[str, Any]], parts: int) -> list[pa.Table]:
    """The rows as so many tables."""
    size = -(-len(rows) // parts)
    kind = pa.schema(
        {
            "document_id": pa.string(),
            "position": pa.int64(),
            "vector": pa.list_(pa.float32()),
            "tokens": pa.float64(),
        }
    )
    return [pa.Table.from_pylist(rows[start : start + size], kind) for start in range(0, len(rows), size)]


def assert_merged(
    table: pa.Table, texts: dict[str, tuple[Array, Array]], merger: SequenceMerger, *, sections: bool
) -> None:
    """Each row is what one process gives, and there is each row once."""
    found = {(row["document"], row["kind"], row["position"]): row for row in table.to_pylist()}
    assert len(found) == table.num_rows
    expected: dict[tuple[str, str, int], tuple[Array, int]] = {}
    for name, (vectors, masses) in texts.items():
        rolling = merger.rolling()
        rolling.extend(vectors, masses=masses)
        expected[name, "root", 0] = (rolling.vector, len(vectors))
        if sections and len(vectors) >= merger.fanout:
            for index, vector in enumerate(rolling.sections(1)):
                start = merger.fanout * index
                expected[name, "section", start] = (vector, min(merger.fanout, len(vectors) - start))
    assert found.keys() == expected.keys()
    for key, (vector, count) in expected.items():
        np.testing.assert_allclose(found[key]["vector"], vector, atol=1e-5)
        masses = texts[key[0]][1][key[2] : key[2] + count]
        assert found[key]["count"] == count
        assert found[key]["stop"] == key[2] + count
        assert found[key]["mass"] == float(masses.sum())


class Recorded(MeanMerger):
    """The mean, which writes down each time that a worker begins with a part."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    @property
    def parts(self) -> int:
        """How many there were."""
        return len(list(self.folder.glob("part-*")))

    def _ready(self, vectors: Matrix) -> Matrix:
        (self.folder / f"part-{os.getpid()}-{os.urandom(8).hex()}").touch()
        self.happens()
        return vectors

    def happens(self) -> None:
        """Nothing."""


class DiesOnce(Recorded):
    """Takes its worker along, the first time."""

    def happens(self) -> None:
        try:
            (self.folder / "died").touch(exist_ok=False)
        except FileExistsError:
            return
        os._exit(1)


class Dies(Recorded):
    """Takes its worker along, each time."""

    def happens(self) -> None:
        os._exit(1)


class FailsWhileAsked(Recorded):
    """Fails after ten calls as long as there is a file."""

    def happens(self) -> None:
        if (self.folder / "fail").exists() and self.parts > 10:
            raise DocumentError("asked to fail")
