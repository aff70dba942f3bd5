"""Weights as 8-bit integers, in blocks with a float16 scale each."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SHRINK = np.linspace(0.85, 1.0, 31, dtype=np.float32)


@dataclass(frozen=True)
class Blocks:
    """A quantised matrix; ``values * scales``, reshaped to `shape`, is what it stands for.

    Attributes:
        values: int8, the matrix with its blocked axis split in two.
        scales: float16, of the same rank, with length 1 along the block.
        shape: the matrix's own shape.
    """

    values: NDArray[np.int8]
    scales: NDArray[np.float16]
    shape: tuple[int, int]

    def dequantised(self) -> NDArray[np.float32]:
        """The float32 matrix that a run-time graph computes with."""
        return (self.values.astype(np.float32) * self.scales.astype(np.float32)).reshape(self.shape)


def quantise(weights: NDArray[np.float32], *, axis: int, block: int) -> Blocks:
    """Round a matrix to `Blocks`, each block with the scale of least squared error.

    A scale somewhat below ``max / 127`` clips the largest weight of a block and rounds the others finer;
    31 candidates are tried, each after its own rounding to float16.

    Args:
        weights: (rows, columns) float32.
        axis: the axis along which neighbours share a scale.
        block: how many share one; it divides the length of the axis.

    Raises:
        ValueError: the axis cannot be split into blocks.
    """
    if weights.shape[axis] % block:
        raise ValueError(f"An axis of length {weights.shape[axis]} cannot be split into blocks of {block}.")
    rows, columns = weights.shape
    split = (rows // block, block, columns) if axis == 0 else (rows, columns // block, block)
    within = 1 if axis == 0 else 2
    blocks = weights.reshape(split)
    limit = np.abs(blocks).max(axis=within, keepdims=True) / 127

    scales = np.zeros_like(limit, dtype=np.float16)
    values = np.zeros(split, np.int8)
    least = np.full_like(limit, np.inf)
    for shrink in _SHRINK:
        candidate = (limit * shrink).astype(np.float16)
        step = np.where(candidate > 0, candidate, 1).astype(np.float32)
        rounded = np.clip(np.rint(blocks / step), -127, 127)
        error = np.square(rounded * step - blocks).sum(axis=within, keepdims=True)
        better = error < least
        scales = np.where(better, candidate, scales)
        values = np.where(better, rounded, values).astype(np.int8)
        least = np.minimum(least, error)
    return Blocks(values, scales, (rows, columns))
