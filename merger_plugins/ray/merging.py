"""Chunk rows -> merged rows, as transformations of a Ray data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray.data import Dataset

from merger_plugins._batching import spanned
from merger_plugins._nodes import Nodes
from merger_plugins._types import Matrix, Vector
from merger_plugins.errors import InputError, ZeroVectorError
from merger_plugins.mergers.base import FANOUT, SequenceMerger
from merger_plugins.mergers.calibrated import CalibratedMerger
from merger_plugins.ray.calibrating import gathered
from merger_plugins.ray.engine import Shared, in_worker, resident
from merger_plugins.ray.rows import Columns, Extent, as_lists, measured, parted
from merger_plugins.ray.sequences import Piece, Sorted
from merger_plugins.ray.trees import Part, parts_of, root_of
from merger_plugins.stores.planning import root_level
from merger_plugins.tree import RollingMerge, frontier

ROOT, SECTION, _NODE = "root", "section", "node"

_Row = tuple[Any, str, int, int, int, float, int]


@dataclass(frozen=True)
class Work:
    """What every worker needs."""

    merger: SequenceMerger
    extent: Extent


def merge_dataset(
    dataset: Dataset,
    merger: SequenceMerger | None = None,
    *,
    columns: Columns | None = None,
    calibrate: bool | None = None,
    sections: bool = False,
    block: int | None = None,
    partitions: int | None = None,
) -> tuple[Dataset, SequenceMerger]:
    """Merge a data set of chunks, one row each, into one row a document.

    Documents may be split over blocks of the data set, and their chunks be in any order. Documents and
    positions are looked through first, then everything is read once; so materialise a data set that is
    expensive to compute. A document of any length may be among them: what one worker holds of it are
    `block` chunks, and then one vector for each `block`.

    Args:
        dataset: chunks. Ray's own errors, and ours from the workers, come when the result is consumed.
        merger: makes the merges; for None a `CalibratedMerger` that knows nothing of the embedding model.
        columns: what its columns are called.
        calibrate: whether to calibrate the merger on the data set's own vectors, whose parts are then kept in
            Ray's object store or on its disk meanwhile. None does where it is a `CalibratedMerger` without
            statistics.
        sections: whether to give the section vectors of level 1 too.
        block: how many chunks of a long document one worker takes at once, a power of the merger's fan-out;
            as many as fit into 16 MB for None.
        partitions: into how many parts the chunks are put; 32 MB each for None, and at the most 2,048 parts.

    Returns:
        The merged rows, and the merger that makes them. Their columns: ``document``; ``kind``, "root" or
        "section"; ``level``; ``position`` and ``stop``, the chunks they cover; ``mass``; ``count``;
        ``vector``, (d,) float32 of unit length. Roots equal `RollingMerge.vector` of the whole document.

    Raises:
        InputError: as `measured`, and a merger of another dimension; and, when the result is consumed, a
            position that is missing or there twice, a vector of another dimension, not finite or zero: the
            message names the document.
    """
    columns = columns or Columns()
    fanout = merger.fanout if merger else FANOUT
    extent = measured(dataset, columns, fanout, block=block, partitions=partitions)
    base = base_for(merger, extent.dimension)
    parts = parted(dataset, columns, extent)
    if is_calibrated(base, calibrate):
        parts = parts.materialize()
        base = base.calibrated(gathered(parts, extent))
    work = Shared.of(Work(base, extent))
    merged = parts.map_batches(
        merge_part,
        batch_size=None,
        batch_format="pyarrow",
        fn_kwargs={"work": work, "sections": sections},
    )
    if extent.long:
        merged = merged.repartition(extent.partitions, keys=["document"]).map_batches(
            finish_part,
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs={"work": work},
        )
    return merged, base


def base_for(merger: SequenceMerger | None, dimension: int) -> SequenceMerger:
    """The merger to start from.

    Raises:
        InputError: it works in another dimension.
    """
    base = CalibratedMerger(dimension=dimension) if merger is None else merger
    if base.dimension not in (None, dimension):
        raise InputError(
            f"The data set has dimension {dimension}, and {base!r} works in dimension {base.dimension}. Pass "
            "a merger for the embedding model that made the vectors, or none."
        )
    return base


def is_calibrated(base: SequenceMerger, calibrate: bool | None) -> bool:
    """Whether a merger is calibrated on the data set first."""
    if calibrate is None:
        return isinstance(base, CalibratedMerger) and base.statistics is None
    return calibrate


@in_worker
def merge_part(table: pa.Table, work: Shared[Work], sections: bool) -> Iterator[pa.Table]:
    """The roots of a part's documents, and nodes of long ones; sections of both."""
    merger, extent = (shared := resident(work)).merger, shared.extent
    rows = Sorted.of(table, extent)
    type_ = table.schema.field("document").type
    if not table.num_rows:  # a shuffle puts blocks together, and one without columns fits no other
        yield _table([], np.empty((0, extent.dimension), np.float32), type_)
    for lot in rows.lots():
        yield _merged(merger, lot, rows.vectors(lot), rows.masses(lot), sections, type_)
    for piece in rows.pieces:
        vectors, masses = rows.vectors([piece]), rows.masses([piece])
        if sections:
            spans = _sections(merger, piece, 0)
            made = merger._merge_ready(spanned(merger._ready(vectors), masses, np.array(spans)))
            yield _table([_section(piece, span, masses) for span in spans], made, type_)
        places = extent.long[piece.document]
        for part in parts_of(merger, vectors, masses, first=piece.first, block=extent.block, places=places):
            found = [
                (
                    piece.document,
                    _NODE,
                    part.level,
                    part.first + i,
                    part.first + i + 1,
                    float(mass),
                    int(count),
                )
                for i, (mass, count) in enumerate(zip(part.nodes.masses, part.nodes.counts, strict=True))
            ]
            yield _table(found, part.nodes.vectors, type_)


@in_worker
def finish_part(table: pa.Table, work: Shared[Work]) -> Iterator[pa.Table]:
    """The roots of long documents in place of their nodes; other rows as they are."""
    merger, extent = (shared := resident(work)).merger, shared.extent
    nodes = pc.equal(table.column("kind"), _NODE)
    others = table.filter(pc.invert(nodes))
    if others.num_rows or not table.num_rows:
        yield others
    table = table.filter(nodes)
    names = table.column("document").to_pylist()
    vectors = _floats(table.column("vector"))
    columns = [table.column(name).to_pylist() for name in ("level", "position", "mass", "count")]
    documents: dict[Any, dict[int, list[Part]]] = {}
    for row, (name, level, index, mass, count) in enumerate(zip(names, *columns, strict=True)):
        node = Nodes(vectors[row : row + 1], np.array([mass], np.float32), np.array([count]))
        documents.setdefault(name, {}).setdefault(level, []).append(Part(level, index, node))
    for name, parts in documents.items():
        places = extent.long[name]
        rolling = root_of(name, parts, merger, extent.block, places)
        root = (name, ROOT, root_level(places, merger.fanout), 0, places, rolling.mass, places)
        yield _table([root], rolling.vector[None], table.schema.field("document").type)


def _merged(
    merger: SequenceMerger,
    lot: list[Piece],
    vectors: Matrix,
    masses: Vector,
    sections: bool,
    type_: pa.DataType,
) -> pa.Table:
    """Documents that are whole: those whose tree reads the chunks themselves, and sections, all at once."""
    ready = merger._ready(vectors)
    leaves = ready if type(merger)._ready is SequenceMerger._ready else None
    rows = list[_Row]()
    spans = list[tuple[int, int]]()
    long: list[tuple[_Row, Vector]] = []
    start = 0
    for document in lot:
        stop = start + len(document)
        if sections:
            own = _sections(merger, document, start)
            spans += own
            rows += [_section(document, (low - start, high - start), masses[start:stop]) for low, high in own]
        root = _root(document, masses[start:stop], merger)
        if len(frontier(len(document), merger.fanout, lazy=merger._lazy_carry)) == 1:
            spans.append((start, stop))
            rows.append(root)
        else:
            leaves = merger._leaves(vectors) if leaves is None else leaves
            rolling = RollingMerge(merger, history=False)
            rolling._extend_leaves(leaves[start:stop], masses[start:stop])
            long.append((root, rolling._root_direction()))
        start = stop
    made = []
    if spans:
        made.append(_checked(merger._merge_ready(spanned(ready, masses, np.array(spans))), rows))
    if long:
        rows += [row for row, _ in long]
        made.append(merger._out(np.stack([direction for _, direction in long])))
    return _table(rows, _checked(np.concatenate(made), rows), type_)


def _sections(merger: SequenceMerger, piece: Piece, start: int) -> list[tuple[int, int]]:
    """Where the sections of a piece that begins at this row are; a short document has none."""
    if piece.first == 0 and len(piece) < merger.fanout:
        return []
    return [
        (start + low, start + min(low + merger.fanout, len(piece)))
        for low in range(0, len(piece), merger.fanout)
    ]


def _section(piece: Piece, span: tuple[int, int], masses: Vector) -> _Row:
    start, stop = span
    mass = float(masses[start:stop].sum(dtype=np.float64))
    return (piece.document, SECTION, 1, piece.first + start, piece.first + stop, mass, stop - start)


def _root(document: Piece, masses: Vector, merger: SequenceMerger) -> _Row:
    count = len(document)
    mass = float(masses.sum(dtype=np.float64))
    return (document.document, ROOT, root_level(count, merger.fanout), 0, count, mass, count)


def _checked(merged: Matrix, rows: list[_Row]) -> Matrix:
    empty = ~merged.any(axis=1)
    if empty.any():
        name, _, _, start, stop, _, _ = rows[int(np.argmax(empty))]
        raise ZeroVectorError(
            f"The chunks {start} to {stop - 1} of the document {name!r} merge to a vector of length zero: "
            "they cancel out. Vectors of one embedding model never do; check where they came from."
        )
    return merged


def _table(rows: list[_Row], vectors: Matrix, type_: pa.DataType) -> pa.Table:
    names, kinds, levels, starts, stops, masses, counts = zip(*rows, strict=True) if rows else ((),) * 7
    return pa.table(
        {
            "document": pa.array(names, type_),
            "kind": pa.array(kinds, pa.string()),
            "level": pa.array(levels, pa.int32()),
            "position": pa.array(starts, pa.int64()),
            "stop": pa.array(stops, pa.int64()),
            "mass": pa.array(masses, pa.float64()),
            "count": pa.array(counts, pa.int64()),
            "vector": as_lists(vectors),
        }
    )


def _floats(column: pa.ChunkedArray) -> Matrix:
    array = column.combine_chunks()
    width = array.type.list_size
    vectors: Matrix = array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), width)
    return vectors
