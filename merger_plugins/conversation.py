"""A follow-up question merged with its conversation, and masses that fade with age.

"Is it treatable?" finds nothing by itself. Merged with the turns before it, it finds what the conversation
is about; a question that stands alone is better left as it is. The gate here decides, for each question, how
much of the history it takes, from the vectors and token counts alone: no labels, no language model, no text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from merger_plugins._batching import as_floats, as_masses, as_matrix, as_vector, unit
from merger_plugins._types import MassesLike, MatrixLike, Vector, VectorLike
from merger_plugins.errors import DimensionError, InputError, NonFiniteError

Float64 = NDArray[np.float64]

USUAL_MASS = 10.0
"""Tokens of a question that takes `HistoryGate.share` of its history; shorter ones take more, longer less."""

REPEATED = 0.95
"""A turn whose cosine with a stored passage reaches this has shown that passage, word for word or nearly."""

_BREVITY, _BRIEFEST, _LONGEST = 0.25, 2.5, 40.0
_MOST_HALF_LIVES = 40.0
_ROUNDS, _CLOSE, _NO_DIRECTION = 50, 1e-3, 1e-6


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
    faded: Vector = (checked * _fading(_ages(ages, len(checked)), half_life)).astype(np.float32)
    return faded


@dataclass(frozen=True)
class HistoryGate:
    """How much of its history a question takes; the defaults are for all-MiniLM-L6-v2.

    With q the question, h the direction of its history and c = q·h, the merged question is q + w h, where w
    is `share`, reduced twice. A question that already says what its history is about (large c) stands alone:
    w falls from all of it to nothing as c goes through `covered`. A question far from its history (c near
    zero) may have changed the subject: w rises from `foreign` of it to all of it as c goes through `related`.
    And w is scaled by (10 / tokens of the question)^¼, as the shortest questions leave most unsaid.

    The two ranges are cosines, and depend on the embedding model: where unrelated texts have a cosine of 0.7,
    as in the E5 family, choose others.

    Attributes:
        half_life: age at which a turn counts half, in turns unless `merge_question` is given other ages.
        share: length of the history's part beside a question of length 1.
        foreign: part of `share` for a question far from its history.
        related, covered: (from, to), cosines.
        shown: the cosine that the merged question may have with a passage already shown.

    Raises:
        InputError: a value is out of range.
    """

    half_life: float = 3.0
    share: float = 0.6
    foreign: float = 0.5
    related: tuple[float, float] = (0.05, 0.15)
    covered: tuple[float, float] = (0.15, 0.7)
    shown: float = 0.4

    def __post_init__(self) -> None:
        _check_half_life(self.half_life)
        for name in ("share", "foreign", "shown"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise InputError(f"{name} is {value}; it lies between 0 and 1.")
        for name in ("related", "covered"):
            low, high = getattr(self, name)
            if not -1 <= low < high <= 1:
                raise InputError(f"{name} is {(low, high)}; it takes two cosines, the lower one first.")

    def weight(self, cosine: float, mass: float | None = None) -> float:
        """Length of the history's part beside a question of length 1.

        Args:
            cosine: of the question with its history.
            mass: the question's tokens; None where they are not known.
        """
        alone = (self.covered[1] - cosine) / (self.covered[1] - self.covered[0])
        near = (cosine - self.related[0]) / (self.related[1] - self.related[0])
        trust = self.foreign + (1 - self.foreign) * min(max(near, 0.0), 1.0)
        brevity = 1.0 if mass is None else (USUAL_MASS / min(max(mass, _BRIEFEST), _LONGEST)) ** _BREVITY
        return self.share * min(max(alone, 0.0), 1.0) * trust * brevity


@dataclass(frozen=True, eq=False)
class ConversationQuery:
    """A question merged with its conversation.

    Attributes:
        vector: (d,) float32, unit length: search with it as with any raw query vector.
        weight: the history's part of the merge, 0 (the question alone) to below 1; the question has the rest.
        cosine: of the question with its history; 0 where there is none.
        turns: (n,) float32, each turn's part of the history; they sum to 1.
    """

    vector: Vector
    weight: float
    cosine: float
    turns: Vector


def merge_question(
    question: VectorLike,
    history: MatrixLike = (),
    *,
    question_mass: float | None = None,
    masses: MassesLike | None = None,
    ages: MassesLike | None = None,
    shown: MatrixLike | None = None,
    gate: HistoryGate | None = None,
) -> ConversationQuery:
    """Merge a follow-up question with the turns before it, as far as it needs them.

    The history's direction is the sum of its unit vectors, each by the square root of its mass, which halves
    with age. `HistoryGate` says how much of it is added to the question.

    Where replies quote stored passages, what was shown already is nearest to the conversation and stands in
    the way of what is asked for now. Such passages passed as `shown` are turned away from: the vector is the
    nearest found whose cosine with each is at most `HistoryGate.shown`. `shown_passages` finds them. For
    recalling what was said, as in a chat's memory, pass none.

    MRR of the right passage, raw passage vectors and plain cosine (benchmarks/conversation.py): MTRAG-UN
    0.810 by the question alone, 0.902 merged; TREC CAsT, whose replies are stored passages, 0.540 alone,
    0.554 merged, 0.647 merged and turned away from what was shown. The gate's constants were chosen with both
    sets in view. Where history does not help, merging moved MRR by -0.028 to +0.012 on eight sets, without
    turning away; the result file has each, with its standard error.

    Args:
        question: (d,) raw query vector of the question as it was asked.
        history: (n, d) raw vectors of the turns before it, oldest first, replies included; n may be 0.
        question_mass: tokens of the question.
        masses: (n,) tokens of each turn; without, all turns count alike.
        ages: (n,) age of each turn, 0 or more; None counts turns, 0 for the last.
        shown: (s, d) raw vectors of stored passages that the conversation has shown already.
        gate: the constants.

    Returns:
        The merged question. Without history and anything shown its vector is the question's, at unit length.

    Raises:
        DimensionError: arrays of other shapes, or vectors of different dimensions.
        NonFiniteError, ZeroVectorError: as `SequenceMerger.merge`.
        InputError: masses of zero or below, negative ages.
    """
    gate = gate or HistoryGate()
    raw = unit(as_vector(question, what="question")[None])
    asked = raw[0].astype(np.float64)
    if question_mass is not None:
        question_mass = float(as_masses(np.array([question_mass]), 1)[0])
    turns = _rows(history, len(asked), "history")
    mass = as_masses(masses, len(turns))
    age = np.arange(len(turns))[::-1].astype(np.float64) if ages is None else _ages(ages, len(turns))
    merged, cosine, length, shares = asked, 0.0, 0.0, np.zeros(0)
    vector: Vector = raw[0]
    if len(turns):
        counts = np.sqrt(mass / mass.max()) * _fading(age - age.min(), gate.half_life)
        shares = counts / counts.sum()
        direction = shares @ turns
        size = float(np.linalg.norm(direction))
        if size > _NO_DIRECTION:  # turns that cancel out have no common direction
            cosine = float(asked @ direction) / size
            length = gate.weight(cosine, question_mass)
            merged = asked + length / size * direction
    if shown is not None:
        merged = _turned_away(merged, _rows(shown, len(asked), "shown"), gate.shown)
    if length or shown is not None:
        vector = unit(merged[None].astype(np.float32))[0]
    return ConversationQuery(
        vector=vector,
        weight=length / (1 + length),
        cosine=cosine,
        turns=shares.astype(np.float32),
    )


def shown_passages(
    history: MatrixLike, passages: MatrixLike, *, least_cosine: float = REPEATED
) -> NDArray[np.int64]:
    """Which stored passages the turns repeat, word for word or nearly.

    Args:
        history: (n, d) raw vectors of turns; n may be 0.
        passages: (p, d) raw vectors of stored passages, such as the nearest one to each turn; p may be 0.
        least_cosine: from where on a turn counts as the passage.

    Returns:
        (k,) int64, ascending rows of `passages`. Where the store can, filter them out of the results instead
        of turning away from them: that finds more.

    Raises:
        InputError: as `merge_question`.
    """
    stored = _rows(passages, None, "passages")
    if not len(stored):
        return np.zeros(0, np.int64)
    turns = _rows(history, stored.shape[1], "history")
    if not len(turns):
        return np.zeros(0, np.int64)
    return np.flatnonzero((turns @ stored.T).max(axis=0) >= least_cosine).astype(np.int64)


def _turned_away(query: Float64, shown: Float64, most: float) -> Float64:
    """A unit vector near `query` whose cosine with every row is at most `most`, as far as that can be."""
    query = query / np.linalg.norm(query)
    possible = np.ones(len(shown), np.bool_)
    for _ in range(_ROUNDS):
        cosines = np.where(possible, shown @ query, -1.0)
        if not len(shown) or cosines.max() <= most + _CLOSE:
            break
        nearest = int(cosines.argmax())
        rest = query - cosines[nearest] * shown[nearest]
        length = np.linalg.norm(rest)
        if length < _NO_DIRECTION:  # the question is that very passage: no side to turn to
            possible[nearest] = False
            continue
        query = most * shown[nearest] + np.sqrt(1 - most**2) / length * rest
    return query


def _rows(vectors: MatrixLike, dimension: int | None, what: str) -> Float64:
    """(n, d) unit rows; n may be 0."""
    if not len(vectors):
        return np.zeros((0, dimension or 0))
    matrix = as_matrix(vectors, what=what)
    if dimension is not None and matrix.shape[1] != dimension:
        raise DimensionError(
            f"{what} has dimension {matrix.shape[1]}, and what it is compared with has {dimension}. Embed "
            "both with one model, and pass both raw or neither."
        )
    return unit(matrix).astype(np.float64)


def _ages(ages: MassesLike, count: int) -> Float64:
    array = as_floats(ages, f"ages must be an array of {count} numbers, one a turn").astype(np.float64)
    if array.shape != (count,):
        raise DimensionError(f"ages must have shape ({count},), one a turn; {array.shape} arrived.")
    if not np.isfinite(array).all():
        raise NonFiniteError(f"ages hold {array[~np.isfinite(array)][0]}; each must be a number, 0 or more.")
    if (array < 0).any():
        raise InputError(f"ages hold {array.min():g}; an age is 0 (now) or more, in the half-life's unit.")
    return array


def _fading(ages: Float64, half_life: float) -> Float64:
    _check_half_life(half_life)
    faded: Float64 = np.exp2(-np.minimum(ages / half_life, _MOST_HALF_LIVES))
    return faded


def _check_half_life(half_life: float) -> None:
    if not half_life > 0:
        raise InputError(f"The half-life is {half_life}; it must be above 0, infinity for no fading.")
