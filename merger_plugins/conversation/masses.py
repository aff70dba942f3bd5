"""Masses that fade with age."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from merger_plugins._batching import as_floats, as_masses
from merger_plugins._types import MassesLike, Vector
from merger_plugins.errors import DimensionError, InputError, NonFiniteError

Float64 = NDArray[np.float64]

_MOST_HALF_LIVES = 40.0


def fading_masses(masses: MassesLike, ages: MassesLike, half_life: float) -> Vector:
    """Masses that halve with every `half_life` of age: m · 2^(-age / half_life).

    Args:
        masses: (n,) tokens each vector stands for.
        ages: (n,) how long ago each was said, 0 or more, in any unit: turns, hours, days.
        half_life: the age at which half of a mass is left, in the unit of `ages`; infinity for no fading.

    Returns:
        (n,) float32 masses for any merger. After 40 half-lives they fade no further, so that each stays above
        zero.

    Raises:
        DimensionError: not as many ages as masses.
        NonFiniteError: NaN or infinity in masses or ages.
        InputError: a mass of zero or below, a negative age, or a half-life of zero or below.
    """
    given = as_floats(masses, "masses must be an array of numbers, one a vector")
    checked = as_masses(given, given.size)
    faded: Vector = (checked * fading(checked_ages(ages, len(checked)), half_life)).astype(np.float32)
    return faded


def checked_ages(ages: MassesLike, count: int) -> Float64:
    """(count,) ages, each 0 or more; raises as `fading_masses`."""
    array = as_floats(ages, f"ages must be an array of {count} numbers, one a turn").astype(np.float64)
    if array.shape != (count,):
        raise DimensionError(f"ages must have shape ({count},), one a turn; {array.shape} arrived.")
    if not np.isfinite(array).all():
        raise NonFiniteError(f"ages hold {array[~np.isfinite(array)][0]}; each must be a number, 0 or more.")
    if (array < 0).any():
        raise InputError(f"ages hold {array.min():g}; an age is 0 (now) or more, in the half-life's unit.")
    return array


def fading(ages: Float64, half_life: float) -> Float64:
    """2^(-age / half_life) of each age."""
    check_half_life(half_life)
    faded: Float64 = np.exp2(-np.minimum(ages / half_life, _MOST_HALF_LIVES))
    return faded


def check_half_life(half_life: float) -> None:
    """Refuse a half-life that is not above 0."""
    if not half_life > 0:
        raise InputError(f"The half-life is {half_life}; it must be above 0, infinity for no fading.")
