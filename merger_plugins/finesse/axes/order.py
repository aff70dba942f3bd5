"""Does a merger notice the order of the chunks? And is noticing it worth anything?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from merger_plugins.finesse.axes.windows import COUNTS, PER_COUNT, cosines, windows
from merger_plugins.finesse.collections import Collection
from merger_plugins.finesse.records import Record
from merger_plugins.finesse.rivals import Rival

AXIS = "order"


def order(
    rivals: Sequence[Rival],
    collection: Collection,
    *,
    counts: Sequence[int] = COUNTS,
    per_count: int = PER_COUNT,
    most_tokens: float | None = None,
    seed: int = 0,
) -> list[Record]:
    """Merge windows as they stand, shuffled and reversed.

    Args:
        rivals: those that do not merge are left out.
        collection: mergers are calibrated on all of it.
        counts: chunks of a window.
        per_count: windows of each count.
        most_tokens: of a window, as `windows` takes it.
        seed: of windows, shuffles and intervals.

    Returns:
        For each rival: ``change when shuffled`` and ``change when reversed``, 1 minus the cosine with the
        merge as it stands, 0 for a mean; and, where there is text, ``teacher cosine lost when shuffled``.

    Raises:
        InputError: as `windows`, or a merger of another dimension.
    """
    drawn = windows(collection, counts=counts, per_count=per_count, most_tokens=most_tokens, seed=seed)
    rng = np.random.default_rng(seed)
    orders = {
        "shuffled": [rng.permutation(len(part)) for part in drawn.vectors],
        "reversed": [np.arange(len(part))[::-1] for part in drawn.vectors],
    }
    found, sample = [], collection.sequences()
    for rival in rivals:
        merger = rival.merger(sample)
        if merger is None:
            continue
        straight = merger.merge_many(drawn.vectors, masses=drawn.masses)
        figures = {}
        for name, permutations in orders.items():
            turned = merger.merge_many(
                [part[places] for part, places in zip(drawn.vectors, permutations, strict=True)],
                masses=[part[places] for part, places in zip(drawn.masses, permutations, strict=True)],
            )
            figures[f"change when {name}"] = np.maximum(1 - cosines(straight, turned), 0)
            if drawn.teacher is not None and name == "shuffled":
                lost = cosines(straight, drawn.teacher) - cosines(turned, drawn.teacher)
                figures["teacher cosine lost when shuffled"] = lost
        found += [
            Record.of(AXIS, collection.name, rival.name, name, each, drawn.document, seed=seed)
            for name, each in figures.items()
        ]
    return found
