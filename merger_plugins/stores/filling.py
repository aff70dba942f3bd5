"""What a back-fill is asked for, and what it says."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.stores.layouts import Wanted

if TYPE_CHECKING:
    from merger_plugins.stores.backend import Backend
    from merger_plugins.stores.workshop import Task, Workplace

Stage = Literal["reading", "calibrating", "merging"]

_EXAMPLES = 3

GROWTH = 1.5
"""A collection is calibrated again once it has this many times the chunks it was calibrated on."""


@dataclass(frozen=True)
class BackfillProgress:
    """How far a back-fill is.

    Attributes:
        stage: ``"reading"``, ``"calibrating"`` or ``"merging"``, in this order.
        done: chunks that are done in this stage.
        total: chunks in all.
    """

    stage: Stage
    done: int
    total: int


@dataclass
class Left:
    """Points that were left out, by what they lack.

    Attributes:
        counts: what -> number of points.
        examples: what -> ids of the first ones.
    """

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, point_id: str) -> None:
        """Count a point."""
        self.counts[what] = self.counts.get(what, 0) + 1
        if self.counts[what] <= _EXAMPLES:
            self.examples.setdefault(what, []).append(point_id)

    def __str__(self) -> str:
        return "; ".join(
            f"{count:,} without {what} (such as {', '.join(self.examples[what])})"
            for what, count in self.counts.items()
        )


@dataclass(frozen=True)
class Backfilled:
    """What a back-fill did.

    Attributes:
        collection: its name.
        layout: what wrote it: ``"LangChain"``, ``"LlamaIndex"`` or ``"flat"``.
        group_by: the field that names a chunk's document.
        order_by: the fields that order its chunks; none for the order of ids.
        vector: name of the chunk vector; ``""`` for the one without a name.
        chunks: chunk points that belong to a document.
        documents: documents.
        merged: documents that were merged now; the others were done before.
        removed: documents that were done before and are gone from the collection.
        left_out: what points lack -> how many were left out for it.
        ties: points that share their place in their document with another; these are in the order of ids.
        calibration_vectors: how many chunk vectors the calibration saw; 0 for none.
        fingerprint: of the merger.
    """

    collection: str
    layout: str
    group_by: str
    order_by: tuple[str, ...]
    vector: str
    chunks: int
    documents: int
    merged: int
    removed: int
    left_out: dict[str, int]
    ties: int
    calibration_vectors: int
    fingerprint: str


class Engine(Protocol):
    """Where a back-fill sorts, calibrates and merges, such as a cluster."""

    def workplace(self, task: Task, backend: Backend) -> Workplace:
        """Set up for a back-fill of this database."""


@dataclass(frozen=True)
class Order:
    """A back-fill to be done.

    Attributes:
        wanted: how to read the collection.
        base: the merger that was passed in, or goes with the embedder that was; None for one that knows
            nothing of the embedding model.
        others: mergers that may have made what is there, where none was passed in.
        known: mergers that are at work already, so that their calibration need not be read.
        calibrate: whether to calibrate on the collection. None calibrates a `CalibratedMerger` that has no
            statistics of its own, the first time and once the collection has `GROWTH` times the chunks.
        skip_missing: whether to leave out points that lack a field or a vector, in place of an error.
        anew: whether another reading or merger than before may take over.
        scratch: folder for temporary files.
        progress: called after every batch.
        documents: only these, where a back-fill was completed before and its calibration still fits; all
            documents otherwise.
        keep: whether the calibration stays, however much the collection has grown.
        one_process: whether to do without another process, however many points there are.
        engine: sorts and merges in the place of processes of this package; None for those.
    """

    wanted: Wanted = field(default_factory=Wanted)
    base: SequenceMerger | None = None
    others: tuple[SequenceMerger, ...] = ()
    known: tuple[SequenceMerger, ...] = ()
    calibrate: bool | None = None
    skip_missing: bool = False
    anew: bool = False
    scratch: str | os.PathLike[str] | None = None
    progress: Callable[[BackfillProgress], object] | None = None
    documents: tuple[str, ...] | None = None
    keep: bool = False
    one_process: bool = False
    engine: Engine | None = None

    def report(self, stage: Stage, done: int, total: int) -> None:
        """Tell how far it is."""
        if self.progress is not None:
            self.progress(BackfillProgress(stage, done, max(done, total)))
