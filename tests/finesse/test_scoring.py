import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merger_plugins import MeanMerger
from merger_plugins.errors import DimensionError, InputError, NonFiniteError, ZeroVectorError
from merger_plugins.finesse.scoring import (
    GAPS,
    bottom_up,
    bottom_up_gaps,
    finesse,
    order_sensitivity,
    position_bias,
    robust_separation,
    separation,
    similarities,
    top_down,
    top_down_gaps,
)
from tests.strategies import Array, chunk_vectors

A, B = 2**-0.5, 3**-0.5


def means(chunks: Array) -> Array:
    """The mean of the first chunk, of the first two, and so on."""
    return MeanMerger().merge_many([chunks[:stop] for stop in range(1, len(chunks) + 1)])


def test_three_orthogonal_chunks_by_hand() -> None:
    similarity = similarities(means(np.eye(3)), np.eye(3))
    np.testing.assert_allclose(similarity, [[1, 0, 0], [A, A, 0], [B, B, B]], atol=1e-7)
    # Synthesis 1 has the members 0 and 1, cosine A each; chunk 2 is the other, cosine 0.
    assert top_down_gaps(similarity) == pytest.approx([A])
    # Chunk 1 is in syntheses 1 (A) and 2 (B), not in 0 (0): the first quartile is a quarter of the way from B
    # to A. Chunk 2 is in synthesis 2 alone (B).
    assert bottom_up_gaps(similarity) == pytest.approx([B + (A - B) / 4, B])
    assert bottom_up_gaps(similarity, "q2q2") == pytest.approx([(A + B) / 2, B])
    assert top_down(similarity, "q2q2") == pytest.approx(A)


def test_of_orthogonal_chunks_a_mean_reaches_the_limit() -> None:
    for count in (4, 16, 64):
        similarity = similarities(means(np.eye(count)), np.eye(count))
        # The cosine of a unit vector with its n orthogonal members cannot exceed 1/sqrt(n) on average.
        limits = 1 / np.sqrt(np.arange(2, count))
        for gap in GAPS:
            assert top_down_gaps(similarity, gap) == pytest.approx(limits, abs=1e-6)


def test_quartiles_are_interpolated_as_numpy_does() -> None:
    rng = np.random.default_rng(1)
    for members, others in [(1, 1), (2, 5), (7, 3), (20, 44)]:
        a, b = rng.uniform(-1, 1, members), rng.uniform(-1, 1, others)
        assert separation(a, b) == pytest.approx(np.quantile(a, 0.25) - np.quantile(b, 0.75))
        assert separation(a, b, "q2q2") == pytest.approx(np.median(a) - np.median(b))


def test_scores_of_a_sample() -> None:
    assert robust_separation(0.5, 0.3) == pytest.approx(400)
    assert finesse(0.5, 0.3) == finesse(0.3, 0.5) == pytest.approx((0.4 - 0.2) * 500)


@given(st.integers(0, 2**32 - 1), st.integers(3, 12), st.sampled_from(GAPS))
def test_bounds_and_what_does_not_matter(seed: int, count: int, gap: str) -> None:
    rng = np.random.default_rng(seed)
    chunks, syntheses = chunk_vectors(seed, count), chunk_vectors(seed + 1, count)
    similarity = similarities(syntheses, chunks)
    found = top_down(similarity, gap), bottom_up(similarity, gap)
    assert np.abs(found).max() <= 2

    lengths = rng.uniform(0.1, 50, (2, count, 1))
    turned = np.linalg.qr(rng.standard_normal((chunks.shape[1],) * 2))[0]
    same = similarities((syntheses * lengths[0]) @ turned, (chunks * lengths[1]) @ turned)
    assert (top_down(same, gap), bottom_up(same, gap)) == pytest.approx(found, abs=1e-5)

    # Top-Down compares groups, and both of the first two chunks are members wherever it looks.
    swapped = similarity[:, [1, 0, *range(2, count)]]
    assert top_down(swapped, gap) == pytest.approx(found[0])
    # Bottom-Up of the second form changes its sign where all cosines do.
    assert bottom_up(-similarity, "q2q2") == pytest.approx(-bottom_up(similarity, "q2q2"))


@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_order_sensitivity(seed: int, group: int) -> None:
    rng = np.random.default_rng(seed)
    probe, forward, backward = chunk_vectors(seed, 1)[0], *np.split(chunk_vectors(seed + 1, 2 * group), 2)
    for gap in GAPS:
        found = order_sensitivity(probe, forward, backward, gap)
        assert -2 <= found <= 2
        mixed = order_sensitivity(probe * 3, rng.permutation(forward), rng.permutation(backward), gap)
        assert mixed == pytest.approx(found, abs=1e-6)
    turned = order_sensitivity(probe, backward, forward, "q2q2")
    assert turned == pytest.approx(-order_sensitivity(probe, forward, backward, "q2q2"))
    assert order_sensitivity(probe, forward, rng.permutation(forward), "q2q2") == 0
    assert order_sensitivity(probe, forward, forward, "q1q3") <= 0


def test_order_sensitivity_by_hand() -> None:
    probe = np.array([1.0, 0])
    forward, backward = [[1, 0], [0.6, 0.8]], [[0, 1], [0.8, -0.6]]
    # First quartile of (1, 0.6) is 0.7; third quartile of (0, 0.8) is 0.6.
    assert order_sensitivity(probe, forward, backward) == pytest.approx(0.1)
    assert order_sensitivity(probe, forward, backward, "q2q2") == pytest.approx(0.8 - 0.4)


def test_position_bias_by_hand() -> None:
    # In sequences of 5 only probes of 2 count: 1, 3, 5, 7, of all samples together. In those of 4 too.
    five = [{2: [1.0, 3.0], 3: [100.0, 0.0]}, {2: [5.0, 7.0], 3: [0.0, 0.0]}]
    four = [{2: [2.0, 4.0], 3: [9.0]}]
    assert position_bias([(5, five), (4, four)]) == pytest.approx((5**0.5 + 1) / 2)
    assert position_bias([]) == 0


def test_bad_input() -> None:
    three = np.eye(3)
    with pytest.raises(DimensionError, match=r"syntheses has shape \(3, 3\) and chunks \(2, 3\)"):
        similarities(three, three[:2])
    with pytest.raises(ZeroVectorError, match="chunks row 1 of 3"):
        similarities(three, three * [[1], [0], [1]])
    with pytest.raises(NonFiniteError, match="syntheses row 2"):
        similarities(three * [[1], [1], [np.nan]], three)
    with pytest.raises(DimensionError, match="n at least 3"):
        top_down(np.eye(2))
    with pytest.raises(InputError, match="gap is 'q3q1'; it is one of q1q3, q2q2"):
        bottom_up(np.eye(3), "q3q1")
    with pytest.raises(InputError, match="forward is empty"):
        order_sensitivity(three[0], np.empty((0, 3)), three)
    with pytest.raises(InputError, match="A quantile needs"):
        separation([], [1.0])
