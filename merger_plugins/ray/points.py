"""Points of a database as rows of a Ray data set, and back as the documents that they make."""

from __future__ import annotations

import json
import pickle
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from merger_plugins._types import Matrix
from merger_plugins.ray.engine import Shared, in_worker, resident
from merger_plugins.ray.rows import BLOCK, DOCUMENT, VECTOR, as_bytes, as_vectors
from merger_plugins.stores.backend import Backend, Payload, Span
from merger_plugins.stores.extracting import Extractor, Sheet
from merger_plugins.stores.filling import Left
from merger_plugins.stores.gathering import in_lots
from merger_plugins.stores.spool import Gathered, compared, gathered
from merger_plugins.stores.workshop import Task

WHOLE, NOTE = "whole", "note"
ID, NUMBER, MASS, DIGEST, METADATA = "id", "number", "mass", "digest", "metadata"

_PAGE = 4_000
_DIGEST = 16
_decode = json.JSONDecoder().decode
_encode = json.JSONEncoder(default=str).encode


@dataclass
class Note:
    """What is said of some points as a whole.

    Attributes:
        left: those that were left out.
        kinds: what the fields of the order hold, see `spool.compared`.
        shortest: the least length of a vector.
        longest: the largest.
    """

    left: Left
    kinds: list[set[str]]
    shortest: float = 1.0
    longest: float = 1.0

    def take(self, other: Note) -> None:
        """Add what is said of others."""
        for what, count in other.left.counts.items():
            self.left.counts[what] = self.left.counts.get(what, 0) + count
            examples = [*self.left.examples.get(what, []), *other.left.examples.get(what, [])]
            self.left.examples[what] = examples[:_EXAMPLES]
        for own, found in zip(self.kinds, other.kinds, strict=True):
            own |= found
        self.shortest = min(self.shortest, other.shortest)
        self.longest = max(self.longest, other.longest)


_EXAMPLES = 3


@dataclass(frozen=True)
class Cut:
    """A document too long for one worker.

    Attributes:
        document: its name, content and metadata.
        chunks: how many it has.
        mass: of all of them.
        edges: the keys of the first chunk of each block but the first.
        ties: how many of its chunks share their place with another.
    """

    document: Gathered
    chunks: int
    mass: float
    edges: list[tuple[Any, ...]]
    ties: int


@dataclass(frozen=True)
class Order:
    """How chunks of a document are ordered.

    Attributes:
        text: whether each field of the order compares as text.
        cuts: the long documents, by name.
        block: how many chunks a worker takes of these.
    """

    text: list[bool]
    cuts: Mapping[str, Cut] = field(default_factory=dict)
    block: int = 0

    @property
    def keys(self) -> list[str]:
        """The columns that decide, in this order; ids make it unique."""
        return [*self.fields, NUMBER, ID]

    @property
    def fields(self) -> list[str]:
        """Those of the fields of the order."""
        return [f"{'t' if text else 'n'}{index}" for index, text in enumerate(self.text)]


def sheet_table(sheets: list[Sheet]) -> pa.Table:
    """Points as they were read -> rows of id, payload as JSON text, and vector."""
    return pa.table(
        {
            ID: pa.array([point_id for sheet in sheets for point_id in sheet.ids], pa.string()),
            "payload": pa.array([_encode(one) for sheet in sheets for one in sheet.payloads], pa.string()),
            VECTOR: as_bytes(np.concatenate([sheet.vectors for sheet in sheets])),
        }
    )


@in_worker
def read_span(table: pa.Table, work: Shared[tuple[Backend, Task]]) -> Iterator[pa.Table]:
    """Read the points of spans, each of them pickled, in a worker's own connection."""
    backend, task = resident(work)
    for data in table.column("span").to_pylist():
        span: Span = pickle.loads(data)
        for lot in in_lots(backend.scan_span(span), _PAGE):
            yield extracted(sheet_table([Sheet.of(lot, task.dimension)]), task)


@in_worker
def extract(table: pa.Table, task: Shared[Task]) -> pa.Table:
    """What `sheet_table` made -> rows of chunks, and one that has the note."""
    return extracted(table, resident(task))


def extracted(table: pa.Table, task: Task) -> pa.Table:
    """As `extract`."""
    payloads: list[Payload] = [_decode(text) for text in table.column("payload").to_pylist()]
    vectors = np.ascontiguousarray(as_vectors(table.column(VECTOR)))
    left = Left()
    extractor = Extractor(task.reading, left)
    page = extractor.page(Sheet(table.column(ID).to_pylist(), payloads, vectors))
    fields = len(task.reading.order_by)
    note = Note(left, [set() for _ in range(fields)], extractor.shortest, extractor.longest)
    keys = [compared([order[key] for order in page.order], note.kinds[key]) for key in range(fields)]
    numbers = [int(each) if each.isdecimal() and len(each) <= 18 else -1 for each in page.ids]
    columns: dict[str, pa.Array] = {
        DOCUMENT: pa.array([*page.documents, ""], pa.string()),
        BLOCK: pa.array(np.zeros(len(page) + 1, np.int64)),
        WHOLE: pa.array([*page.whole, False], pa.bool_()).cast(pa.int8()),
        ID: pa.array([*page.ids, ""], pa.string()),
        NUMBER: pa.array([*numbers, -1], pa.int64()),
        MASS: pa.array([*page.masses, 0.0], pa.float64()),
        DIGEST: pa.array([*page.digests, bytes(_DIGEST)], pa.binary(_DIGEST)),
        METADATA: pa.array([*page.metadata, ""], pa.string()),
        VECTOR: as_bytes(np.concatenate([page.vectors, np.zeros((1, task.dimension), "<f4")])),
        NOTE: pa.array([*([None] * len(page)), pickle.dumps(note)], pa.binary()),
    }
    for key, (as_number, as_text) in enumerate(keys):
        columns[f"n{key}"] = pa.array([*as_number, 0.0], pa.float64())
        columns[f"t{key}"] = pa.array([*as_text, ""], pa.string())
    return pa.table(columns)


@in_worker
def cut(table: pa.Table, order: Shared[Order]) -> dict[str, Any]:
    """All chunks of a long document, without their vectors -> where it is cut."""
    how = resident(order)
    table = table.sort_by([(key, "ascending") for key in how.keys])
    name = table.column(DOCUMENT)[0].as_py()
    columns = (table.column(key).to_pylist() for key in (ID, MASS, DIGEST, METADATA))
    whole = gathered(name, ((0, name, *row) for row in zip(*columns, strict=True)))
    made = Cut(
        Gathered(name, content=whole.content, metadata=whole.metadata),
        len(whole),
        float(sum(whole.masses)),
        [
            tuple(table.column(key)[row].as_py() for key in how.keys)
            for row in range(how.block, len(whole), how.block)
        ],
        ties(table, how),
    )
    return {"cut": [pickle.dumps(made)]}


def ties(table: pa.Table, order: Order) -> int:
    """How many chunks share their place in their document with another."""
    if not order.fields:
        return 0
    counted = table.group_by([DOCUMENT, *order.fields]).aggregate([([], "count_all")])
    counts = counted.column("count_all").to_numpy()
    return int(counts[counts > 1].sum())


@in_worker
def blocked(table: pa.Table, order: Shared[Order]) -> pa.Table:
    """The rows with the block that each chunk of a long document belongs to; 0 for others."""
    how = resident(order)
    blocks = np.zeros(len(table), np.int64)
    if how.cuts:
        names = table.column(DOCUMENT).to_pylist()
        rows = [row for row, name in enumerate(names) if name in how.cuts]
        if rows:
            keys = zip(*(table.column(key).take(rows).to_pylist() for key in how.keys), strict=True)
            for row, key in zip(rows, keys, strict=True):
                blocks[row] = bisect_right(how.cuts[names[row]].edges, key)
    place = table.schema.get_field_index(BLOCK)
    return table.set_column(place, BLOCK, pa.array(blocks))


def documents_of(table: pa.Table, order: Order) -> tuple[list[Gathered], Matrix]:
    """The documents of a part, blocks of long ones each by itself, and the vectors that their rows mean."""
    table = table.filter(pc.is_null(table.column(NOTE)))
    keys = [(key, "ascending") for key in (DOCUMENT, BLOCK, *order.keys)]
    table = table.sort_by(keys)
    columns = [table.column(key).to_pylist() for key in (DOCUMENT, BLOCK, ID, MASS, DIGEST, METADATA)]
    rows = zip(range(len(table)), *columns, strict=True)
    made = []
    for (name, block), group in groupby(rows, key=itemgetter(1, 2)):
        document = gathered(name, ((row[0], name, *row[3:]) for row in group))
        if name in order.cuts:
            document.first = block * order.block
            document.metadata = order.cuts[name].document.metadata
        made.append(document)
    return made, as_vectors(table.column(VECTOR))
