"""Statistics against numpy, and the calibration against its formula in float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merger_plugins import Background, CalibratedMerger, CalibrationStatistics
from merger_plugins._artefact import dump_tensors
from merger_plugins.errors import (
    ArtefactError,
    DimensionError,
    EmptyInputError,
    NonFiniteError,
    ZeroVectorError,
)
from merger_plugins.mergers import calibration
from merger_plugins.mergers.calibration import (
    MEAN_WORTH,
    POWER_GAIN,
    POWER_HALF,
    POWER_LEAST,
    RIDGE_GAIN,
    RIDGE_HALF,
    RIDGE_LARGE,
    SHRINKAGE,
    WORTH_LEAST,
    WORTH_MOST,
    Calibration,
    MixedStatistics,
    background_worth,
)
from tests.strategies import DIMENSION, chunk_vectors, normalised, sequences, splits

pytestmark = pytest.mark.filterwarnings("error")

documents = st.lists(sequences(max_size=12), min_size=1, max_size=8)


def naive_covariance(parts):
    """Within-document scatter over its degrees of freedom, and the whole covariance for what they lack."""
    points = np.concatenate(parts)
    whole = np.cov(points.T, bias=True)
    scatter = sum(len(part) * np.cov(part.T, bias=True) for part in parts if len(part) > 1)
    freedom = sum(len(part) - 1 for part in parts)
    if not freedom:
        return whole
    return freedom / len(points) * (scatter / freedom) + (1 - freedom / len(points)) * whole


def assert_same(a, b):
    assert (a.vectors, a.sequences) == (b.vectors, b.sequences)
    assert np.allclose(a.mean, b.mean, atol=1e-6)
    assert np.allclose(a.covariance, b.covariance, atol=1e-6)


@given(documents)
def test_documents_give_their_mean_and_the_spread_inside_them(parts):
    statistics = CalibrationStatistics.of(iter(parts))
    points = [normalised(part) for part in parts]
    assert (statistics.vectors, statistics.sequences) == (sum(map(len, parts)), len(parts))
    assert np.allclose(statistics.mean, np.concatenate(points).mean(axis=0), atol=1e-6)
    assert np.allclose(statistics.covariance, naive_covariance(points), atol=1e-6)


@given(sequences())
def test_loose_vectors_give_the_covariance_of_the_whole(vectors):
    for sample in (vectors, list(vectors), vectors.tolist(), (row for row in vectors)):
        statistics = CalibrationStatistics.of(sample)
        assert (statistics.vectors, statistics.sequences) == (len(vectors), len(vectors))
        assert np.allclose(statistics.mean, normalised(vectors).mean(axis=0), atol=1e-6)
        assert np.allclose(statistics.covariance, np.cov(normalised(vectors).T, bias=True), atol=1e-6)


@given(documents, st.data())
def test_parts_gathered_apart_add_up_to_one_pass(parts, data):
    added = CalibrationStatistics(DIMENSION)
    for part in data.draw(splits(len(parts))):
        added = added + CalibrationStatistics.of(parts[part])
    assert_same(added, CalibrationStatistics.of(parts))


@given(documents, st.randoms(use_true_random=False))
def test_the_order_of_documents_does_not_matter(parts, random):
    shuffled = random.sample(parts, len(parts))
    assert_same(CalibrationStatistics.of(shuffled), CalibrationStatistics.of(parts))


def test_documents_and_loose_vectors_may_be_mixed():
    document, loose = chunk_vectors(0, 5), chunk_vectors(1, 3)
    expected = naive_covariance([normalised(document), *normalised(loose)[:, None]])
    updated = CalibrationStatistics(DIMENSION)
    updated.update(document)
    updated.update(loose, one_sequence=False)
    for statistics in (updated, CalibrationStatistics.of([loose[0], document, *loose[1:]])):
        assert (statistics.vectors, statistics.sequences) == (8, 4)
        assert np.allclose(statistics.covariance, expected, atol=1e-6)


def test_a_long_sample_is_read_in_blocks(monkeypatch):
    sample = chunk_vectors(0, 50)
    whole = CalibrationStatistics.of(sample)
    monkeypatch.setattr(calibration, "_BLOCK", 8)
    assert_same(CalibrationStatistics.of(sample), whole)
    assert_same(CalibrationStatistics.of(iter(sample)), whole)
    with pytest.raises(DimensionError, match="rows of one length"):
        CalibrationStatistics.of([*sample[:9], *chunk_vectors(0, 8, 5)])


def test_adding_leaves_both_as_they_were_and_a_copy_is_apart():
    first, second = (CalibrationStatistics.of([chunk_vectors(i, 4)]) for i in range(2))
    before = first.to_bytes()
    total, copy = first + second, first.copy()
    total.update(chunk_vectors(2, 4))
    copy.update(chunk_vectors(2, 4))
    assert first.to_bytes() == before
    assert copy.vectors == 8


def test_statistics_of_two_dimensions_are_not_added():
    with pytest.raises(DimensionError, match=r"dimension 6 and 5"):
        CalibrationStatistics(6) + CalibrationStatistics(5)


@pytest.mark.parametrize(
    ("sample", "error", "message"),
    [
        ([], EmptyInputError, "chunk vectors that the collection holds"),
        (iter(()), EmptyInputError, "chunk vectors that the collection holds"),
        (np.zeros((0, 6)), EmptyInputError, "sample is empty"),
        (np.ones(6), DimensionError, r"\(n, d\).*\(6,\)"),
        (np.ones((2, 3, 6)), DimensionError, r"\(2, 3, 6\)"),
        (np.ones((2, 5)), DimensionError, r"dimension 5.*dimension 6"),
        ([np.ones((2, 5))], DimensionError, r"dimension 5.*dimension 6"),
        ([np.ones(5)], DimensionError, r"dimension 5.*dimension 6"),
        ([np.ones((2, 6)), np.ones((2, 5))], DimensionError, r"dimension 5.*dimension 6"),
        ([np.ones((2, 6)), np.ones(5)], DimensionError, r"dimension 5.*dimension 6"),
        ([np.ones((2, 6)), []], EmptyInputError, "empty"),
        ([1.0, 2.0], DimensionError, r"\(\)"),
        ("text", DimensionError, "sample must hold"),
        ([[[1.0, 2.0], [3.0]]], DimensionError, "sample must hold"),
        ([np.ones((2, 6)), np.zeros((2, 6))], ZeroVectorError, "sample row 0 of 2"),
        ([np.full((2, 6), np.nan)], NonFiniteError, "sample row 0 of 2"),
    ],
)
def test_samples_that_cannot_be_used_are_refused(sample, error, message):
    with pytest.raises(error, match=message):
        CalibrationStatistics.of(sample, 6)


def test_a_refused_update_changes_nothing():
    statistics = CalibrationStatistics.of([chunk_vectors(0, 4)])
    before = statistics.to_bytes()
    with pytest.raises(ZeroVectorError):
        statistics.update([*chunk_vectors(1, 3), np.zeros(DIMENSION)])
    assert statistics.to_bytes() == before


def test_statistics_of_nothing_have_no_mean_and_no_covariance():
    for name in ("mean", "covariance"):
        with pytest.raises(EmptyInputError, match="hold no vectors"):
            getattr(CalibrationStatistics(4), name)


@given(documents)
def test_statistics_survive_being_saved_to_the_last_bit(parts):
    statistics = CalibrationStatistics.of(parts)
    loaded = CalibrationStatistics.from_bytes(statistics.to_bytes())
    assert loaded.to_bytes() == statistics.to_bytes()
    loaded.update(parts[0])
    statistics.update(parts[0])
    assert loaded.to_bytes() == statistics.to_bytes()


GOOD = {
    "counts": np.array([3, 1]),
    "sum": np.zeros(4),
    "outer": np.zeros((4, 4)),
    "between": np.zeros((4, 4)),
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sum": None}, "sum"),
        ({"between": None}, "between"),
        ({"counts": np.array([1, 2, 3])}, "too many values"),
        ({"sum": np.array(0.0)}, "unsized"),
        ({"outer": np.zeros((4, 5))}, r"\(4, 5\).*\(4, 4\)"),
        ({"between": np.zeros(4)}, r"\(4,\).*\(4, 4\)"),
    ],
)
def test_damaged_statistics_are_refused(changes, message):
    tensors = {name: array for name, array in {**GOOD, **changes}.items() if array is not None}
    with pytest.raises(ArtefactError, match=message):
        CalibrationStatistics.from_bytes(dump_tensors(tensors))
    with pytest.raises(ArtefactError):
        CalibrationStatistics.from_bytes(dump_tensors(GOOD)[:-1])


def test_a_background_survives_being_saved():
    background = Background(np.diag(np.geomspace(1, 0.01, 5)))
    loaded = Background.from_bytes(background.to_bytes())
    assert loaded.informed
    assert np.allclose(loaded.second_moment, background.second_moment, rtol=1e-6)
    assert loaded.to_bytes() == background.to_bytes()


@pytest.mark.parametrize("tensors", [{}, {"other": np.eye(3)}, {"second_moment": np.ones(3)}])
def test_a_damaged_background_is_refused(tensors):
    with pytest.raises(ArtefactError):
        Background.from_bytes(dump_tensors(tensors))


def naive_worth(points, background):
    """The least-squares weight of the background, from the points one by one."""
    outers = np.einsum("ni,nj->nij", points, points)
    moment = outers.mean(axis=0)
    noise = ((outers - moment) ** 2).sum(axis=(1, 2)).mean()
    distance = ((moment - background) ** 2).sum() - noise / len(points)
    if distance <= 0:
        return WORTH_MOST
    return min(max(SHRINKAGE * noise / distance, WORTH_LEAST), WORTH_MOST)


def naive_calibration(points, covariance, background):
    """m and P from the formulas in the docstring, by another decomposition than the code's."""
    n, mean = len(points), points.mean(axis=0)
    known = np.eye(len(mean)) / len(mean) if background is None else background
    m = n / (n + MEAN_WORTH) * mean
    own = covariance + np.outer(mean - m, mean - m)
    if background is None:
        background = np.trace(own) * np.eye(len(mean)) / len(mean)
    w = 1 / (1 + n / naive_worth(points, known))
    left, values, _ = np.linalg.svd((1 - w) * own + w * background)
    ridge = RIDGE_LARGE + RIDGE_GAIN * RIDGE_HALF / (n + RIDGE_HALF)
    scales = (values + ridge * values[0]) ** -(POWER_LEAST + POWER_GAIN * n / (n + POWER_HALF))
    return m, left @ np.diag(scales / scales.mean()) @ left.T


@pytest.mark.parametrize("count", [1, 4, 40, 1_000, 20_000])
@pytest.mark.parametrize("informed", [False, True])
def test_the_calibration_follows_its_formula_at_every_size(count, informed):
    vectors = chunk_vectors(7, count) * np.geomspace(1, 0.05, DIMENSION)
    points = normalised(vectors)
    background = Background(np.diag(np.geomspace(0.5, 0.01, DIMENSION))) if informed else None
    merger = CalibratedMerger(background=background, dimension=DIMENSION).calibrated(vectors)
    m, transform = naive_calibration(
        points, np.cov(points.T, bias=True), background.second_moment if background else None
    )
    assert merger.calibration.vectors == count
    assert np.allclose(merger.calibration.mean, m, atol=1e-6)
    assert np.allclose(merger.calibration.whitening, transform, atol=1e-4)


def test_nothing_known_and_nothing_seen_changes_nothing():
    nothing = Calibration.shrunk(None, Background.ignorant(5))
    assert np.allclose(nothing.whitening, np.eye(5))
    assert not nothing.mean.any()
    assert nothing.vectors == 0


def test_a_background_alone_evens_out_a_little():
    alone = Calibration.shrunk(None, Background(np.diag([1.0, 0.1])))
    ratio = alone.whitening[1, 1] / alone.whitening[0, 0]
    assert ratio == pytest.approx((0.115 / 1.015) ** -POWER_LEAST)


def test_a_background_that_fits_counts_for_more_than_one_that_misleads():
    rng = np.random.default_rng(0)
    spread = np.geomspace(1, 0.1, 20)
    like = normalised(rng.standard_normal((5_000, 20)) * spread)
    unlike = normalised(rng.standard_normal((200, 20)) * spread[::-1] + 1)
    background = Background(like.T @ like / len(like))
    few = CalibrationStatistics.of(normalised(rng.standard_normal((200, 20)) * spread))
    assert background_worth(few, background) > 20 * background_worth(
        CalibrationStatistics.of(unlike), background
    )


def test_how_much_a_background_counts_does_not_depend_on_how_many_vectors_were_seen():
    rng = np.random.default_rng(0)
    background = Background.ignorant(20)
    worths = [
        np.median(
            [
                background_worth(CalibrationStatistics.of(rng.standard_normal((n, 20)) + 0.3), background)
                for _ in range(20)
            ]
        )
        for n in (50, 500, 5_000)
    ]
    assert max(worths) < 1.3 * min(worths)


def test_a_large_collection_is_evened_out():
    rng = np.random.default_rng(0)
    vectors = normalised(rng.standard_normal((50_000, 4)) * [1.0, 0.7, 0.5, 0.3])
    transform = CalibratedMerger(dimension=4).calibrated(vectors).calibration.whitening
    before, after = np.cov(vectors.T), np.cov((vectors @ transform).T)
    assert np.linalg.cond(before) > 5
    assert np.linalg.cond(after) < 1.3


def test_the_transform_grows_bolder_with_the_collection():
    def boldness(count):
        vectors = np.random.default_rng(0).standard_normal((count, DIMENSION)) * np.geomspace(
            1, 0.1, DIMENSION
        )
        return np.linalg.cond(CalibratedMerger(dimension=DIMENSION).calibrated(vectors).calibration.whitening)

    conditions = [boldness(count) for count in (1, 30, 300, 3_000, 30_000)]
    assert conditions[0] < 1.1
    assert conditions == sorted(conditions)


@st.composite
def degenerate_samples(draw):
    """Collections without enough spread: constant, duplicated, flat, tiny, or fewer than dimensions."""
    dimension = draw(st.sampled_from([1, 2, 3, 8, 64]))
    count = draw(st.sampled_from([1, 2, 3, 7, 200]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rank = draw(st.integers(1, min(dimension, 3)))
    distinct = draw(st.integers(1, count))
    basis = rng.standard_normal((rank, dimension))
    rows = rng.standard_normal((distinct, rank)) @ basis
    vectors = rows[np.arange(count) % distinct] * draw(st.sampled_from([1.0, 1e-10, 1e10]))
    if draw(st.booleans()):
        vectors = np.sign(vectors) + (vectors == 0)
    as_documents = draw(st.booleans())
    return [vectors[: count // 2 + 1], vectors] if as_documents else vectors


@given(degenerate_samples(), st.booleans())
def test_no_collection_gives_anything_that_is_not_finite(sample, informed):
    dimension = sample[0].shape[-1]
    spread = np.random.default_rng(0).standard_normal((dimension, dimension))
    background = Background(spread @ spread.T / dimension) if informed else None
    merger = CalibratedMerger(background=background, dimension=dimension).calibrated(sample)
    transform = merger.calibration.whitening
    assert np.isfinite(transform).all()
    assert np.isfinite(merger.calibration.mean).all()
    assert np.allclose(transform, transform.T)
    eigenvalues = np.linalg.eigvalsh(transform)
    assert eigenvalues[0] > 0
    assert eigenvalues[-1] / eigenvalues[0] < (1.003 / 0.003) ** (POWER_LEAST + POWER_GAIN) * 1.01
    vectors = np.abs(chunk_vectors(0, 5, dimension))
    rolling = merger.rolling()
    rolling.extend(vectors)
    for result in (merger.merge(vectors), merger.contextualize(vectors), rolling.vector):
        assert np.allclose(np.linalg.norm(result, axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("count", [1, 100, 30_000])
def test_a_collection_of_copies_of_one_vector_is_not_distorted_by_rounding(count):
    # Its covariance is zero but for rounding, which must not be taken for directions.
    vector = chunk_vectors(3, 1)
    merger = CalibratedMerger(dimension=DIMENSION).calibrated([np.repeat(vector, count, axis=0)])
    others = np.linalg.svd(normalised(vector))[2][1:]
    transform = merger.calibration.whitening
    gains = [np.linalg.norm(transform @ other) for other in others]
    assert max(gains) / min(gains) < 1.01


def test_many_sequences_at_once_count_like_one_after_another():
    lengths = [1, 7, 30, 2]
    vectors = chunk_vectors(9, sum(lengths))
    one_by_one, at_once = CalibrationStatistics(DIMENSION), CalibrationStatistics(DIMENSION)
    for part in np.split(vectors, np.cumsum(lengths)[:-1]):
        one_by_one.update(part)
    at_once.update_many(vectors, lengths)
    assert (at_once.vectors, at_once.sequences) == (one_by_one.vectors, one_by_one.sequences)
    np.testing.assert_allclose(at_once.mean, one_by_one.mean, atol=1e-7)
    np.testing.assert_allclose(at_once.covariance, one_by_one.covariance, atol=1e-7)
    with pytest.raises(DimensionError, match="add up"):
        at_once.update_many(vectors, [1, 2])


def test_sequences_may_come_mixed():
    lengths = [3, 1, 7, 40, 2]
    vectors = 3 * chunk_vectors(9, sum(lengths))
    names = np.repeat([f"d{i}" for i in range(len(lengths))], lengths)
    expected = CalibrationStatistics(DIMENSION)
    expected.update_many(vectors, lengths)
    mixed, few = MixedStatistics(DIMENSION, 5), MixedStatistics(DIMENSION, 4)
    order = np.random.default_rng(2).permutation(len(vectors))
    for rows in np.array_split(order, 6):
        mixed.add(vectors[rows], names[rows].tolist())
        few.add(vectors[rows], names[rows].tolist())
    assert mixed.whole
    assert not few.whole
    made = mixed.statistics()
    assert (made.vectors, made.sequences) == (expected.vectors, expected.sequences)
    np.testing.assert_allclose(made.mean, expected.mean, atol=1e-7)
    np.testing.assert_allclose(made.covariance, expected.covariance, atol=1e-7)
    np.testing.assert_allclose(made.second_moment, expected.second_moment, atol=1e-7)
