"""A tree whose lower levels were made by several workers, each over blocks of positions of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from merger_plugins._nodes import Nodes
from merger_plugins._types import Matrix, Vector
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.ray.sequences import absent
from merger_plugins.tree import RollingMerge, checked_masses, frontier


@dataclass(frozen=True)
class Part:
    """Nodes of one level that follow one another.

    Attributes:
        level: 0 for leaves.
        first: index of the first one in its level.
        nodes: (k,).
    """

    level: int
    first: int
    nodes: Nodes


def parts_of(
    merger: SequenceMerger, vectors: Matrix, masses: Vector, *, first: int, block: int, places: int
) -> Iterator[Part]:
    """What the tree of a long sequence needs of one block of it.

    Of levels below the block's, the nodes that cover the end of the sequence; of the block's own, its node,
    if the sequence is not covered at that place by lower ones.

    Args:
        merger: makes the merges.
        vectors: (n, d) chunk vectors of the block, which is complete or the last one.
        masses: (n,).
        first: place of the first one; a multiple of `block`.
        block: a power of the merger's fan-out.
        places: how many chunks the sequence has.
    """
    covering = frontier(places, merger.fanout, lazy=merger._lazy_carry)
    weights = checked_masses(masses, len(vectors))
    nodes = Nodes(merger._leaves(vectors) * weights[:, None], weights, np.ones(len(vectors), np.int64))
    size = 1
    for level, (start, stop) in enumerate(covering):
        lowest = first // size
        low, high = max(start, lowest), min(stop, lowest + len(nodes.masses))
        if size == block:  # those below higher ones as well
            low = lowest
        if low < high:
            yield Part(level, low, _slice(nodes, low - lowest, high - lowest))
        if size == block:
            return
        nodes = joined(merger, nodes)
        size *= merger.fanout


def joined(merger: SequenceMerger, nodes: Nodes) -> Nodes:
    """The nodes above these, as far as they are complete."""
    count = len(nodes.masses) // merger.fanout
    if not count:
        return Nodes.empty(nodes.vectors.shape[1])
    lower = _slice(nodes, 0, count * merger.fanout)
    grouped = Nodes(
        lower.vectors.reshape(count, merger.fanout, -1),
        lower.masses.reshape(count, merger.fanout),
        lower.counts.reshape(count, merger.fanout),
    )
    return Nodes(merger._join(grouped), grouped.masses.sum(axis=1), grouped.counts.sum(axis=1))


def missing_place(
    parts: Mapping[int, list[Part]], merger: SequenceMerger, block: int, places: int
) -> int | None:
    """The place of a node that is needed and not among these parts, by level; None where all are there."""
    size = 1
    for level, (start, stop) in enumerate(frontier(places, merger.fanout, lazy=merger._lazy_carry)):
        expected = 0 if size == block else start
        for part in sorted(parts.get(level, []), key=lambda part: part.first):
            if part.first != expected:
                return expected * size
            expected += len(part.nodes.masses)
        if expected < stop:
            return expected * size
        if size == block:
            return None
        size *= merger.fanout
    return None


def rolling_of(
    merger: SequenceMerger, parts: Mapping[int, list[Part]], *, block: int, places: int
) -> RollingMerge:
    """The rolling merge of a sequence, from the parts that its blocks gave, by level; all must be there."""
    levels: list[tuple[int, Nodes]] = []
    carried: Nodes | None = None
    width = next(part.nodes.vectors.shape[1] for own in parts.values() for part in own)
    size = 1
    for level, (start, stop) in enumerate(frontier(places, merger.fanout, lazy=merger._lazy_carry)):
        if carried is not None:
            nodes, first = carried, 0
        else:
            own = sorted(parts.get(level, []), key=lambda part: part.first)
            nodes = Nodes.concatenated([part.nodes for part in own], width)
            first = own[0].first if own else start
        levels.append((start, _slice(nodes, start - first, stop - first)))
        if size >= block:
            carried = joined(merger, _slice(nodes, 0, start))
        size *= merger.fanout
    return RollingMerge.from_nodes(merger, levels, places)


def root_of(
    name: object, parts: Mapping[int, list[Part]], merger: SequenceMerger, block: int, places: int
) -> RollingMerge:
    """The rolling merge of a long document, from the parts that its blocks gave, by level.

    Raises:
        InputError: a block of its chunks is missing.
    """
    missing = missing_place(parts, merger, block, places)
    if missing is not None:
        raise absent(name, missing, places - 1)
    return rolling_of(merger, parts, block=block, places=places)


def _slice(nodes: Nodes, start: int, stop: int) -> Nodes:
    return Nodes(nodes.vectors[start:stop], nodes.masses[start:stop], nodes.counts[start:stop])
