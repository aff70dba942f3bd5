"""Nodes of the tree, as arrays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from merger_plugins.errors import InputError, StateError


@dataclass(frozen=True)
class Nodes:
    """Nodes of one level of the tree, as a merger keeps them between merges.

    Attributes:
        vectors: (..., k, d) float32 in the merger's own space, with their norm: not unit length.
        masses: (..., k) float32, the mass of all chunks below; 0 for an empty node.
        counts: (..., k) int64, the number of chunks below; 0 for an empty node.
    """

    vectors: NDArray[np.float32]
    masses: NDArray[np.float32]
    counts: NDArray[np.int64]

    @classmethod
    def empty(cls, dimension: int) -> Nodes:
        """No nodes."""
        return cls(np.zeros((0, dimension), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))

    @classmethod
    def concatenated(cls, parts: Iterable[Nodes], dimension: int) -> Nodes:
        """The nodes of some levels or of parts of one, in order; there may be no part."""
        known = list(parts) or [cls.empty(dimension)]
        return cls(
            np.concatenate([part.vectors for part in known]),
            np.concatenate([part.masses for part in known]),
            np.concatenate([part.counts for part in known]),
        )

    def copy(self) -> Nodes:
        """The same nodes in arrays of their own."""
        return Nodes(self.vectors.copy(), self.masses.copy(), self.counts.copy())


class Level:
    """The nodes of one level, growing at the end; the oldest may be dropped.

    Node i of level l covers the places i * fanout**l up to (i + 1) * fanout**l.
    """

    def __init__(self, nodes: Nodes, first: int = 0) -> None:
        self.first = first
        self._nodes = nodes
        self._size = len(nodes.masses)

    @classmethod
    def empty(cls, dimension: int, first: int = 0) -> Level:
        """A level without nodes."""
        return cls(Nodes.empty(dimension), first)

    @property
    def stop(self) -> int:
        """The index after the newest node."""
        return self.first + self._size

    def view(self, start: int, stop: int) -> Nodes:
        """Nodes start up to stop; changing the arrays changes the nodes.

        Raises:
            InputError: there are no such nodes.
            StateError: they were dropped.
        """
        if not 0 <= start <= stop <= self.stop:
            raise InputError(f"Nodes {start} to {stop} do not exist: this level holds {self.stop}, from 0.")
        if start < self.first:
            raise StateError(
                f"Node {start} of the tree is gone: this rolling merge keeps only its open nodes (it was "
                "resumed from a state, or made with history=False). Build it again from the stored vectors."
            )
        part = slice(start - self.first, stop - self.first)
        return Nodes(self._nodes.vectors[part], self._nodes.masses[part], self._nodes.counts[part])

    def append(self, nodes: Nodes) -> None:
        """Add nodes at the end."""
        added = len(nodes.masses)
        if self._size + added > len(self._nodes.masses):
            capacity = max(2 * self._size, self._size + added, 16)
            room = capacity - self._size
            old = self.view(self.first, self.stop)
            self._nodes = Nodes(
                np.concatenate([old.vectors, np.zeros((room, old.vectors.shape[1]), np.float32)]),
                np.concatenate([old.masses, np.zeros(room, np.float32)]),
                np.concatenate([old.counts, np.zeros(room, np.int64)]),
            )
        part = slice(self._size, self._size + added)
        self._nodes.vectors[part] = nodes.vectors
        self._nodes.masses[part] = nodes.masses
        self._nodes.counts[part] = nodes.counts
        self._size += added

    def drop(self, before: int) -> None:
        """Forget the nodes before an index."""
        kept = max(before, self.first)
        self._nodes = self.view(kept, self.stop).copy()
        self._size, self.first = len(self._nodes.masses), kept
