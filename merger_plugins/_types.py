"""Array types used throughout."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
"""(d,) float32."""

Matrix = NDArray[np.float32]
"""(n, d) float32, one vector a row."""

VectorLike = NDArray[Any] | Sequence[float]
MatrixLike = NDArray[Any] | Sequence[Sequence[float]] | Sequence[NDArray[Any]]
MassesLike = NDArray[Any] | Sequence[float]
