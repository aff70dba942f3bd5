"""What a worker makes of the documents of one part: merged points, written where workers write."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.ray.engine import Shared, in_worker, resident
from merger_plugins.ray.points import Order, documents_of
from merger_plugins.ray.trees import Part, parts_of
from merger_plugins.stores.backend import Backend
from merger_plugins.stores.foreign import Edition
from merger_plugins.stores.gathering import batches
from merger_plugins.stores.gathering import block_of as chunks_at_once
from merger_plugins.stores.records import PointIds
from merger_plugins.stores.spool import Gathered
from merger_plugins.stores.weaving import Weaver, write_woven
from merger_plugins.stores.workshop import Step, Task

Hashes: TypeAlias = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Known:
    """What is merged already, by 64 bits of a hash of each name, ascending.

    Attributes:
        names: (n,).
        contents: (n,) of the content.
        sizes: (n,) numbers of chunks.
    """

    names: Hashes
    contents: Hashes
    sizes: NDArray[np.int64]

    def of(self, document: Gathered) -> tuple[bool, int]:
        """Whether a document is merged in this very form, and how many chunks it had."""
        name = hash_of(document.name)
        row = int(np.searchsorted(self.names, name))
        if row == len(self.names) or self.names[row] != name:
            return False, 0
        return bool(self.contents[row] == hash_of(document.content)), int(self.sizes[row])


@dataclass(frozen=True)
class Weaving:
    """What a worker needs to merge; `backend` where it writes as well."""

    task: Task
    order: Order
    merger: SequenceMerger
    edition: Edition
    ids: PointIds
    known: Known
    backend: Backend | None


@dataclass(frozen=True, eq=False)
class Made:
    """What a worker made of some documents.

    Attributes:
        step: for the back-fill.
        names: hashes of the documents that are complete here.
        sizes: how many chunks they have.
        parts: of long documents, with their names.
    """

    step: Step
    names: Hashes
    sizes: NDArray[np.int64]
    parts: list[tuple[str, Part]]


@in_worker
def weave(table: pa.Table, work: Shared[Weaving]) -> Iterator[dict[str, Any]]:
    """Merge the documents of a part that are not merged yet; write them, where workers do."""
    weaving = resident(work)
    documents, vectors = documents_of(table, weaving.order)
    weaver = weaver_of(weaving, vectors)
    whole = (document for document in documents if document.name not in weaving.order.cuts)
    for batch in batches(whole, weaving.task.dimension):
        changed: list[Gathered] = []
        stale: list[str] = []
        for document in batch:
            same, before = weaving.known.of(document)
            if not same:
                changed.append(document)
                stale += weaver.stale(len(document), document.name, before)
        if stale:
            yield _handed(weaving, Step(stale))
        for woven in weaver.weave(changed) if changed else ():
            yield _handed(weaving, Step(woven=woven))
        names = np.array([hash_of(document.name) for document in batch], np.uint64)
        sizes = np.array([len(document) for document in batch], np.int64)
        step = Step(documents=len(batch), merged=len(changed), chunks=sum(map(len, batch)))
        yield _packed(Made(step, names, sizes, []))
    for part in documents:
        if (cut := weaving.order.cuts.get(part.name)) is None:
            continue
        if not weaving.known.of(cut.document)[0]:
            yield _handed(weaving, Step(woven=weaver.excerpt(part)))
            nodes = parts_of(
                weaving.merger,
                vectors[part.rows],
                np.array(part.masses, np.float32),
                first=part.first,
                block=weaving.order.block,
                places=cut.chunks,
            )
            yield _packed(Made(Step(), *no_rows()[::2], [(part.name, each) for each in nodes]))
        yield _packed(Made(Step(chunks=len(part)), *no_rows()[::2], []))


def weaver_of(weaving: Weaving, vectors: NDArray[np.float32]) -> Weaver:
    """What merges documents whose rows are those of (n, d) vectors."""

    def chosen(rows: Sequence[int]) -> NDArray[np.float32]:
        return vectors[np.asarray(rows, np.intp)]

    block = chunks_at_once(weaving.task.dimension)
    return Weaver(weaving.merger, weaving.edition, weaving.ids, chosen, block=block)


def _handed(weaving: Weaving, step: Step) -> dict[str, Any]:
    """A step as a result; what there is to write is written here where workers do."""
    if weaving.backend is not None:
        if step.stale:
            weaving.backend.delete("merged", step.stale)
        if step.woven is not None:
            write_woven(weaving.backend, step.woven, weaving.edition)
        step = Step(writes=True)
    return _packed(Made(step, *no_rows()[::2], []))


def _packed(made: Made) -> dict[str, Any]:
    return {"made": [pickle.dumps(made)]}


def no_rows() -> tuple[Hashes, Hashes, NDArray[np.int64]]:
    """Names, contents and sizes of no document."""
    return np.zeros(0, np.uint64), np.zeros(0, np.uint64), np.zeros(0, np.int64)


def hash_of(name: str) -> np.uint64:
    """64 bits that stand for a name."""
    digest = blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))
