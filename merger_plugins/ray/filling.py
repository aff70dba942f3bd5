"""The back-fill of a database on Ray: workers take points apart, sort, calibrate and merge.

Where the database is a server, workers read and write it as well; an embedded one is read and written by the
process that has it open, and Ray lets the workers wait for it.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray
from ray.data import DataContext, Dataset
from ray.data.aggregate import Count, Max, Min

from merger_plugins.errors import StoreError
from merger_plugins.mergers.base import FANOUT, SequenceMerger
from merger_plugins.mergers.calibration import CalibrationStatistics
from merger_plugins.ray.calibrating import Gathering, added_up
from merger_plugins.ray.engine import Shared, cluster, context, in_worker, resident, translated
from merger_plugins.ray.points import (
    NOTE,
    WHOLE,
    Cut,
    Note,
    Order,
    blocked,
    cut,
    documents_of,
    extract,
    read_span,
    sheet_table,
    ties,
)
from merger_plugins.ray.results import results_of, tables_of
from merger_plugins.ray.rows import BLOCK, DOCUMENT, VECTOR, block_of, parts_of_floats
from merger_plugins.ray.trees import Part, root_of
from merger_plugins.ray.weaving import Hashes, Known, Weaving, hash_of, no_rows, weave, weaver_of
from merger_plugins.stores.backend import Backend, Where
from merger_plugins.stores.extracting import Sheet
from merger_plugins.stores.filling import Left
from merger_plugins.stores.foreign import Edition
from merger_plugins.stores.gathering import batches, read
from merger_plugins.stores.records import PointIds
from merger_plugins.stores.spool import Gathered, as_text, twins_error
from merger_plugins.stores.weaving import Woven
from merger_plugins.stores.workshop import Step, Taken, Task, refuse_lengths

_FLOATS_OF_TABLE = 4_000_000
_POINTS_OF_SPAN = 20_000

_NAMED = 3


class RayEngine:
    """Where a back-fill sorts, calibrates and merges: ``store.backfill(engine=RayEngine())``.

    Args:
        workers: how many CPUs to use; all of the cluster for None. More than there are is an error.
        address: of a cluster that runs, as `ray.init` takes it; None for the one that Ray is connected to or
            that RAY_ADDRESS names, or else for this machine.
        partitions: into how many parts the chunks are put; 32 MB each for None, and at the most 2,048.
        block: how many chunks of a long document one worker takes at once, a power of the merger's fan-out;
            as many as fit into 16 MB for None.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        address: str | None = None,
        partitions: int | None = None,
        block: int | None = None,
    ) -> None:
        self.workers = workers
        self.address = address
        self.partitions = partitions
        self.block = block

    def workplace(self, task: Task, backend: Backend) -> RayWorkplace:
        """Set up for a back-fill of this database.

        Raises:
            InputError: more workers than CPUs.
            ClusterError: there is no cluster at the address.
        """
        return RayWorkplace(self, task, backend)


class RayWorkplace:
    """A `Workshop` on Ray; the methods are the same."""

    def __init__(self, engine: RayEngine, task: Task, backend: Backend) -> None:
        self._engine = engine
        self._task = task
        self._backend = backend
        self._stack = ExitStack()
        self._cpus = self._stack.enter_context(cluster(workers=engine.workers, address=engine.address))
        self._stack.enter_context(DataContext.current(context()))
        self._order = Order([])
        self._fanout = 0
        self._chunks = 0
        self._names: list[pa.Array] = []
        self._stored: list[tuple[Hashes, Hashes, NDArray[np.int64]]] = []
        self._known = Known(*no_rows())
        self._seen: list[tuple[Hashes, NDArray[np.int64]]] = []
        self._found: Known | None = None
        self._rows: Dataset
        self._parts: Dataset
        self._statistics = CalibrationStatistics(task.dimension)
        self._note = Note(Left(), [set() for _ in task.reading.order_by])

    def close(self) -> None:
        """Let go of what Ray keeps, and stop it if it was started here."""
        self.__dict__.pop("_rows", None)
        self.__dict__.pop("_parts", None)
        self._stack.close()

    # -- reading ---------------------------------------------------------------------------------------

    def gather(self, backend: Backend, where: Where, progress: Callable[[int], object]) -> None:
        """As `Workshop.gather`; from a server by all workers."""
        with translated("Reading the points"):
            if backend.exclusive or where != Where():
                source = ray.data.from_arrow_refs(self._put(backend, where, progress)).map_batches(
                    extract,
                    batch_size=None,
                    batch_format="pyarrow",
                    fn_kwargs={"task": Shared.of(self._task)},
                )
            else:
                spans = backend.spans(max(2 * self._cpus, self._task.expected // _POINTS_OF_SPAN))
                items = [{"span": pickle.dumps(span)} for span in spans]
                source = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
                    read_span,
                    batch_size=1,
                    batch_format="pyarrow",
                    fn_kwargs={"work": Shared.of((backend, self._task))},
                )
            self._rows = source.materialize()
            notes = 0
            for batch in tables_of(
                self._rows.select_columns([NOTE]).map_batches(_notes, batch_format="pyarrow")
            ):
                for data in batch.column(NOTE).to_pylist():
                    self._note.take(pickle.loads(data))
                    notes += 1
            self._chunks = self._rows.count() - notes
        progress(self._chunks)
        refuse_lengths(self._task, self._note.shortest, self._note.longest)

    def _put(self, backend: Backend, where: Where, progress: Callable[[int], object]) -> list[Any]:
        refs: list[Any] = []
        waiting: list[Sheet] = []

        def put() -> None:
            if waiting or not refs:
                sheets = waiting or [Sheet.of([], self._task.dimension)]
                refs.append(ray.put(sheet_table(sheets)))
            waiting.clear()

        def take(sheet: Sheet) -> None:
            waiting.append(sheet)
            if sum(one.vectors.size for one in waiting) >= _FLOATS_OF_TABLE:
                put()

        read(backend, where, self._task.dimension, take, progress)
        put()
        return refs

    def taken(self) -> Taken:
        """As `Workshop.taken`."""
        return Taken(self._chunks, self._note.left)

    def settle(self) -> int:
        """As `Workshop.settle`."""
        text = as_text(self._task.reading.order_by, self._note.kinds)
        self._order = Order(text)
        with translated("Sorting the points"):
            self._divide(FANOUT)
            found = self._parts.select_columns([DOCUMENT, *self._order.fields])
            order = Shared.of(self._order)
            counted = found.map_batches(
                _ties,
                batch_size=None,
                batch_format="pyarrow",
                fn_kwargs={"order": order},
            )
            short = sum(sum(batch.column("ties").to_pylist()) for batch in tables_of(counted))
        return short + sum(each.ties for each in self._order.cuts.values())

    def _divide(self, fanout: int) -> None:
        """Put what is merged together into one part; of long documents, so much as one worker takes."""
        if self._fanout == fanout:
            return
        block = self._engine.block or block_of(fanout, self._task.dimension)
        source = self._parts if self._fanout else self._rows
        self._fanout = fanout
        cuts = self._cuts(source, replace(self._order, block=block))
        self._order = replace(self._order, cuts=cuts, block=block)
        order = Shared.of(self._order)
        self._parts = (
            source.map_batches(
                blocked,
                batch_format="pyarrow",
                fn_kwargs={"order": order},
            )
            .repartition(self._partitions, keys=[DOCUMENT, BLOCK])
            .materialize()
        )
        self.__dict__.pop("_rows", None)

    @property
    def _partitions(self) -> int:
        return self._engine.partitions or parts_of_floats(self._chunks * self._task.dimension)

    def _cuts(self, source: Dataset, order: Order) -> dict[str, Cut]:
        counted = (
            source.select_columns([DOCUMENT, WHOLE])
            .groupby(DOCUMENT, num_partitions=self._partitions)
            .aggregate(
                Count(alias_name="count"), Min(WHOLE, alias_name="least"), Max(WHOLE, alias_name="most")
            )
            .map_batches(_unusual, batch_format="pyarrow", fn_kwargs={"block": order.block})
        )
        long, twins = list[str](), list[str]()
        for batch in tables_of(counted):
            for row in batch.to_pylist():
                (twins if row["least"] < row["most"] else long).append(row[DOCUMENT])
        if twins:
            raise twins_error(sorted(twins)[:_NAMED])
        if not long:
            return {}
        if self._task.reading.contextual != "none":
            raise StoreError(
                f"The document {long[0]!r} has more than {order.block:,} chunks, and contextual vectors of "
                "so long a document are made in one process only. Back-fill without an engine (--engine), or "
                "without contextual vectors."
            )
        light = [name for name in source.columns() if name not in (VECTOR, NOTE, BLOCK)]
        cuts = (
            source.select_columns(light)
            .map_batches(_named, batch_format="pyarrow", fn_kwargs={"names": Shared.of(sorted(long))})
            .groupby(DOCUMENT, num_partitions=self._partitions)
            .map_groups(cut, batch_format="pyarrow", fn_kwargs={"order": Shared.of(order)})
        )
        made = [pickle.loads(data) for batch in tables_of(cuts) for data in batch.column("cut").to_pylist()]
        return {each.document.name: each for each in made}

    # -- calibrating -----------------------------------------------------------------------------------

    def calibrating(self) -> Iterator[int]:
        """As `Workshop.calibrating`."""
        with translated("Calibrating"):
            partial = self._parts.map_batches(
                _gather,
                batch_size=None,
                batch_format="pyarrow",
                fn_kwargs={"work": Shared.of((self._order, self._task.dimension))},
            )
            self._statistics = added_up(partial)
        yield self._chunks

    def statistics(self) -> CalibrationStatistics:
        """As `Workshop.statistics`."""
        return self._statistics

    # -- merging ---------------------------------------------------------------------------------------

    def know(self, stored: Sequence[tuple[str, str, int]]) -> None:
        """As `Workshop.know`."""
        self._names.append(pa.array([name for name, _, _ in stored], pa.string()))
        self._stored.append(
            (
                np.array([hash_of(name) for name, _, _ in stored], np.uint64),
                np.array([hash_of(content) for _, content, _ in stored], np.uint64),
                np.array([stop for _, _, stop in stored], np.int64),
            )
        )

    def merging(self, merger: SequenceMerger, edition: Edition, ids: PointIds) -> Iterator[Step]:
        """As `Workshop.merging`."""
        names, contents, sizes = (
            np.concatenate(column) for column in zip(no_rows(), *self._stored, strict=True)
        )
        order = np.argsort(names)
        self._known = Known(names[order], contents[order], sizes[order])
        writes = not self._backend.exclusive
        with translated("Merging"):
            self._divide(merger.fanout)
            weaving = Weaving(
                self._task,
                self._order,
                merger,
                edition,
                ids,
                self._known,
                self._backend if writes else None,
            )
            made = self._parts.map_batches(
                weave,
                batch_size=None,
                batch_format="pyarrow",
                fn_kwargs={"work": Shared.of(weaving)},
            )
            long: dict[str, dict[int, list[Part]]] = {}
            if writes:
                yield Step(writes=True)
            for result in results_of(made):
                if result is not None:
                    self._seen.append((result.names, result.sizes))
                    for name, part in result.parts:
                        long.setdefault(name, {}).setdefault(part.level, []).append(part)
                    yield result.step
                elif writes:
                    yield Step(writes=True)
        yield from self._long(weaving, long)

    def _long(self, weaving: Weaving, parts: dict[str, dict[int, list[Part]]]) -> Iterator[Step]:
        weaver = weaver_of(weaving, np.zeros((0, self._task.dimension), np.float32))
        for name, each in self._order.cuts.items():
            same, before = self._known.of(each.document)
            self._seen.append((np.array([hash_of(name)], np.uint64), np.array([each.chunks])))
            if same:
                yield Step(documents=1)
                continue
            rolling = root_of(name, parts[name], weaving.merger, self._order.block, each.chunks)
            root = weaver.root(each.document, each.chunks, each.mass, rolling.vector)
            stale = weaver.stale(each.chunks, name, before)
            yield Step(stale, Woven([], [], [root]), documents=1, merged=1)

    def gone(self) -> list[str]:
        """As `Workshop.gone`."""
        seen = np.concatenate([no_rows()[0], *(names for names, _ in self._seen)])
        gone: list[str] = []
        for names, (hashes, _, _) in zip(self._names, self._stored, strict=True):
            gone += names.filter(pa.array(~np.isin(hashes, seen))).to_pylist()
        return sorted(set(gone))

    def sizes(self, documents: Sequence[str]) -> list[int]:
        """As `Workshop.sizes`."""
        if self._found is None:
            names = np.concatenate([no_rows()[0], *(names for names, _ in self._seen)])
            counts = np.concatenate([no_rows()[2], *(counts for _, counts in self._seen)])
            order = np.argsort(names)
            self._found = Known(names[order], np.zeros(len(names), np.uint64), counts[order])
        return [self._found.of(Gathered(name))[1] for name in documents]


@in_worker
def _gather(table: pa.Table, work: Shared[tuple[Order, int]]) -> dict[str, Any]:
    order, dimension = resident(work)
    documents, vectors = documents_of(table, order)
    made = Gathering(CalibrationStatistics(dimension))
    whole = [document for document in documents if document.name not in order.cuts]
    for batch in batches(iter(whole), dimension):
        rows = [row for document in batch for row in document.rows]
        made.statistics.update_many(vectors[rows], list(map(len, batch)))
    for document in documents:
        if document.name in order.cuts:
            made.add_part(document.name, vectors[document.rows])
    return made.packed()


@in_worker
def _ties(table: pa.Table, order: Shared[Order]) -> dict[str, Any]:
    how = resident(order)
    others = [name not in how.cuts and name != "" for name in table.column(DOCUMENT).to_pylist()]
    return {"ties": [ties(table.filter(pa.array(others, pa.bool_())), how)]}


@in_worker
def _notes(table: pa.Table) -> pa.Table:
    return table.filter(pc.is_valid(table.column(NOTE)))


@in_worker
def _named(table: pa.Table, names: Shared[list[str]]) -> pa.Table:
    return table.filter(pc.is_in(table.column(DOCUMENT), pa.array(resident(names))))


@in_worker
def _unusual(table: pa.Table, block: int) -> pa.Table:
    """Documents that are long, or two of one name."""
    long = pc.greater(table.column("count"), block)
    twins = pc.less(table.column("least"), table.column("most"))
    named = pc.not_equal(table.column(DOCUMENT), "")
    return table.filter(pc.and_(named, pc.or_(long, twins)))
