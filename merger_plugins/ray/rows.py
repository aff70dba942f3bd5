"""Chunk rows: checked, and given to workers so that what is merged together is together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from ray.data import Dataset

from merger_plugins._types import Matrix
from merger_plugins.errors import DimensionError, EmptyInputError, InputError, NonFiniteError, ZeroVectorError
from merger_plugins.ray.engine import in_worker

DOCUMENT, POSITION, BLOCK, MASS, VECTOR = "document", "position", "block", "mass", "vector"
"""Columns of checked rows; a vector is 4 d bytes, which are moved without being looked at."""

Ints: TypeAlias = NDArray[np.int64]

_FLOATS_OF_BLOCK = 4_000_000
"""Of the chunks of a long document that one worker takes at once: 16 MB."""

_FLOATS_OF_PART = 8_000_000
_MOST_PARTS = 2_048
"""A shuffle has as many pieces as it has readers times parts."""

EMPTY = "The data set has no rows; pass one row a chunk."

_SMALLEST = 1e-30
"""Of the square of a length; mergers take what is below for zero."""


@dataclass(frozen=True)
class Columns:
    """What the columns of a data set of chunks are called.

    Attributes:
        document: names the document: text or whole numbers.
        position: the place in the document, from 0 on, without gaps.
        vector: the chunk vector, a list of floats.
        mass: tokens that the vector stands for; None where all count alike.
    """

    document: str = "document_id"
    position: str = "position"
    vector: str = "vector"
    mass: str | None = None

    def names(self) -> list[str]:
        """All of them."""
        return [name for name in (self.document, self.position, self.vector, self.mass) if name is not None]


@dataclass(frozen=True)
class Extent:
    """How large a data set is, and its documents.

    Attributes:
        rows: chunks in all.
        dimension: d.
        block: the power of the merger's fan-out that a long document is cut by.
        long: documents of more chunks than that -> how many they have.
        partitions: how many parts the rows are put into.
    """

    rows: int
    dimension: int
    block: int
    long: Mapping[Any, int]
    partitions: int


def block_of(fanout: int, dimension: int) -> int:
    """The largest power of the fan-out whose vectors are no more than 16 MB, and at least the fan-out."""
    block = fanout
    while block * fanout * dimension <= _FLOATS_OF_BLOCK:
        block *= fanout
    return block


def parts_of_floats(floats: int) -> int:
    """Into how many parts so many numbers are put: 32 MB each, and no more parts than a shuffle bears."""
    return min(max(-(-floats // _FLOATS_OF_PART), 1), _MOST_PARTS)


def measured(
    dataset: Dataset,
    columns: Columns,
    fanout: int,
    *,
    block: int | None = None,
    partitions: int | None = None,
) -> Extent:
    """Look through documents and positions, and at one vector.

    Raises:
        InputError: a column is missing or of another type, the data set is empty, `block` is no power of the
            fan-out, or `partitions` is below 1.
    """
    schema = dataset.schema()
    if schema is not None:
        refuse_absent(schema.names, columns)
    dimension = _dimension(dataset, columns)
    size = checked_block(fanout, dimension, block, partitions)
    rows, long = 0, dict[Any, int]()
    found = dataset.select_columns([columns.document, columns.position]).map_batches(
        _tops,
        batch_format="pyarrow",
        fn_kwargs={"columns": columns, "block": size},
    )
    for batch in found.iter_batches(batch_size=None, batch_format="pyarrow"):
        rows += sum(batch.column("rows").to_pylist())
        for name, top in zip(
            batch.column(DOCUMENT).to_pylist(), batch.column("top").to_pylist(), strict=True
        ):
            if top >= 0:
                long[name] = max(long.get(name, 0), top + 1)
    if not rows:
        raise EmptyInputError(EMPTY)
    return Extent(rows, dimension, size, long, partitions or parts_of_floats(rows * dimension))


def refuse_absent(known: Sequence[str], columns: Columns) -> None:
    """Refuse a data set that lacks columns, if it has any.

    Raises:
        InputError: it does.
    """
    absent = [name for name in columns.names() if known and name not in known]
    if absent:
        raise InputError(
            f"The data set has the columns {', '.join(known)}, and none called {', '.join(absent)}. Name its "
            "columns: document=, position=, vector=, mass=."
        )


def checked_block(fanout: int, dimension: int, block: int | None, partitions: int | None) -> int:
    """How many chunks of a long document one worker takes.

    Raises:
        InputError: `block` is no power of the fan-out, or `partitions` is below 1.
    """
    size = block or block_of(fanout, dimension)
    power = fanout
    while power < size:
        power *= fanout
    if power != size:
        raise InputError(f"block is {size}; a power of the merger's fan-out {fanout} is needed.")
    if partitions is not None and partitions < 1:
        raise InputError(f"partitions is {partitions}; at least one is needed.")
    return size


def _dimension(dataset: Dataset, columns: Columns) -> int:
    schema = dataset.schema()
    if schema is None:
        raise EmptyInputError(EMPTY)
    kinds = pa.schema([(name, kind) for name, kind in zip(schema.names, schema.types, strict=True)])
    vectors = dataset.select_columns([columns.vector])
    return dimension_of(kinds, columns.vector, lambda: vectors.limit(1).take_all())


def dimension_of(schema: pa.Schema, column: str, first: Callable[[], list[dict[str, Any]]]) -> int:
    """Of the vectors: by their type, or else of the first one.

    Args:
        schema: of the data set.
        column: of the vectors.
        first: gives one row, or none.

    Raises:
        EmptyInputError: there is none.
        DimensionError: it holds no vector.
    """
    kind = schema.field(column).type if column in schema.names else None
    if isinstance(kind, pa.FixedSizeListType):
        return int(kind.list_size)
    rows = first() if schema.names else []
    if not rows:
        raise EmptyInputError(EMPTY)
    value = rows[0][column]
    if not hasattr(value, "__len__"):
        raise DimensionError(
            f"The first row of the data set has {value!r} in the column {column!r}; a vector is a "
            "list of floats. Leave out rows without one: dataset.filter(...)."
        )
    return len(value)


@in_worker
def _tops(table: pa.Table, columns: Columns, block: int) -> pa.Table:
    """What `tops` gives as rows, and the number of rows in one more."""
    documents, positions = documents_and_positions(table, columns)
    found = tops(documents, positions, block)
    return pa.table(
        {
            DOCUMENT: pa.array([*(name for name, _ in found), None], documents.type),
            "top": pa.array([*(top for _, top in found), -1], pa.int64()),
            "rows": pa.array([*([0] * len(found)), len(table)], pa.int64()),
        }
    )


def tops(documents: pa.Array, positions: Ints, block: int) -> list[tuple[Any, int]]:
    """The largest position of each document that has one beyond the first block."""
    beyond = positions >= block
    table = pa.table({DOCUMENT: documents.filter(pa.array(beyond)), "top": positions[beyond]})
    found = table.group_by(DOCUMENT).aggregate([("top", "max")])
    names, largest = found.column(DOCUMENT).to_pylist(), found.column("top_max").to_pylist()
    return list(zip(names, largest, strict=True))


def parted(
    dataset: Dataset,
    columns: Columns,
    extent: Extent,
) -> Dataset:
    """The rows checked, those of a document in one block of the data set, and of a long one those of each
    `block` positions.

    Args:
        dataset: chunks.
        columns: what its columns are called.
        extent: what is known of it.
    """
    given = {"columns": columns, "dimension": extent.dimension, "block": extent.block}
    rows = dataset.select_columns(columns.names())
    rows = rows.map_batches(checked, batch_format="pyarrow", fn_kwargs=given)
    return rows.repartition(extent.partitions, keys=[DOCUMENT, BLOCK])


@in_worker
def checked(table: pa.Table, columns: Columns, dimension: int, block: int) -> pa.Table:
    """As `checked_rows`, as Ray runs it."""
    return checked_rows(table, columns, dimension, block)


def checked_rows(table: pa.Table, columns: Columns, dimension: int, block: int) -> pa.Table:
    """Rows as they came -> checked rows.

    Raises:
        InputError: a row without document, position or vector; a vector of another dimension, not finite or
            zero; a mass that is none. The message names the document.
    """
    documents, positions = documents_and_positions(table, columns)
    vectors = _vectors(table, columns, dimension, documents, positions)
    made = {
        DOCUMENT: documents,
        POSITION: pa.array(positions),
        BLOCK: pa.array(positions // block),
        MASS: pa.array(_masses(table, columns, documents, positions)),
        VECTOR: as_bytes(vectors),
    }
    return pa.table(made)


def as_bytes(vectors: Matrix) -> pa.Array:
    """(n, d) float32 -> n times 4 d bytes, without a copy."""
    data = np.ascontiguousarray(vectors, "<f4")
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(4 * data.shape[1]), len(data), [None, pa.py_buffer(data)]
    )


def as_vectors(column: pa.ChunkedArray | pa.Array) -> Matrix:
    """What `as_bytes` made -> (n, d), without a copy where the column is in one piece."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    width = array.type.byte_width
    buffer = array.buffers()[1]
    if not len(array) or buffer is None:
        return np.zeros((0, width // 4), np.float32)
    flat = np.frombuffer(buffer, "<f4", len(array) * width // 4, array.offset * width)
    vectors: Matrix = flat.reshape(len(array), width // 4)
    return vectors


def as_lists(vectors: Matrix) -> pa.Array:
    """(n, d) float32 -> n lists of d floats, as Parquet keeps them."""
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def documents_and_positions(table: pa.Table, columns: Columns) -> tuple[pa.Array, Ints]:
    """(n,) documents and (n,) positions of rows as they came.

    Raises:
        InputError: one is missing, or of another type.
    """
    documents = _documents(table, columns)
    return documents, _positions(table, columns, documents)


def _documents(table: pa.Table, columns: Columns) -> pa.Array:
    array = _whole(table.column(columns.document))
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_large_string(array.type) or pa.types.is_string_view(array.type):
        array = array.cast(pa.string())
    if pa.types.is_integer(array.type):
        array = array.cast(pa.int64())
    elif not pa.types.is_string(array.type):
        raise InputError(
            f"The column {columns.document!r} holds {array.type}; documents are named by text or whole "
            "numbers."
        )
    if array.null_count:
        raise InputError(
            f"{array.null_count} of {len(array)} rows have nothing in the column {columns.document!r}, so "
            "that they belong to no document. Leave them out: dataset.filter(...)."
        )
    return array


def _positions(table: pa.Table, columns: Columns, documents: pa.Array) -> Ints:
    array = _whole(table.column(columns.position))
    if not pa.types.is_integer(array.type):
        raise InputError(
            f"The column {columns.position!r} holds {array.type}; a position is a whole number, from 0 on."
        )
    if array.null_count:
        name = documents[pc.index(array.is_null(), True).as_py()].as_py()
        raise InputError(f"A chunk of the document {name!r} has no position. Number its chunks from 0 on.")
    positions: Ints = array.cast(pa.int64()).to_numpy(zero_copy_only=False)
    if len(positions) and positions.min() < 0:
        row = int(np.argmin(positions))
        raise InputError(
            f"A chunk of the document {documents[row].as_py()!r} has the position {positions[row]}; they "
            "count from 0 on."
        )
    return positions


def _vectors(
    table: pa.Table, columns: Columns, dimension: int, documents: pa.Array, positions: Ints
) -> Matrix:
    array = _whole(table.column(columns.vector))
    if isinstance(array, pa.ExtensionArray):
        array = array.storage

    def at(row: int) -> str:
        return f"The chunk {positions[row]} of the document {documents[row].as_py()!r}"

    if not (
        pa.types.is_list(array.type)
        or pa.types.is_large_list(array.type)
        or pa.types.is_fixed_size_list(array.type)
    ):
        raise InputError(f"The column {columns.vector!r} holds {array.type}; a vector is a list of floats.")
    sizes = pc.list_value_length(array).fill_null(-1).to_numpy(zero_copy_only=False)
    other = np.flatnonzero(sizes != dimension)
    if len(other):
        row = int(other[0])
        found = "no vector" if sizes[row] < 0 else f"a vector of dimension {sizes[row]}"
        raise DimensionError(
            f"{at(row)} has {found}, and the first one of the data set has dimension {dimension}. All must "
            "come from one embedding model."
        )
    flat = array.flatten()
    if flat.null_count:
        row = int(pc.index(flat.is_null(), True).as_py()) // dimension
        raise NonFiniteError(
            f"{at(row)} holds nothing in place of a number. Embed that text again, or leave it out."
        )
    numbers = flat.to_numpy(zero_copy_only=False)
    vectors: Matrix = numbers.astype(np.float32, copy=False).reshape(len(array), dimension)
    squared = np.einsum("nd,nd->n", vectors, vectors)
    if not np.isfinite(squared).all():
        raise NonFiniteError(
            f"{at(int(np.argmin(np.isfinite(squared))))} holds NaN, infinity or a number too large to square "
            "in float32. Embed that text again, or leave it out."
        )
    if len(squared) and squared.min() <= _SMALLEST:
        raise ZeroVectorError(
            f"{at(int(np.argmin(squared)))} has a vector of length zero, so that it has no direction. Leave "
            "it out: an embedding model gives a zero vector only for broken input."
        )
    return vectors


def _masses(table: pa.Table, columns: Columns, documents: pa.Array, positions: Ints) -> NDArray[np.float32]:
    if columns.mass is None:
        return np.ones(len(table), np.float32)
    array = _whole(table.column(columns.mass))
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
        raise InputError(f"The column {columns.mass!r} holds {array.type}; a mass is a number of tokens.")
    masses: NDArray[np.float32] = (
        array.cast(pa.float32(), safe=False).fill_null(np.nan).to_numpy(zero_copy_only=False)
    )
    wrong = np.flatnonzero(~((masses > 0) & np.isfinite(masses)))
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f"The chunk {positions[row]} of the document {documents[row].as_py()!r} has the mass "
            f"{masses[row]}; each must be a finite number above 0."
        )
    return masses


def _whole(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # what pyarrow gives back for none or for extension types
        array = array.chunk(0) if array.num_chunks else pa.array([], column.type)
    return array
