"""How near is a merged vector to the base embedder's own vector of the same text?

The second number, not the first: a teacher that reads a whole text retrieves worse than a mean of its chunks.
"""

from __future__ import annotations

from collections.abc import Sequence

from merger_plugins.errors import InputError
from merger_plugins.finesse.axes.windows import COUNTS, MOST_TOKENS, PER_COUNT, cosines, windows
from merger_plugins.finesse.collections import Collection
from merger_plugins.finesse.records import Record
from merger_plugins.finesse.rivals import Rival

AXIS = "fidelity"


def fidelity(
    rivals: Sequence[Rival],
    collection: Collection,
    *,
    counts: Sequence[int] = COUNTS,
    per_count: int = PER_COUNT,
    most_tokens: float = MOST_TOKENS,
    seed: int = 0,
) -> list[Record]:
    """Cosine of merged windows with the teacher's vectors of their text.

    Args:
        rivals: those that do not merge are left out.
        collection: with text; mergers are calibrated on all of it.
        counts: chunks of a window.
        per_count: windows of each count.
        most_tokens: of a window: what the base embedder reads.
        seed: of windows and intervals.

    Returns:
        A record for each rival over all windows, and one for each number of chunks.

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
        each = cosines(merger.merge_many(drawn.vectors, masses=drawn.masses), drawn.teacher)
        where = (AXIS, collection.name, rival.name, "teacher cosine")
        found.append(Record.of(*where, each, drawn.document, seed=seed))
        for count in sorted(set(drawn.count.tolist())):
            rows = drawn.count == count
            found.append(
                Record.of(*where, each[rows], drawn.document[rows], along="chunks", at=count, seed=seed)
            )
    return found
