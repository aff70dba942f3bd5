"""Nodes of the tree, as arrays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
