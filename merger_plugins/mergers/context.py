"""Contextual chunk vectors: how much a chunk takes from its neighbours and from its root."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from merger_plugins._types import Matrix, Vector
from merger_plugins.errors import InputError

REACH = 2
"""How many chunks on either side count as neighbours."""

ROOT_DRIFT = 0.02
"""Contextual vectors are stale once the root's cosine with the root they were made with is below 1 - this."""

MASS_DRIFT = 1.2
"""They are stale, too, once the mean mass, on which their shares depend, changed by more than this factor."""

_MOST_OF_MEAN_MASS = 4.0


@dataclass(frozen=True)
class ContextWeights:
    """What a contextual chunk vector is merged from, beside the chunk itself, which weighs 1.

    A chunk of mass m takes these in proportion to the square root of m over the sequence's mean mass, twice
    as much at the most: a heading that took as much as a paragraph would become a copy of its neighbours and
    rank in their place.

    Attributes:
        near: weight of each chunk one step away; those two steps away weigh half of it.
        root: weight of the root vector.
    """

    near: float = 0.1
    root: float = 0.1

    def __post_init__(self) -> None:
        for name in ("near", "root"):
            value = getattr(self, name)
            if not (np.isfinite(value) and 0 <= value <= 1):
                raise InputError(f"{name} is {value}; a context weight lies between 0 and 1.")


TURN_WEIGHTS = ContextWeights(near=0.3, root=0.2)
"""For the turns of a conversation, which say less by themselves than paragraphs do."""


def blend(leaves: Matrix, root: Vector, relative_masses: Vector, weights: ContextWeights) -> Matrix:
    """Each unit vector plus its neighbours and the root, as `ContextWeights` says; not normalised.

    Args:
        leaves: (n, d) unit vectors in reading order; a row of zeros is an empty place and gives nothing.
        root: (d,) unit vector.
        relative_masses: (n,) masses over their mean in the whole sequence.
        weights: the proportions.
    """
    around = np.zeros_like(leaves)
    for step in range(1, REACH + 1):
        around[step:] += leaves[:-step] / step
        around[:-step] += leaves[step:] / step
    share = np.sqrt(np.minimum(relative_masses, _MOST_OF_MEAN_MASS))[:, None]
    blended: Matrix = leaves + share * (weights.near * around + weights.root * root)
    return blended


@dataclass(frozen=True)
class Renewal:
    """What all contextual chunk vectors of a sequence were made with when they were last made at once.

    Attributes:
        root: (d,) unit vector.
        mean_mass: of the chunks.
        weights: the proportions.
    """

    root: Vector
    mean_mass: float
    weights: ContextWeights

    def outdated(self, now: Renewal) -> bool:
        """Whether vectors made now would differ enough to be written again."""
        change = now.mean_mass / self.mean_mass
        turned = float(now.root @ self.root) < 1 - ROOT_DRIFT
        return turned or max(change, 1 / change) > MASS_DRIFT or now.weights != self.weights
