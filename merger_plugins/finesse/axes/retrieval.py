"""Does what is stored find the right document, section or passage? And how much is stored?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from merger_plugins.finesse.collections import Collection, Level, units
from merger_plugins.finesse.metrics import RANKING, ranking_metrics
from merger_plugins.finesse.records import Record
from merger_plugins.finesse.rivals import Rival

AXIS = "retrieval"
BYTES = 4
"""Of a stored number."""


def retrieval(
    rivals: Sequence[Rival],
    collection: Collection,
    *,
    levels: Iterable[Level] = ("documents",),
    metrics: Iterable[str] = tuple(RANKING),
    seed: int = 0,
) -> list[Record]:
    """Rank a collection's targets for its questions by plain cosine.

    Args:
        rivals: one that cannot store the collection is left out.
        collection: what is searched.
        levels: what is stored and found; the metric's name ends in it but for documents.
        metrics: of `RANKING`; ties count against the rival.
        seed: of the intervals.

    Returns:
        A record for each rival, level and metric, and one for the vectors stored a document and the megabytes
        of float32 a thousand documents.

    Raises:
        InputError: a merger of another dimension, or passages of a collection that has none.
    """
    wanted, found = list(metrics), []
    for level in levels:
        cut = units(collection, level)
        place = "" if level == "documents" else f", {level}"
        for rival in rivals:
            stored = rival.stored(collection, cut)
            if stored is None:
                continue
            each = ranking_metrics(stored.scores(cut.targets), cut.relevant, wanted)
            found += [
                Record.of(
                    AXIS, collection.name, rival.name, f"{name}{place}", values, collection.group, seed=seed
                )
                for name, values in each.items()
            ]
            rows, dimension = stored.vectors.shape
            vectors = (rows + stored.beside) / collection.documents
            for name, value in (
                (f"vectors a document{place}", vectors),
                (f"MB a thousand documents{place}", vectors * dimension * BYTES / 1e3),
            ):
                found.append(
                    Record(AXIS, collection.name, rival.name, name, value, None, None, collection.documents)
                )
    return found
