"""FINESSE's scores: does a merged vector tell its own chunks from others, and one order from another?

A probe sequence of n independent chunks is merged n times: the first chunk, the first two, and so on.
Synthesis i holds chunks 0 to i, its members; the chunks after i are the others.

Definitions are those of the public package finesse-benchmark 0.18.9, to 1e-6. Where that package, its own
documentation and the articles about it differ, this module follows the package's code:

- its ``score`` command writes (td + bu) x 500 as the score of a sample: `robust_separation`. Its
  documentation, its ``inspect`` command and earlier releases, such as 0.14.0, have
  ((td + bu) / 2 - |td - bu|) x 500: `finesse`. Both are here, and both stand in our result files.
- Bottom-Up is documented to leave out the last chunk, and counts it: so do we. Top-Down does leave out the
  first and the last synthesis.
- the package gives 0 for sequences of two chunks and for vectors of length zero; here both are errors, as
  such a 0 would pass for a score.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from merger_plugins._batching import as_matrix, as_vector
from merger_plugins._types import MatrixLike, VectorLike
from merger_plugins.errors import DimensionError, InputError

Floats = NDArray[np.float64]

Gap = Literal["q1q3", "q2q2"]
"""How two groups of cosines are compared.

``"q1q3"``: the first quartile of the members minus the third quartile of the others, the strict form;
``"q2q2"``: median minus median.
"""

GAPS: Final[tuple[Gap, ...]] = get_args(Gap)

SCALE: Final = 500.0
ORDER_SCALE: Final = 1000.0

_SHARES: Final[Mapping[Gap, tuple[float, float]]] = {"q1q3": (0.25, 0.75), "q2q2": (0.5, 0.5)}


def similarities(syntheses: MatrixLike, chunks: MatrixLike) -> Floats:
    """Cosines of every synthesis with every chunk, the matrix that Top-Down and Bottom-Up are read from.

    Args:
        syntheses: (n, d), row i the merge of chunks 0 to i; any lengths.
        chunks: (n, d) single chunks, each as the merger gives it back when it is alone; any lengths.

    Returns:
        (n, n) float64, row i for synthesis i, from -1 to 1.

    Raises:
        InputError: empty, not finite, zero vectors, or shapes that do not agree.
    """
    rows, columns = as_matrix(syntheses, what="syntheses"), as_matrix(chunks, what="chunks")
    if rows.shape != columns.shape:
        raise DimensionError(
            f"syntheses has shape {rows.shape} and chunks {columns.shape}; there is one synthesis a chunk, "
            "of the same dimension."
        )
    return _cosines(rows, columns)


def separation(members: MatrixLike | VectorLike, others: MatrixLike | VectorLike, gap: Gap = "q1q3") -> float:
    """The Robust Separation of two groups of cosines, from -2 to 2: above 0 where members stand apart.

    Quantiles are interpolated linearly.

    Raises:
        InputError: a group is empty, or `gap` is unknown.
    """
    low, high = _shares(gap)
    return _quantile(np.asarray(members, np.float64), low) - _quantile(np.asarray(others, np.float64), high)


def top_down_gaps(similarity: Floats, gap: Gap = "q1q3") -> Floats:
    """The separation of each synthesis's members from the others, first and last synthesis left out.

    Args:
        similarity: (n, n) of `similarities`, n at least 3.
        gap: how groups are compared.

    Returns:
        (n - 2,), for syntheses 1 to n - 2.

    Raises:
        InputError: not square, or n below 3.
    """
    matrix = _square(similarity)
    steps = range(1, len(matrix) - 1)
    return np.array([separation(matrix[i, : i + 1], matrix[i, i + 1 :], gap) for i in steps])


def bottom_up_gaps(similarity: Floats, gap: Gap = "q1q3") -> Floats:
    """The separation of the syntheses that hold a chunk from those made before it, first chunk left out.

    Args:
        similarity: (n, n) of `similarities`, n at least 3.
        gap: how groups are compared.

    Returns:
        (n - 1,), for chunks 1 to n - 1.

    Raises:
        InputError: not square, or n below 3.
    """
    matrix = _square(similarity)
    return np.array([separation(matrix[j:, j], matrix[:j, j], gap) for j in range(1, len(matrix))])


def top_down(similarity: Floats, gap: Gap = "q1q3") -> float:
    """The mean of `top_down_gaps`: do merged vectors know their members? From -2 to 2."""
    return float(top_down_gaps(similarity, gap).mean())


def bottom_up(similarity: Floats, gap: Gap = "q1q3") -> float:
    """The mean of `bottom_up_gaps`: do chunks find the merged vectors that hold them? From -2 to 2."""
    return float(bottom_up_gaps(similarity, gap).mean())


def robust_separation(td: float, bu: float) -> float:
    """The Robust Separation Score of a sample as finesse-benchmark 0.18.9 writes it: (td + bu) x 500."""
    return (td + bu) * SCALE


def finesse(td: float, bu: float) -> float:
    """The balanced score of a sample: ((td + bu) / 2 - |td - bu|) x 500.

    It is what finesse-benchmark documents, and what earlier releases of it wrote.
    """
    return ((td + bu) / 2 - abs(td - bu)) * SCALE


def order_sensitivity(
    probe: VectorLike, forward: MatrixLike, backward: MatrixLike, gap: Gap = "q1q3"
) -> float:
    """Sequence Recognition Sensitivity at one place: is a probe nearer to itself than to its reverse?

    Args:
        probe: (d,) the merge of the probe's chunks.
        forward: (g, d) merges of g other sequences, each with the probe inside.
        backward: (g, d) the same with the probe in reverse order.
        gap: how the two groups are compared.

    Returns:
        From -2 to 2, before `ORDER_SCALE`. 0 with ``"q2q2"`` for a merger that ignores order.

    Raises:
        InputError: as `similarities`.
    """
    row = as_vector(probe, what="probe")[None]
    members = as_matrix(forward, row.shape[1], what="forward")
    others = as_matrix(backward, row.shape[1], what="backward")
    return separation(_cosines(row, members)[0], _cosines(row, others)[0], gap)


def position_bias(scores: Iterable[tuple[int, Sequence[Mapping[int, Sequence[float]]]]]) -> float:
    """How much order sensitivity depends on where in a sequence a probe stands; 0 for nowhere.

    The standard deviation of the scores of one probe length in sequences of one length, over all samples and
    places, averaged over lengths and those probe lengths that are at most half of the sequence: the Position
    Bias Index of finesse-benchmark.

    Args:
        scores: for each length its samples, a mapping each from probe length to the scores of all places.
    """
    spreads = []
    for length, samples in scores:
        for probe in range(2, length // 2 + 1):
            values = [score for sample in samples for score in sample.get(probe, ())]
            if len(values) > 1:
                spreads.append(float(np.std(values)))
    return float(np.mean(spreads)) if spreads else 0.0


def _cosines(rows: NDArray[Any], columns: NDArray[Any]) -> Floats:
    return _unit(rows) @ _unit(columns).T


def _unit(rows: NDArray[Any]) -> Floats:
    wide = rows.astype(np.float64)
    normalised: Floats = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return normalised


def _square(similarity: Floats) -> Floats:
    matrix = np.asarray(similarity, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 3:
        raise DimensionError(
            f"similarity has shape {matrix.shape}; (n, n) with n at least 3 was expected, one synthesis a "
            "chunk: a shorter sequence has no synthesis between its first and its last."
        )
    return matrix


def _shares(gap: Gap) -> tuple[float, float]:
    if gap not in _SHARES:
        raise InputError(f"gap is {gap!r}; it is one of {', '.join(GAPS)}.")
    return _SHARES[gap]


def _quantile(values: Floats, share: float) -> float:
    if values.ndim != 1 or not values.size:
        raise InputError(f"A quantile needs a row of numbers; an array of shape {values.shape} arrived.")
    ordered = np.sort(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return float(ordered[below] + (place - below) * (ordered[above] - ordered[below]))
