"""Masses that a tree can add up."""

from __future__ import annotations

from merger_plugins._batching import as_masses
from merger_plugins._types import MassesLike, Vector
from merger_plugins.errors import InputError

LEAST_MASS, MOST_MASS = 1e-15, 1e15
"""Masses are added up in float32; beyond these bounds the squares of the sums leave its range."""


def checked_masses(masses: MassesLike | None, count: int) -> Vector:
    """(count,) masses that a tree can add up; ones for None.

    Raises:
        InputError: not finite, below `LEAST_MASS` or above `MOST_MASS`, or another number of them.
    """
    checked = as_masses(masses, count)
    outside = checked[(checked < LEAST_MASS) | (checked > MOST_MASS)]
    if len(outside):
        raise InputError(
            f"masses hold {outside[0]:g}; a rolling merge takes {LEAST_MASS:g} to {MOST_MASS:g}. A mass is a "
            "number of tokens."
        )
    return checked
