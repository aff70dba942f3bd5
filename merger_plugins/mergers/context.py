"""Contextual chunk vectors: how much a chunk takes from its neighbours and from its root."""

from dataclasses import dataclass

import numpy as np

from merger_plugins._types import Matrix, Vector
from merger_plugins.errors import InputError

REACH = 2
"""How many chunks on either side count as neighbours."""

_MOST_OF_MEAN_MASS = 4.0


@dataclass(frozen=True)
class ContextWeights:
    """What a contextual chunk vector is merged from, beside the chunk itself, which weighs 1.

    A chunk of mass m takes these in proportion to the square root of m over the sequence's mean mass: a
    heading that took as much as a paragraph would become a copy of its neighbours and rank in their place.

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
