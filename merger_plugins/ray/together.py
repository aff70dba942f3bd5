"""Parquet files in units: documents that lie within one are merged where they lie, and only others travel."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import ray
from numpy.typing import NDArray
from ray.data import DataContext, Dataset

from merger_plugins.errors import EmptyInputError, InputError
from merger_plugins.mergers.calibration import CalibrationStatistics
from merger_plugins.ray.calibrating import Gathering, added_up, gathering_of
from merger_plugins.ray.engine import Shared, in_worker, resident
from merger_plugins.ray.results import tables_of
from merger_plugins.ray.rows import (
    BLOCK,
    DOCUMENT,
    EMPTY,
    Columns,
    Extent,
    checked_block,
    checked_rows,
    dimension_of,
    documents_and_positions,
    parts_of_floats,
    refuse_absent,
    tops,
)

Hashes: TypeAlias = NDArray[np.uint64]

UNIT, _GATHERED = "unit", "gathered"

_BYTES_OF_UNIT = 64 << 20
"""A row group that is larger by itself is a unit all the same."""

_MOST_FLOATS = 64_000_000
"""A unit of more is not held as a whole, and all of its documents travel."""

_FOOTERS_AT_ONCE = 16
_NAME = "Name a Parquet file, or a folder of them."

_FLOATS_OF_BATCH = 4_000_000
_MOST_BLOCKS = 4_096


@dataclass(frozen=True)
class Unit:
    """Row groups that follow one another, of one file or of several.

    Attributes:
        fragments: where they are.
        rows: in all.
        schema: of the whole data set; a fragment has the columns of its folder's name from it.
        held: whether it is small enough to be held as a whole.
    """

    fragments: tuple[pads.ParquetFileFragment, ...]
    rows: int
    schema: pa.Schema
    held: bool = True

    def read(self, columns: Sequence[str]) -> pa.Table:
        """All rows of some columns."""
        one = {"schema": self.schema, "columns": list(columns), "use_threads": False}
        return pa.concat_tables([part.to_table(**one) for part in self.fragments])

    def batches(self, columns: Sequence[str], size: int) -> Iterator[pa.Table]:
        """As `read`, at the most so many rows at a time."""
        for part in self.fragments:
            for batch in part.to_batches(
                schema=self.schema, columns=list(columns), batch_size=size, use_threads=False
            ):
                yield pa.Table.from_batches([batch])


@dataclass(frozen=True)
class Survey:
    """What is known of the files before their vectors are read.

    Attributes:
        units: what a worker reads at once.
        columns: what the columns are called.
        extent: of all of it; `partitions` is for the loose rows alone.
        loose: (k,) hashes, ascending, of the documents that do not lie within one unit, and of long ones.
        scattered: numbers of the units that have chunks of such.
        together: numbers of the units that have other documents.
    """

    units: tuple[Unit, ...]
    columns: Columns
    extent: Extent
    loose: Hashes
    scattered: tuple[int, ...]
    together: tuple[int, ...]


@dataclass(frozen=True)
class Job:
    """What a worker needs to read a unit: the survey, and hashes of the documents that are done."""

    survey: Survey
    done: Hashes


@dataclass(frozen=True)
class Source:
    """Parquet files that were found.

    Attributes:
        dataset: of them all.
    """

    dataset: pads.FileSystemDataset

    @classmethod
    def of(cls, source: str) -> Source:
        """Find the files: one, or all in a folder and its folders.

        Raises:
            InputError: there are none, or they cannot be read.
        """
        try:
            if "://" in source:
                system, path = pafs.FileSystem.from_uri(source)
            else:
                system, path = pafs.LocalFileSystem(), str(Path(source).absolute())
            files = _files_in(system, path)
            if not files:
                raise InputError(f"{source} holds no files called *.parquet. {_NAME}")
            dataset = pads.dataset(
                files, filesystem=system, format="parquet", partitioning="hive", partition_base_dir=path
            )
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"{source} cannot be read as Parquet ({error}). {_NAME}") from error
        return cls(dataset)

    @property
    def files(self) -> list[str]:
        """Their paths, ascending."""
        return sorted(self.dataset.files)

    def survey(
        self, columns: Columns, fanout: int, *, block: int | None = None, partitions: int | None = None
    ) -> Survey:
        """Look through documents and positions.

        Raises:
            InputError: as `measured`.
        """
        refuse_absent(self.dataset.schema.names, columns)
        units = tuple(_units(self.dataset, partitions))
        dimension = dimension_of(
            self.dataset.schema,
            columns.vector,
            lambda: self.dataset.head(1, columns=[columns.vector]).to_pylist(),
        )
        size = checked_block(fanout, dimension, block, partitions)
        if not units:
            raise EmptyInputError(EMPTY)
        units = tuple(replace(unit, held=unit.rows * dimension <= _MOST_FLOATS) for unit in units)
        rows, long = 0, dict[Any, int]()
        names, owners, counts = list[Hashes](), list[NDArray[np.int64]](), list[NDArray[np.int64]]()
        found = each_unit(
            range(len(units)), _look, {"units": Shared.of(units), "columns": columns, "block": size}
        )
        for batch in tables_of(found):
            for row in batch.to_pylist():
                rows += row["rows"]
                for name, top in pickle.loads(row["tops"]):
                    long[name] = max(long.get(name, 0), top + 1)
                names.append(np.frombuffer(row["names"], np.uint64))
                counts.append(np.frombuffer(row["counts"], np.int64))
                owners.append(np.full(len(names[-1]), row[UNIT]))
        if not rows:
            raise EmptyInputError(EMPTY)
        name, owner, count = np.concatenate(names), np.concatenate(owners), np.concatenate(counts)
        distinct, place, times = np.unique(name, return_inverse=True, return_counts=True)
        large = np.array([not unit.held for unit in units])
        apart = (times > 1) | np.isin(distinct, hashes_of(pa.array(list(long))))
        apart[place[large[owner]]] = True
        loose = apart[place]
        travelling = int(count[loose].sum()) * dimension
        extent = Extent(rows, dimension, size, long, partitions or parts_of_floats(travelling))
        scattered, together = (tuple(np.unique(owner[of]).tolist()) for of in (loose, ~loose))
        return Survey(units, columns, extent, distinct[apart], scattered, together)


def _files_in(system: pafs.FileSystem, path: str) -> list[str]:
    """The file itself, or those in a folder and its folders, but for names that begin with . or _."""
    found = system.get_file_info(path)
    if found.type == pafs.FileType.File:
        return [path]
    inside = system.get_file_info(pafs.FileSelector(path, recursive=True))
    return sorted(
        each.path
        for each in inside
        if each.type == pafs.FileType.File
        and each.path.endswith(".parquet")
        and not any(part[:1] in {".", "_"} for part in PurePosixPath(each.path).relative_to(path).parts)
    )


def _units(dataset: pads.FileSystemDataset, partitions: int | None) -> Iterator[Unit]:
    """Row groups in the order of the files' names, put together until they are large enough."""
    files = sorted(dataset.get_fragments(), key=lambda each: each.path)
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        split = pool.map(pads.ParquetFileFragment.split_by_row_group, files)
        groups = [(part, part.row_groups[0]) for parts in split for part in parts]
    total = sum(group.total_byte_size for _, group in groups)
    most = min(_BYTES_OF_UNIT, total // (partitions or 1))
    waiting, rows, size = list[pads.ParquetFileFragment](), 0, 0
    for part, group in groups:
        if waiting and size + group.total_byte_size > most:
            yield Unit(tuple(waiting), rows, dataset.schema)
            waiting, rows, size = [], 0, 0
        waiting.append(part)
        rows, size = rows + group.num_rows, size + group.total_byte_size
    if waiting:
        yield Unit(tuple(waiting), rows, dataset.schema)


def each_unit(numbers: Sequence[int], work: Callable[..., Any], options: Mapping[str, Any]) -> Dataset:
    """Work on units, one a call; a task takes one or a few, one after the other."""
    blocks = min(len(numbers), _MOST_BLOCKS)
    items = ray.data.from_items([{UNIT: number} for number in numbers], override_num_blocks=blocks)
    return items.map_batches(work, batch_size=1, batch_format="pyarrow", fn_kwargs=dict(options))


@in_worker
def _look(table: pa.Table, units: Shared[tuple[Unit, ...]], columns: Columns, block: int) -> pa.Table:
    """What `Source.survey` needs of a unit."""
    (number,) = table.column(UNIT).to_pylist()
    found = resident(units)[number].read([columns.document, columns.position])
    documents, positions = documents_and_positions(found, columns)
    counted = documents.value_counts()
    return pa.table(
        {
            UNIT: [number],
            "rows": [len(documents)],
            "tops": [pickle.dumps(tops(documents, positions, block))],
            "names": [hashes_of(counted.field("values")).tobytes()],
            "counts": [counted.field("counts").to_numpy().tobytes()],
        }
    )


def loosened(job: Job, *, calibrates: bool) -> Dataset:
    """The loose rows, checked, those of a document in one block of the data set, as `parted` has them.

    With `calibrates`, rows without a block of their own among them hold the statistics of what lies together;
    `statistics_of` adds them up.
    """
    survey = job.survey
    numbers = survey.scattered if not calibrates else tuple(range(len(survey.units)))
    # Ray reads a unit in the task that shuffles it, and would give one task many of them: they look small.
    alone = DataContext.get_current().copy()
    alone.shuffle_input_batch_bytes = 0
    with DataContext.current(alone):
        rows = each_unit(numbers, _loosen, {"work": Shared.of(job), "calibrates": calibrates})
        return rows.repartition(survey.extent.partitions, keys=[DOCUMENT, BLOCK])


@in_worker
def _loosen(table: pa.Table, work: Shared[Job], calibrates: bool) -> Iterator[pa.Table]:
    (number,) = table.column(UNIT).to_pylist()
    job = resident(work)
    unit, dimension = job.survey.units[number], job.survey.extent.dimension
    if not unit.held:
        for batch in unit.batches(job.survey.columns.names(), _FLOATS_OF_BATCH // dimension):
            yield _with_statistics(_split(job, batch)[1])
        return
    together, loose = _split(job, unit.read(job.survey.columns.names()))
    yield _with_statistics(loose)
    if calibrates and together.num_rows:
        yield _with_statistics(together.slice(0, 1), gathering_of(together, job.survey.extent))


def together_of(job: Job, number: int) -> pa.Table:
    """The checked rows of a unit's documents that lie together and are not done."""
    return _split(job, job.survey.units[number].read(job.survey.columns.names()))[0]


def _split(job: Job, table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Rows as they came -> checked rows of documents that lie together, and of others; done ones left out."""
    survey = job.survey
    rows = checked_rows(table, survey.columns, survey.extent.dimension, survey.extent.block)
    encoded = rows.column(DOCUMENT).combine_chunks().dictionary_encode()
    names, codes = hashes_of(encoded.dictionary), encoded.indices.to_numpy()
    new, loose = ~np.isin(names, job.done), np.isin(names, survey.loose)
    return _of(rows, (new & ~loose)[codes]), _of(rows, (new & loose)[codes])


def _of(rows: pa.Table, chosen: NDArray[np.bool_]) -> pa.Table:
    return rows if chosen.all() else rows.filter(pa.array(chosen))


def _with_statistics(rows: pa.Table, gathering: Gathering | None = None) -> pa.Table:
    """Rows with a column for statistics; where there are some, they belong to no block."""
    packed = None if gathering is None else pickle.dumps(gathering)
    if packed is not None:
        rows = rows.set_column(rows.schema.get_field_index(BLOCK), BLOCK, pa.array([-1], pa.int64()))
    return rows.append_column(_GATHERED, pa.array([packed] * len(rows), pa.binary()))


def chunks_of(table: pa.Table) -> pa.Table:
    """What of a block of `loosened` is chunks."""
    if table.column(_GATHERED).null_count < len(table):
        table = table.filter(pc.is_null(table.column(_GATHERED)))
    return table.drop_columns([_GATHERED])


def statistics_of(loosened: Dataset, extent: Extent) -> CalibrationStatistics:
    """The statistics of all rows, of `loosened` with `calibrates`."""
    return added_up(
        loosened.map_batches(
            _gather, batch_size=None, batch_format="pyarrow", fn_kwargs={"extent": Shared.of(extent)}
        )
    )


@in_worker
def _gather(table: pa.Table, extent: Shared[Extent]) -> dict[str, Any]:
    total = gathering_of(chunks_of(table), resident(extent))
    for data in table.column(_GATHERED).drop_null().to_pylist():
        total = total + pickle.loads(data)
    return total.packed()


def hashes_of(names: pa.Array | pa.ChunkedArray) -> Hashes:
    """(k,) 64 bits of each name: 128 would be safe for any number, 64 are for millions of documents."""
    digests = (
        blake2b(str(name).encode(errors="surrogatepass"), digest_size=8).digest()
        for name in names.to_pylist()
    )
    return np.frombuffer(b"".join(digests), "<u8")
