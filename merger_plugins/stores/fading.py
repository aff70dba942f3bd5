"""Conversations whose root fades: the mass of a turn halves with its age.

A root is a matter of proportions, so that the age may be counted from any moment. A node of the tree counts
it from its own newest turn: 2^(-(now - t)/H) is 2^(-(now - t_node)/H) · 2^(-(t_node - t)/H), whose second
factor stays as it is while time passes. So complete nodes are stored once, and appending scales the few that
cover the conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from merger_plugins._nodes import Nodes
from merger_plugins._types import Vector
from merger_plugins.errors import ZeroVectorError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.stores.ages import HalfLife
from merger_plugins.stores.backend import Payload, Point
from merger_plugins.stores.nodes import joined, leaves_of
from merger_plugins.stores.records import pack, unpack
from merger_plugins.tree import frontier

FADED = "faded"
"""The payload key of a complete section's faded node."""

_MOST_HALF_LIVES = 40.0
_LEAST_MASS = 1e-30


@dataclass(frozen=True)
class _Faded:
    """Nodes of one level, each faded as at its own moment: (k,) that of its newest turn, -inf for none."""

    nodes: Nodes
    moments: NDArray[np.float64]


class FadedTree:
    """The faded nodes of a conversation's tree.

    Args:
        merger: makes the merges.
        half_life: of the conversation.
        turn: place -> the chunk point there; None for an empty place.
        section: (level, index) -> the stored point of a complete section that stays as it is, and None for
            an empty one; raises `KeyError` for one to be made from what is below it.
        width: d.
    """

    def __init__(
        self,
        merger: SequenceMerger,
        half_life: HalfLife,
        turn: Callable[[int], Point | None],
        section: Callable[[int, int], Point | None],
        width: int,
    ) -> None:
        self._merger = merger
        self._half_life = half_life
        self._turn = turn
        self._section = section
        self._width = width
        self._made: dict[tuple[int, int], _Faded] = {}

    def payload(self, level: int, index: int) -> Payload:
        """What a complete section keeps of its faded node."""
        faded = self._node(level, index)
        return {
            "node": pack(faded.nodes.vectors[0]),
            "mass": float(faded.nodes.masses[0]),
            "at": float(faded.moments[0]),
        }

    def root(self, places: int) -> Vector:
        """(d,) the root of a conversation of this many places, unit length.

        Raises:
            ZeroVectorError: the turns cancel out.
        """
        ranges = frontier(places, self._merger.fanout, lazy=self._merger._lazy_carry)
        levels = [self._nodes(level, *span) for level, span in enumerate(ranges)]
        now = max(float(level.moments.max(initial=-np.inf)) for level in levels)
        covering = [self._scaled(level, now) for level in reversed(levels)]
        root: Vector = self._merger._out(self._merger._read(covering)[None])[0]
        if not root.any():
            raise ZeroVectorError("The turns merge to a vector of length zero: they cancel out.")
        return root

    def _nodes(self, level: int, start: int, stop: int) -> _Faded:
        if level == 0:
            turns = [self._turn(place) for place in range(start, stop)]
            leaves, masses = leaves_of(self._merger, turns, self._width)
            moments = [-np.inf if turn is None else self._half_life.moment(turn) for turn in turns]
            nodes = Nodes(leaves * masses[:, None], masses, (masses > 0).astype(np.int64))
            return _Faded(nodes, np.array(moments))
        return _together([self._node(level, index) for index in range(start, stop)], self._width)

    def _node(self, level: int, index: int) -> _Faded:
        key = level, index
        if key not in self._made:
            try:
                stored = self._section(level, index)
            except KeyError:
                fanout = self._merger.fanout
                children = self._nodes(level - 1, index * fanout, (index + 1) * fanout)
                now = float(children.moments.max())
                node = joined(self._merger, self._scaled(children, now))
                self._made[key] = _Faded(node, np.array([now]))
            else:
                self._made[key] = _stored(stored, self._width)
        return self._made[key]

    def _scaled(self, faded: _Faded, now: float) -> Nodes:
        nodes = faded.nodes
        if now == -np.inf:
            return nodes
        ages = np.minimum((now - faded.moments) / self._half_life.length, _MOST_HALF_LIVES)
        factors = np.exp2(-ages).astype(np.float32)
        masses = np.where(nodes.counts > 0, np.maximum(nodes.masses * factors, _LEAST_MASS), 0)
        return Nodes(nodes.vectors * factors[:, None], masses.astype(np.float32), nodes.counts)


def _stored(section: Point | None, width: int) -> _Faded:
    if section is None:
        nodes = Nodes(np.zeros((1, width), np.float32), np.zeros(1, np.float32), np.zeros(1, np.int64))
        return _Faded(nodes, np.array([-np.inf]))
    kept = section.payload[FADED]
    nodes = Nodes(
        unpack(kept["node"])[None],
        np.array([kept["mass"]], np.float32),
        np.array([section.payload["count"]], np.int64),
    )
    return _Faded(nodes, np.array([kept["at"]]))


def _together(parts: Sequence[_Faded], width: int) -> _Faded:
    nodes = Nodes.concatenated((part.nodes for part in parts), width)
    return _Faded(nodes, np.concatenate([np.zeros(0), *(part.moments for part in parts)]))
