"""Parquet files of chunks -> Parquet files of merged vectors, which an interrupted run goes on with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from ray.data import DataContext, Dataset

from merger_plugins.errors import FingerprintError, StoreError
from merger_plugins.mergers.base import FANOUT, SequenceMerger
from merger_plugins.mergers.loading import load_merger
from merger_plugins.ray.engine import Shared, context, in_worker, resident, translated
from merger_plugins.ray.merging import ROOT, Work, base_for, finish_part, is_calibrated, merge_part
from merger_plugins.ray.results import tables_of
from merger_plugins.ray.rows import Columns, Extent
from merger_plugins.ray.together import (
    UNIT,
    Job,
    Source,
    chunks_of,
    each_unit,
    hashes_of,
    loosened,
    statistics_of,
    together_of,
)

_RECORD = "_merged.json"
_MERGER = "_merger"
_VERSION = 1
_COUNTS = b"merger_plugins"


@dataclass(frozen=True)
class Written:
    """What a back-fill of Parquet files did.

    Attributes:
        documents: in all.
        merged: documents that were merged now; the others were done before.
        chunks: in all.
        files: that hold merged vectors.
        calibration_vectors: how many chunk vectors the calibration saw; 0 for none.
        fingerprint: of the merger.
    """

    documents: int
    merged: int
    chunks: int
    files: int
    calibration_vectors: int
    fingerprint: str


def backfill_parquet(
    source: str,
    into: str,
    *,
    merger: SequenceMerger | None = None,
    columns: Columns | None = None,
    calibrate: bool | None = None,
    sections: bool = True,
    block: int | None = None,
    partitions: int | None = None,
    anew: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Written:
    """Merge the chunks in Parquet files, and write section and root vectors as Parquet files.

    Documents may be split over files, and be in any order; of those within some 64 MB of the files no vector
    leaves the worker that reads it, and others are shuffled. Workers write whole files, by renaming them,
    whose names follow from their documents: what is done stays, and the same call after an interruption
    merges the rest, with the calibration from before. Once complete, it changes nothing.

    Args:
        source: a Parquet file or a folder of them, as a path or URI.
        into: a folder, as a path or URI; all workers must reach it. Its files have the columns that
            `merge_dataset` gives. The merger is kept there too, so that `load_merger` reads it from
            ``<into>/_merger``.
        merger: as `merge_dataset`, like all that follows.
        columns: as above.
        calibrate: as above.
        sections: whether to write section vectors too.
        block: as above.
        partitions: as above, of what is shuffled; and at least how many parts the files are read in.
        anew: whether to remove what other chunks, columns or another merger left in the folder.
        progress: called with the number of files each time that there are more.

    Raises:
        InputError: as `merge_dataset`; or there are no such files.
        FingerprintError: the folder holds merged vectors of other chunks or another merger; `anew` is off.
        StoreError: it holds files that nobody knows of, or cannot be written.
        ClusterError: Ray gave up.
    """
    columns = columns or Columns()
    target = _Folder.of(into)
    # Workers write their results themselves, and what is shuffled must all be there before it is merged.
    with DataContext.current(context(waits=False)), translated("Merging"):
        found = Source.of(source)
        fanout = merger.fanout if merger else FANOUT
        survey = found.survey(columns, fanout, block=block, partitions=partitions)
        extent = survey.extent
        base = base_for(merger, extent.dimension)
        calibrates = is_calibrated(base, calibrate)
        wanted = {
            "version": _VERSION,
            "chunks": extent.rows,
            "files": found.files,
            "columns": columns.names(),
            "merger": base.fingerprint,
            "calibrated": calibrates,
            "sections": sections,
        }
        record = target.record(wanted, anew=anew)
        done = target.documents()
        job = Job(survey, hashes_of(done))
        loose = None
        if record is not None:
            base = target.merger()
        elif calibrates:
            loose = loosened(job, calibrates=True).materialize()
            base = base.calibrated(statistics_of(loose, extent))
        if record is None:
            target.begin(base, wanted)
        work = Shared.of(Work(base, extent))
        options = {"work": work, "target": target, "sections": sections}
        written = [_write_together(job, options)] if survey.together else []
        if survey.scattered:
            loose = loosened(job, calibrates=False) if loose is None else loose
            written.append(_write_loose(loose, extent, options))
        files = 0
        for rows in written:
            for _ in tables_of(rows):
                files += 1
                if progress is not None:
                    progress(files)
    counts = target.counts()
    statistics = getattr(base, "statistics", None)
    return Written(
        documents=sum(documents for documents, _ in counts),
        merged=sum(documents for documents, _ in counts) - len(done),
        chunks=sum(chunks for _, chunks in counts),
        files=len(counts),
        calibration_vectors=statistics.vectors if statistics else 0,
        fingerprint=base.fingerprint,
    )


def _write_together(job: Job, options: dict[str, Any]) -> Dataset:
    """Merge and write the documents that lie together, a file for each unit."""
    return each_unit(job.survey.together, _write_unit, {**options, "job": Shared.of(job)})


@in_worker
def _write_unit(
    table: pa.Table, job: Shared[Job], work: Shared[Work], target: _Folder, sections: bool
) -> Iterator[pa.Table]:
    (number,) = table.column(UNIT).to_pylist()
    rows = pa.concat_tables(list(merge_part(together_of(resident(job), number), work, sections)))
    if rows.num_rows:
        target.write(rows)
        yield _said(rows)


def _write_loose(loose: Dataset, extent: Extent, options: dict[str, Any]) -> Dataset:
    """Merge and write the other ones, once those of each are in one part."""
    made = loose.map_batches(_write_part, batch_size=None, batch_format="pyarrow", fn_kwargs=options)
    if extent.long:
        made = made.repartition(extent.partitions, keys=["document"]).map_batches(
            _write_long,
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs={"work": options["work"], "target": options["target"]},
        )
    return made


@in_worker
def _write_part(table: pa.Table, work: Shared[Work], target: _Folder, sections: bool) -> Iterator[pa.Table]:
    """Merge a part and write its whole documents; what belongs to long ones goes on."""
    extent: Extent = resident(work).extent
    rows = pa.concat_tables(list(merge_part(chunks_of(table), work, sections)))
    long = pc.is_in(rows.column("document"), pa.array(list(extent.long), rows.schema.field("document").type))
    target.write(rows.filter(pc.invert(long)))
    if extent.long:
        yield rows.filter(long)
    elif rows.num_rows:
        yield _said(rows)


@in_worker
def _write_long(table: pa.Table, work: Shared[Work], target: _Folder) -> Iterator[pa.Table]:
    """Complete the long documents of a part, and write them."""
    merged = list(finish_part(table, work))
    if merged:
        rows = pa.concat_tables(merged)
        target.write(rows)
        yield _said(rows)


def _said(rows: pa.Table) -> pa.Table:
    return pa.table({"rows": [rows.num_rows]})


@dataclass(frozen=True)
class _Folder:
    """Where merged vectors go, and what is known of them."""

    place: str
    path: str
    system: pafs.FileSystem

    @classmethod
    def of(cls, into: str) -> _Folder:
        try:
            system, path = pafs.FileSystem.from_uri(into) if "://" in into else (pafs.LocalFileSystem(), into)
            if isinstance(system, pafs.LocalFileSystem):
                path = str(Path(path).absolute())
            system.create_dir(path, recursive=True)
        except (OSError, pa.ArrowInvalid) as error:
            raise StoreError(
                f"The folder {into} cannot be made or reached ({error}). Name another."
            ) from error
        return cls(into, path, system)

    def record(self, wanted: dict[str, Any], *, anew: bool) -> dict[str, Any] | None:
        """What the folder was begun with; None where it is empty."""
        record: dict[str, Any] | None = None
        if self._info(_RECORD).type == pafs.FileType.File:
            with self.system.open_input_stream(self._at(_RECORD)) as file:
                record = json.loads(file.read())
        if record is not None and {key: record.get(key) for key in wanted} == wanted:
            return record
        if record is not None and not anew:
            other = [key for key, value in wanted.items() if record.get(key) != value]
            raise FingerprintError(
                f"The folder {self.place} holds merged vectors that were made with other {', '.join(other)}. "
                "Name another folder, or pass anew=True (--anew) to remove them and make all again."
            )
        others = [name for name in self._names() if not name.endswith(".parquet") and name[0] not in "_."]
        if others or (record is None and self._files() and not anew):
            raise StoreError(
                f"The folder {self.place} holds files that this package did not write there (such as "
                f"{(others or self._files())[0]}). Name an empty one."
            )
        for name in [_RECORD, *self._files()]:
            if self._info(name).type == pafs.FileType.File:
                self.system.delete_file(self._at(name))
        return None

    def begin(self, merger: SequenceMerger, wanted: dict[str, Any]) -> None:
        """Keep the merger, and then say what is being made."""
        self.system.create_dir(self._at(_MERGER))
        with TemporaryDirectory() as folder:
            saved = merger.save(f"{folder}/merger")
            pafs.copy_files(
                str(saved),
                self._at(_MERGER),
                source_filesystem=pafs.LocalFileSystem(),
                destination_filesystem=self.system,
            )
        self._put(_RECORD, json.dumps({**wanted, "fingerprint": merger.fingerprint}, indent=1).encode())

    def merger(self) -> SequenceMerger:
        """The merger that was kept."""
        with TemporaryDirectory() as folder:
            pafs.copy_files(
                self._at(_MERGER),
                folder,
                source_filesystem=self.system,
                destination_filesystem=pafs.LocalFileSystem(),
            )
            return load_merger(folder)

    def write(self, rows: pa.Table) -> None:
        """Write merged rows of complete documents at once; nothing for none."""
        if not rows.num_rows:
            return
        roots = rows.filter(pc.equal(rows.column("kind"), ROOT))
        names = sorted(map(str, roots.column("document").to_pylist()))
        counts = {"documents": len(names), "chunks": pc.sum(roots.column("count")).as_py()}
        rows = rows.replace_schema_metadata({_COUNTS: json.dumps(counts).encode()})
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink)
        digest = blake2b("\0".join(names).encode(errors="surrogatepass"), digest_size=12).hexdigest()
        self._put(f"part-{digest}.parquet", sink.getvalue())

    def documents(self) -> pa.Array:
        """The documents that are done."""
        found = [
            pq.read_table(self._at(name), filesystem=self.system, columns=["document", "kind"])
            for name in self._files()
        ]
        tables = [table.filter(pc.equal(table.column("kind"), ROOT)).column("document") for table in found]
        return pa.chunked_array(
            [chunk for column in tables for chunk in column.chunks] or [pa.array([], pa.string())]
        )

    def counts(self) -> list[tuple[int, int]]:
        """Documents and chunks of each file."""
        made = []
        for name in self._files():
            with self.system.open_input_file(self._at(name)) as file:
                said = json.loads(pq.ParquetFile(file).schema_arrow.metadata[_COUNTS])
                made.append((said["documents"], said["chunks"]))
        return made

    def _put(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write a file so that it is there as a whole or not at all."""
        try:
            with self.system.open_output_stream(self._at(f".{name}")) as file:
                file.write(data)
            self.system.move(self._at(f".{name}"), self._at(name))
        except OSError as error:
            raise StoreError(
                f"{self._at(name)} cannot be written ({error}). Make room or give access; the same call goes "
                "on from there."
            ) from error

    def _files(self) -> list[str]:
        return sorted(
            name for name in self._names() if name.startswith("part-") and name.endswith(".parquet")
        )

    def _names(self) -> list[str]:
        infos = self.system.get_file_info(pafs.FileSelector(self.path))
        return [PurePosixPath(info.path).name for info in infos]

    def _info(self, name: str) -> pafs.FileInfo:
        return self.system.get_file_info(self._at(name))

    def _at(self, name: str) -> str:
        return f"{self.path}/{name}"
