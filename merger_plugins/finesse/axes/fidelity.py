"""How near is a merged vector to the base embedder's own vector of the same text?

The second number, not the first: a teacher that reads a whole text retrieves worse than a mean of its chunks.
And a calibrated merger gives even a single vector another direction than the base embedder did, so that its
cosine with a raw one is low by design; through the merger, the teacher's vector is compared as it would be
stored.
"""

from __future__ import annotations

from collections.abc import Sequence

from merger_plugins.errors import InputError
from merger_plugins.finesse.axes.windows import COUNTS, PER_COUNT, cosines, windows
from merger_plugins.finesse.collections import Collection
from merger_plugins.finesse.records import Record
from merger_plugins.finesse.rivals import Rival

AXIS = "fidelity"
METRIC = "teacher cosine"


def fidelity(
    rivals: Sequence[Rival],
    collection: Collection,
    *,
    counts: Sequence[int] = COUNTS,
    per_count: int = PER_COUNT,
    most_tokens: float | None = None,
    seed: int = 0,
) -> list[Record]:
    """Cosine of merged windows with the teacher's vectors of their text.

    Args:
        rivals: those that do not merge are left out.
        collection: with text; mergers are calibrated on all of it.
        counts: chunks of a window.
        per_count: windows of each count.
        most_tokens: of a window, as `windows` takes it.
        seed: of windows and intervals.

    Returns:
        For each rival ``teacher cosine``, with the raw vector, and ``teacher cosine, through the merger``,
        with what the merger gives for the teacher's vector alone: a record over all windows, and one for
        each number of chunks.

    Raises:
        InputError: the collection has no text, or a merger has another dimension.
    """
    drawn = windows(collection, counts=counts, per_count=per_count, most_tokens=most_tokens, seed=seed)
    if drawn.teacher is None:
        raise InputError(f"{collection.name} has vectors alone; a teacher needs its text.")
    found, sample = [], collection.sequences()
    for rival in rivals:
        merger = rival.merger(sample)
        if merger is None:
            continue
        merged = merger.merge_many(drawn.vectors, masses=drawn.masses)
        through = merger.merge_many(list(drawn.teacher[:, None]))
        for name, teacher in ((METRIC, drawn.teacher), (f"{METRIC}, through the merger", through)):
            each = cosines(merged, teacher)
            where = (AXIS, collection.name, rival.name, name)
            found.append(Record.of(*where, each, drawn.document, seed=seed))
            for count in sorted(set(drawn.count.tolist())):
                rows = drawn.count == count
                found.append(
                    Record.of(*where, each[rows], drawn.document[rows], along="chunks", at=count, seed=seed)
                )
    return found
