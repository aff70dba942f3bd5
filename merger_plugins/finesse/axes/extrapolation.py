"""What does a merged vector keep of its chunks as they become many?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from merger_plugins._batching import unit
from merger_plugins.errors import InputError
from merger_plugins.finesse.collections import Collection
from merger_plugins.finesse.metrics import ranking_metrics
from merger_plugins.finesse.records import Record
from merger_plugins.finesse.rivals import LIMIT, OWN_LIMIT, Rival, orthogonal_limit, own_limit

AXIS = "extrapolation"
LENGTHS = (4, 8, 16, 32, 64, 100)
FEWEST = 10
"""Documents that a length needs."""

PROBES = 10
ALONG = "chunks"


def extrapolation(
    rivals: Sequence[Rival],
    collection: Collection,
    *,
    lengths: Sequence[int] = LENGTHS,
    fewest: int = FEWEST,
    probes: int = PROBES,
    seed: int = 0,
) -> list[Record]:
    """Merge the beginnings of documents, longer and longer, and look for their chunks in them.

    The same documents at every length: those that reach the longest length which `fewest` of them reach.

    Args:
        rivals: those that do not merge are left out.
        collection: mergers are calibrated on all of it.
        lengths: in chunks.
        fewest: documents at the least; a length that fewer reach is left out.
        probes: chunks of each beginning, evenly spread, that are looked for.
        seed: of the intervals.

    Returns:
        For each length and rival ``member cosine``, the mean over a beginning's chunks, and ``members found
        first``, the share of its chunks whose nearest merged vector it is among those of all documents; and
        for each length the two limits of the member cosine, which a mean reaches by definition: a large one
        is no merit by itself.

    Raises:
        InputError: too few documents reach even the shortest length, or a merger has another dimension.
    """
    counts = np.bincount(collection.document)
    reached = [length for length in sorted(lengths) if (counts >= length).sum() >= fewest]
    if not reached or fewest < 2:
        raise InputError(
            f"{int((counts >= min(lengths)).sum())} documents of {collection.name} have {min(lengths)} "
            f"chunks, and {max(fewest, 2)} are needed. Name shorter lengths, or longer documents."
        )
    sample, masses = collection.sequences(), collection.sequence_masses()
    documents = np.flatnonzero(counts >= reached[-1])
    rows = [unit(np.asarray(sample[index], np.float32)[: reached[-1]]) for index in documents]
    weights = [masses[index] for index in documents]
    found: list[Record] = []
    for length in reached:
        limits = np.array([own_limit(part[:length]) for part in rows])
        where = (AXIS, collection.name)
        found += [
            Record.of(*where, OWN_LIMIT, "member cosine", limits, along=ALONG, at=length, seed=seed),
            Record(
                *where, LIMIT, "member cosine", orthogonal_limit(length), None, None, len(rows), ALONG, length
            ),
        ]
    spread = {length: np.unique(np.linspace(0, length - 1, probes).round().astype(int)) for length in reached}
    for rival in rivals:
        merger = rival.merger(sample)
        if merger is None:
            continue
        for length in reached:
            roots = merger.merge_many(
                [part[:length] for part in rows], masses=[part[:length] for part in weights]
            )
            cosine = np.array([(part[:length] @ root).mean() for part, root in zip(rows, roots, strict=True)])
            places = spread[length]
            scores = np.concatenate([part[places] for part in rows]) @ roots.T
            owner = np.repeat(np.arange(len(rows)), len(places))
            first = ranking_metrics(scores, owner[:, None] == np.arange(len(rows)), ["recall@1"])["recall@1"]
            row = (AXIS, collection.name, rival.name)
            found += [
                Record.of(*row, "member cosine", cosine, along=ALONG, at=length, seed=seed),
                Record.of(*row, "members found first", first, owner, along=ALONG, at=length, seed=seed),
            ]
    return found
