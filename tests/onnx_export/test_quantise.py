"""Rounding to 8 bits in blocks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnx_export.quantise import quantise

MATRICES = hnp.arrays(np.float32, (8, 12), elements=st.floats(-4, 4, width=32))


def in_blocks(matrix: np.ndarray, axis: int, block: int) -> np.ndarray:
    """(blocks, block), one row a block."""
    if axis == 0:
        matrix = matrix.T
    return matrix.reshape(-1, block)


@given(MATRICES, st.sampled_from([(0, 4), (0, 8), (1, 4), (1, 12)]))
def test_never_worse_than_plain_rounding(matrix: np.ndarray, layout: tuple[int, int]) -> None:
    axis, block = layout
    found = in_blocks(quantise(matrix, axis=axis, block=block).dequantised(), axis, block)
    rows = in_blocks(matrix, axis, block)
    for row, restored in zip(rows, found, strict=True):
        scale = float(np.float16(np.abs(row).max() / np.float32(127)))
        plain = np.clip(np.rint(row / scale), -127, 127) * scale if scale else np.zeros_like(row)
        assert np.sum((restored - row) ** 2) <= np.sum((plain - row) ** 2) + 1e-9


@given(MATRICES)
def test_shapes_and_types_of_the_blocks(matrix: np.ndarray) -> None:
    by_rows, by_columns = quantise(matrix, axis=0, block=4), quantise(matrix, axis=1, block=4)
    assert by_rows.values.shape == (2, 4, 12)
    assert by_rows.scales.shape == (2, 1, 12)
    assert by_columns.values.shape == (8, 3, 4)
    assert by_columns.scales.shape == (8, 3, 1)
    assert by_rows.values.dtype == np.int8
    assert by_rows.scales.dtype == np.float16


@pytest.mark.parametrize("axis", [0, 1])
def test_what_8_bits_can_hold_is_kept_exactly(axis: int) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.integers(-127, 128, (32, 32)).astype(np.float32)
    matrix[::16, :] = 127  # every block, of either layout, holds the largest value
    matrix[:, ::16] = 127
    scaled = matrix * np.float32(2**-9)
    np.testing.assert_array_equal(quantise(scaled, axis=axis, block=16).dequantised(), scaled)


def test_error_shrinks_with_the_block() -> None:
    matrix = np.random.default_rng(0).normal(size=(256, 64)).astype(np.float32)
    errors = [
        np.square(quantise(matrix, axis=0, block=b).dequantised() - matrix).mean() for b in (128, 32, 8)
    ]
    assert errors[0] > errors[1] > errors[2] > 0


def test_zeros_stay_zeros() -> None:
    assert not quantise(np.zeros((4, 4), np.float32), axis=0, block=4).dequantised().any()


def test_axis_must_split_into_blocks() -> None:
    with pytest.raises(ValueError, match="length 6 cannot be split into blocks of 4"):
        quantise(np.ones((6, 4), np.float32), axis=0, block=4)
