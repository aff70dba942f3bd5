"""Does merging what was merged give what merging the whole gives?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from merger_plugins._batching import unit
from merger_plugins._nodes import Nodes
from merger_plugins._types import Matrix, Vector
from merger_plugins.errors import EmptyInputError
from merger_plugins.finesse.axes.windows import cosines
from merger_plugins.finesse.collections import Collection
from merger_plugins.finesse.records import Record
from merger_plugins.finesse.rivals import Rival
from merger_plugins.mergers.base import FANOUT, SequenceMerger

AXIS = "associativity"
TREES, MOST_CHUNKS, LEAST_CHUNKS = 100, 100, 3


@dataclass(frozen=True, eq=False)
class Node:
    """Consecutive chunks, merged from 2 to 10 nodes below; a node without children is one chunk.

    Attributes:
        start: the first chunk.
        stop: after the last one.
        children: the nodes below, in reading order.
        height: merges on the longest way down.
    """

    start: int
    stop: int
    children: tuple[Node, ...]
    height: int


def random_division(start: int, stop: int, rng: np.random.Generator, fanout: int = FANOUT) -> Node:
    """Chunks start to stop, divided at random places until single chunks are left."""
    size = stop - start
    if size == 1:
        return Node(start, stop, (), 0)
    parts = int(rng.integers(2, min(fanout, size) + 1))
    inside = np.sort(rng.choice(size - 1, parts - 1, replace=False)) + 1 + start
    edges = [start, *inside.tolist(), stop]
    children = tuple(random_division(low, high, rng, fanout) for low, high in pairwise(edges))
    return Node(start, stop, children, 1 + max(child.height for child in children))


def associativity(
    rivals: Sequence[Rival],
    collection: Collection,
    *,
    trees: int = TREES,
    most_chunks: int = MOST_CHUNKS,
    seed: int = 0,
) -> list[Record]:
    """Cosine between the root of a random tree and the merge of the whole.

    Every node of a tree has 2 to 10 nodes below it (no more than the merger's window), down to single chunks.
    A tree is merged twice: from merged vectors with their masses, as somebody does who has nothing else; and
    from the merger's own nodes, which are what `RollingMerge` and stores keep, and may carry more than a
    merged vector does.

    Args:
        rivals: those that do not merge are left out.
        collection: mergers are calibrated on all of it; documents of at least three chunks are drawn from.
        trees: how many.
        most_chunks: of a document, its first ones.
        seed: of documents, trees and intervals.

    Returns:
        For each rival ``cosine with the whole, merged again`` and ``cosine with the whole, nodes``, and the
        least of each.

    Raises:
        InputError: no document is long enough, or a merger has another dimension.
    """
    sample, masses = collection.sequences(), collection.sequence_masses()
    long = [index for index, part in enumerate(sample) if len(part) >= LEAST_CHUNKS]
    if not long:
        raise EmptyInputError(f"{collection.name} has no document of {LEAST_CHUNKS} chunks to divide.")
    documents = np.random.default_rng(seed).choice(np.array(long), trees)
    parts = [(sample[index][:most_chunks], masses[index][:most_chunks]) for index in documents.tolist()]
    found = []
    for rival in rivals:
        merger = rival.merger(sample)
        if merger is None:
            continue
        rng = np.random.default_rng(seed)
        fanout = min(FANOUT, merger.fanout)
        cases = [(random_division(0, len(part), rng, fanout), part, mass) for part, mass in parts]
        whole = merger.merge_many([part for part, _ in parts], masses=[mass for _, mass in parts])
        where = (AXIS, collection.name, rival.name)
        nodes = np.stack([_read_from_nodes(merger, *case) for case in cases])
        for way, roots in (("merged again", _merged_again(merger, cases)), ("nodes", nodes)):
            each = cosines(roots, whole)
            name = f"cosine with the whole, {way}"
            found.append(Record.of(*where, name, each, documents, seed=seed))
            found.append(Record(*where, f"least {name}", float(each.min()), None, None, trees))
    return found


def _read_from_nodes(merger: SequenceMerger, root: Node, vectors: Matrix, masses: Vector) -> Vector:
    """The root of one tree, read from the merger's nodes below it."""
    leaves = merger._leaves(unit(np.asarray(vectors, np.float32)))

    def below(node: Node) -> Nodes:
        return Nodes.concatenated([joined(child) for child in node.children], leaves.shape[1])

    def joined(node: Node) -> Nodes:
        if not node.children:
            mass = masses[node.start : node.stop]
            return Nodes(leaves[node.start : node.stop] * mass, mass, np.ones(1, np.int64))
        inside = below(node)
        vector = merger._join(Nodes(inside.vectors[None], inside.masses[None], inside.counts[None]))
        return Nodes(vector, inside.masses.sum(keepdims=True), inside.counts.sum(keepdims=True))

    out: Vector = merger._out(merger._read([below(root)])[None])[0]
    return out


def _merged_again(merger: SequenceMerger, cases: Sequence[tuple[Node, Matrix, Vector]]) -> Matrix:
    """The roots of all trees, every height in one call."""
    by_height: dict[int, list[tuple[int, Node]]] = {}

    def visit(case: int, node: Node) -> None:
        by_height.setdefault(node.height, []).append((case, node))
        for child in node.children:
            visit(case, child)

    for index, (root, _, _) in enumerate(cases):
        visit(index, root)
    merged: dict[tuple[int, int, int], Vector] = {}
    for height in sorted(by_height):
        nodes = by_height[height]
        if height == 0:
            rows = [cases[case][1][node.start] for case, node in nodes]
        else:
            vectors, masses = [], []
            for case, node in nodes:
                vectors.append(np.stack([merged[case, child.start, child.stop] for child in node.children]))
                sums = [cases[case][2][child.start : child.stop].sum() for child in node.children]
                masses.append(np.array(sums, np.float32))
            rows = list(merger.merge_many(vectors, masses=masses))
        merged |= {(case, node.start, node.stop): row for (case, node), row in zip(nodes, rows, strict=True)}
    return np.stack([merged[case, root.start, root.stop] for case, (root, _, _) in enumerate(cases)])
