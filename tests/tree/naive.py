"""The tree, its root and its sections from their definitions, in float64 and by plain recursion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from merger_plugins import (
    TURN_WEIGHTS,
    CalibratedMerger,
    ContextWeights,
    MeanMerger,
    RollingMerge,
    SequenceMerger,
)
from merger_plugins.mergers.calibrated import RIDGE_LEAST, RIDGE_MOST, RIDGE_PER_CHUNK
from tests.strategies import MERGERS, Array, mapped_back, naive_blend, normalised, ridge_solution, whitened

Places = Sequence[tuple[Array, float] | None]
"""(chunk vector, mass) of each place in order; None where it is empty."""


@dataclass
class Node:
    """The mass-weighted sum of unit leaves, their mass and their number."""

    total: Array
    mass: float
    count: int


def leaf(merger: SequenceMerger, place: tuple[Array, float] | None, dimension: int) -> Node:
    if place is None:
        return Node(np.zeros(dimension), 0.0, 0)
    vector, mass = place
    rows = np.asarray(vector)[None]
    direction = whitened(merger, rows)[0] if isinstance(merger, CalibratedMerger) else normalised(rows)[0]
    return Node(direction * float(mass), float(mass), 1)


def joined(nodes: Sequence[Node]) -> Node:
    total = np.zeros_like(nodes[0].total)
    for node in nodes:
        total = total + node.total
    return Node(total, sum(node.mass for node in nodes), sum(node.count for node in nodes))


def covering(leaves: Sequence[Node], fanout: int, lazy: int) -> list[Node]:
    """The nodes that cover a sequence, found by adding one leaf after the other."""
    levels: list[list[Node]] = [[]]

    def add(level: int, node: Node) -> None:
        if level == len(levels):
            levels.append([])
        levels[level].append(node)
        if len(levels[level]) == fanout * (1 + (lazy if level < 2 else 0)):
            oldest, levels[level] = levels[level][:fanout], levels[level][fanout:]
            add(level + 1, joined(oldest))

    for node in leaves:
        add(0, node)
    return [node for level in reversed(levels) for node in level]


def read(merger: SequenceMerger, nodes: Sequence[Node]) -> Array:
    """The direction of nodes merged, unit length; zeros where all of them are empty."""
    held = [node for node in nodes if node.count]
    if not held:
        return np.zeros(len(nodes[0].total))
    whole = joined(held)
    if isinstance(merger, MeanMerger):
        return normalised(whole.total)
    points = [node.total / node.mass for node in held]
    shares = np.array([node.mass * whole.count / whole.mass for node in held])
    kept = sum(share * (point @ point) for share, point in zip(shares, points, strict=True))
    penalty = min(max(whole.count * RIDGE_PER_CHUNK, RIDGE_LEAST), RIDGE_MOST)
    penalty = penalty * (1 + len(held) / whole.count) / 2 + max(whole.count - kept, 0) / len(whole.total)
    return normalised(ridge_solution(points, shares, penalty))


def out(merger: SequenceMerger, directions: Array) -> Array:
    """From the merger's own space back to that of the chunk vectors."""
    return mapped_back(merger, directions) if isinstance(merger, CalibratedMerger) else normalised(directions)


class NaiveTree:
    """Everything that a `RollingMerge` answers, made from scratch."""

    def __init__(
        self, merger: SequenceMerger, places: Places, dimension: int, strategy: str = "tree"
    ) -> None:
        self.merger, self.places, self.strategy = merger, places, strategy
        self.leaves = [leaf(merger, place, dimension) for place in places]

    def direction(self) -> Array:
        if self.strategy == "flat":
            return read(self.merger, self.leaves)
        if self.strategy == "tree":
            return read(self.merger, covering(self.leaves, self.merger.fanout, self.merger._lazy_carry))
        held = [node for node in self.leaves if node.count]
        chain = held[0]
        for following in held[1:]:
            # A merged vector takes part in the next merge as one chunk of the mass of all before.
            mass = chain.mass + following.mass
            merged = read(self.merger, [Node(chain.total, chain.mass, 1), following])
            chain = Node(merged * mass, mass, chain.count + following.count)
        return normalised(chain.total)

    def vector(self) -> Array:
        return out(self.merger, self.direction())

    def sections(self, level: int) -> Array:
        width = self.merger.fanout**level
        return np.stack([self.section(level, start) for start in range(0, len(self.places), width)])

    def section(self, level: int, start: int) -> Array:
        width = self.merger.fanout**level
        part = self.leaves[start : start + width]
        if level > 1 and len(part) <= width // self.merger.fanout:
            return self.section(level - 1, start)
        below = max(width // self.merger.fanout, 1)
        groups = [part[i : i + below] for i in range(0, len(part), below)]
        return out(self.merger, read(self.merger, [joined(group) for group in groups]))

    def contextual(self, weights: ContextWeights) -> Array:
        directions = [normalised(node.total) if node.count else None for node in self.leaves]
        masses = [node.mass for node in self.leaves]
        blended = naive_blend(directions, self.direction(), masses, weights)
        empty = np.zeros(len(self.leaves[0].total))
        return np.stack([empty if row is None else out(self.merger, row) for row in blended])


every_merger = pytest.mark.parametrize("merger", MERGERS.values(), ids=MERGERS.keys())
strategies = pytest.mark.parametrize("strategy", ["tree", "flat", "chain"])
TOLERANCE = {"atol": 1e-5}


def rolled(merger, vectors, masses=None, **options):
    """A rolling merge that was extended once."""
    rolling = RollingMerge(merger, **options)
    rolling.extend(vectors, masses=masses)
    return rolling


def naive(merger, vectors, masses=None, *, empty=(), strategy="tree"):
    """The naive tree of these chunks, some of whose places are empty."""
    masses = np.ones(len(vectors)) if masses is None else masses
    pairs = zip(vectors, masses, strict=True)
    places = [None if i in empty else pair for i, pair in enumerate(pairs)]
    return NaiveTree(merger, places, vectors.shape[1], strategy)


def assert_agree(rolling, expected, levels=(0, 1, 2)):
    """A rolling merge and a naive tree say the same in everything they say."""
    assert len(rolling) == sum(place is not None for place in expected.places)
    assert rolling.places == len(expected.places)
    assert rolling.mass == pytest.approx(sum(node.mass for node in expected.leaves), rel=1e-6)
    assert np.allclose(rolling.vector, expected.vector(), **TOLERANCE)
    for level in levels:
        assert np.allclose(rolling.sections(level), expected.sections(level), **TOLERANCE)
    assert np.allclose(rolling.contextual(TURN_WEIGHTS), expected.contextual(TURN_WEIGHTS), **TOLERANCE)
