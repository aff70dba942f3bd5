"""The closed-form merger against its formula, solved in float64 in primal form."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merger_plugins import Background, CalibratedMerger, CalibrationStatistics, load_merger
from merger_plugins._artefact import write_artefact
from merger_plugins.errors import ArtefactError, DimensionError, InputError
from merger_plugins.mergers.calibrated import RIDGE_LEAST, RIDGE_MOST, RIDGE_PER_CHUNK, VERSION, ridge
from tests.strategies import (
    CALIBRATED,
    DIMENSION,
    UNCALIBRATED,
    calibrated,
    chunk_vectors,
    cosine,
    mapped_back,
    normalised,
    ridge_solution,
    sequences,
    weighted_sequences,
    whitened,
)

pytestmark = pytest.mark.filterwarnings("error")


def penalty(count):
    return min(max(count * RIDGE_PER_CHUNK, RIDGE_LEAST), RIDGE_MOST)


def naive_merge(merger, vectors, masses):
    masses = np.asarray(masses, np.float64)
    solution = ridge_solution(whitened(merger, vectors), masses / masses.mean(), penalty(len(vectors)))
    return mapped_back(merger, solution)


@pytest.mark.parametrize("merger", [CALIBRATED, UNCALIBRATED], ids=["calibrated", "uncalibrated"])
@given(weighted_sequences(max_size=40))
def test_the_merge_solves_the_normal_equations(merger, sequence):
    vectors, masses = sequence
    assert np.allclose(merger.merge(vectors, masses=masses), naive_merge(merger, vectors, masses), atol=1e-5)


@pytest.mark.parametrize("count", [1, 3, DIMENSION, DIMENSION + 1, 15, 16, 95, 96, 149, 400, 4_096, 4_097])
def test_the_merge_solves_them_for_few_and_for_many_chunks(count):
    vectors = chunk_vectors(count, count)
    masses = np.random.default_rng(count).lognormal(0, 2, count)
    merged = CALIBRATED.merge(vectors, masses=masses)
    assert np.allclose(merged, naive_merge(CALIBRATED, vectors, masses), atol=1e-5)


def test_in_the_dimension_of_a_real_model_it_is_as_exact():
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.standard_normal((384, 384)))[0]
    collection = (rng.standard_normal((3_000, 384)) * np.geomspace(1, 0.02, 384)) @ rotation + 0.02
    merger = CalibratedMerger(dimension=384).calibrated(collection)
    lengths = [2, 3, 20, 35, 60, 100, 390, 700, 4_100]
    parts = [collection[rng.integers(0, 3_000, n)] for n in lengths]
    masses = [rng.lognormal(0, 1, n) for n in lengths]
    merged = merger.merge_many(parts, masses=masses)
    for row, part, mass in zip(merged, parts, masses, strict=True):
        expected = naive_merge_of_many(merger, part, mass)
        assert np.abs(row - expected).max() < 1e-5


def test_sequences_that_are_solved_together_do_not_change_each_other():
    parts = [chunk_vectors(seed, 100) for seed in range(8)]
    parts[3] = np.repeat(parts[3][:1], 100, axis=0)  # solved in fewer steps than the others
    parts[5] = parts[5] * [1, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3]
    together = CALIBRATED.merge_many(parts)
    alone = np.stack([CALIBRATED.merge(part) for part in parts])
    assert np.abs(together - alone).max() < 1e-6


def test_a_corpus_is_merged_in_parts_and_each_row_stays_in_its_place(monkeypatch):
    lengths = [3, 41, 1, 7, 41, 2, 90, 1, 7, 30, 3]
    parts = [chunk_vectors(seed, length) for seed, length in enumerate(lengths)]
    whole = CALIBRATED.merge_many(parts)
    monkeypatch.setattr(CalibratedMerger, "_items_per_batch", lambda _: 32)
    assert np.abs(CALIBRATED.merge_many(parts) - whole).max() < 1e-6


def naive_merge_of_many(merger, vectors, masses):
    """As `naive_merge`, with the sums as one product: loops over 384 dimensions take too long."""
    points = normalised((normalised(vectors) - merger.calibration.mean) @ merger.calibration.whitening.T)
    shares = masses / masses.mean()
    left = (points.T * shares) @ points + penalty(len(points)) * np.eye(points.shape[1])
    return mapped_back(merger, np.linalg.inv(left) @ (points.T @ shares))


def test_the_ridge_is_steady_for_a_section_grows_with_a_document_and_stops():
    first, last = round(RIDGE_LEAST / RIDGE_PER_CHUNK), round(RIDGE_MOST / RIDGE_PER_CHUNK)
    assert 10 <= first < last
    counts = np.array([1, first, 2 * first, last, 100 * last])
    expected = [RIDGE_LEAST, RIDGE_LEAST, 2 * RIDGE_LEAST, RIDGE_MOST, RIDGE_MOST]
    assert ridge(counts).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("dimension", [6, 384])
def test_a_thousand_copies_cost_no_digits(dimension):
    few = chunk_vectors(0, 3, dimension)
    vectors = np.concatenate([np.repeat(few[:1], 1_000, axis=0), few])
    merger = CalibratedMerger(dimension=dimension)
    expected = naive_merge(merger, vectors, np.ones(len(vectors)))
    assert np.abs(merger.merge(vectors) - expected).max() < 1e-5


@given(sequences(max_size=1))
def test_one_vector_gives_its_calibrated_form(vectors):
    merged = CALIBRATED.merge(vectors)
    assert np.allclose(merged, mapped_back(CALIBRATED, whitened(CALIBRATED, vectors)[0]), atol=1e-5)
    assert np.allclose(CALIBRATED.merge(vectors, masses=[77]), merged, atol=1e-6)


@given(sequences(max_size=1))
def test_one_vector_comes_back_where_nothing_was_calibrated(vectors):
    assert np.allclose(UNCALIBRATED.merge(vectors), normalised(vectors)[0], atol=1e-5)


@given(weighted_sequences(), st.randoms(use_true_random=False))
def test_the_order_does_not_matter(sequence, random):
    vectors, masses = sequence
    order = random.sample(range(len(vectors)), len(vectors))
    shuffled = CALIBRATED.merge(vectors[order], masses=masses[order])
    assert np.allclose(shuffled, CALIBRATED.merge(vectors, masses=masses), atol=1e-5)


def test_a_raw_query_compares_with_the_merge_as_in_whitened_space():
    # q·(P s) = (P q)·s, which is why stored vectors are mapped back and queries are left alone.
    vectors, query = chunk_vectors(0, 8), chunk_vectors(1, 1)[0]
    solution = ridge_solution(whitened(CALIBRATED, vectors), np.ones(8), penalty(8))
    transform = CALIBRATED.calibration.whitening
    expected = (transform @ query) @ solution / np.linalg.norm(transform @ solution)
    assert float(query @ CALIBRATED.merge(vectors)) == pytest.approx(expected, abs=1e-5)


def test_what_a_document_repeats_counts_about_once():
    common, rare = np.eye(DIMENSION)[:2]
    merged = UNCALIBRATED.merge([common] * 40 + [rare])
    mean = normalised(40 * common + rare)
    assert cosine(merged, rare) > 5 * cosine(mean, rare)


def test_directions_in_which_a_collection_varies_much_count_less():
    scale = np.array([10.0, 1, 1, 1, 1, 1])
    rng = np.random.default_rng(0)
    merger = CalibratedMerger(dimension=DIMENSION).calibrated(rng.standard_normal((5_000, 6)) * scale)
    chunk = [[1.0, 1.0, 0, 0, 0, 0]]
    calibrated_chunk, raw = merger.merge(chunk), normalised(chunk)[0]
    assert abs(calibrated_chunk[0]) < 0.3 * abs(raw[0])
    assert calibrated_chunk[1] > 0.9


def test_calibrating_replaces_the_statistics_and_leaves_the_merger_alone():
    first, second = chunk_vectors(1, 100), chunk_vectors(2, 100)
    merger = UNCALIBRATED.calibrated(first)
    again = merger.calibrated(second)
    assert again.fingerprint == UNCALIBRATED.calibrated(second).fingerprint
    assert len({UNCALIBRATED.fingerprint, merger.fingerprint, again.fingerprint}) == 3
    assert UNCALIBRATED.statistics is None
    assert merger.statistics is not None
    assert merger.statistics.vectors == 100


def test_calibrating_accepts_statistics_gathered_elsewhere():
    sample = chunk_vectors(1, 100)
    statistics = CalibrationStatistics.of(sample)
    assert UNCALIBRATED.calibrated(statistics).fingerprint == UNCALIBRATED.calibrated(sample).fingerprint


def test_a_background_stays_when_a_collection_is_calibrated():
    background = Background(np.diag(np.geomspace(1, 0.1, DIMENSION)))
    merger = CalibratedMerger(background=background, embedder="some/model").calibrated(chunk_vectors(1, 5))
    assert merger.background is background
    assert merger.embedder == "some/model"
    alone = CalibratedMerger(dimension=DIMENSION).calibrated(chunk_vectors(1, 5))
    assert merger.fingerprint != alone.fingerprint


def test_adding_to_statistics_later_does_not_change_the_merger(tmp_path):
    statistics = CalibrationStatistics.of(chunk_vectors(1, 100))
    merger = CalibratedMerger(statistics=statistics)
    before = merger.merge(chunk_vectors(5, 4))
    statistics.update(chunk_vectors(2, 100))
    loaded = load_merger(merger.save(tmp_path / "merger"))
    assert loaded.fingerprint == merger.fingerprint
    assert np.allclose(loaded.merge(chunk_vectors(5, 4)), before, atol=1e-6)
    assert CalibratedMerger(statistics=statistics).fingerprint != merger.fingerprint


def test_statistics_of_no_vectors_are_no_statistics():
    merger = CalibratedMerger(statistics=CalibrationStatistics(DIMENSION))
    assert merger.fingerprint == UNCALIBRATED.fingerprint
    assert np.allclose(merger.merge(chunk_vectors(0, 3)), UNCALIBRATED.merge(chunk_vectors(0, 3)))


def test_a_background_that_knows_nothing_is_none(tmp_path):
    merger = CalibratedMerger(background=Background.ignorant(DIMENSION)).calibrated(chunk_vectors(1, 50))
    expected = CalibratedMerger(dimension=DIMENSION).calibrated(chunk_vectors(1, 50))
    assert merger.fingerprint == expected.fingerprint
    loaded = load_merger(merger.save(tmp_path / "merger"))
    assert np.allclose(loaded.merge(chunk_vectors(2, 4)), expected.merge(chunk_vectors(2, 4)), atol=1e-6)


def test_a_saved_merger_comes_back_whole(tmp_path):
    background = Background(np.diag(np.geomspace(1, 0.1, DIMENSION)))
    merger = CalibratedMerger(background=background, embedder="some/model").calibrated(chunk_vectors(1, 500))
    loaded = load_merger(merger.save(tmp_path / "merger"))
    assert isinstance(loaded, CalibratedMerger)
    assert (loaded.fingerprint, loaded.embedder, loaded.dimension) == (
        merger.fingerprint,
        "some/model",
        DIMENSION,
    )
    assert np.allclose(loaded.merge(chunk_vectors(2, 9)), merger.merge(chunk_vectors(2, 9)), atol=1e-5)
    recalibrated = loaded.calibrated(chunk_vectors(3, 500)), merger.calibrated(chunk_vectors(3, 500))
    assert recalibrated[0].fingerprint == recalibrated[1].fingerprint


def test_the_same_collection_gives_the_same_fingerprint_and_another_gives_another():
    assert calibrated(seed=1).fingerprint == calibrated(seed=1).fingerprint
    assert calibrated(seed=1).fingerprint != calibrated(seed=2).fingerprint


@pytest.mark.parametrize("arguments", [{}, {"dimension": 0}, {"dimension": -3}])
def test_a_merger_without_a_dimension_is_refused(arguments):
    with pytest.raises(InputError, match="dimension above 0"):
        CalibratedMerger(**arguments)


def test_parts_of_different_dimensions_are_refused_with_all_of_them():
    with pytest.raises(DimensionError, match=r"\[5, 6\]"):
        CalibratedMerger(background=Background.ignorant(5), statistics=CalibrationStatistics(6))
    with pytest.raises(DimensionError, match=r"\[6, 7\]"):
        CalibratedMerger(background=Background.ignorant(6), dimension=7)


def test_vectors_of_another_dimension_are_refused_with_both():
    with pytest.raises(DimensionError, match=r"dimension 5.*dimension 6"):
        CALIBRATED.merge(chunk_vectors(0, 3, 5))
    with pytest.raises(DimensionError, match=r"dimension 5.*dimension 6"):
        CALIBRATED.calibrated(chunk_vectors(0, 3, 5))


@pytest.mark.parametrize("version", [VERSION + 1, None])
def test_a_merger_of_other_formulas_is_refused(tmp_path, version):
    config = {"kind": "calibrated", "dimension": DIMENSION, "version": version}
    folder = write_artefact(tmp_path / "merger", config, {}).path
    with pytest.raises(
        ArtefactError, match=f"version {version}.*computes version {VERSION}.*calibrate again"
    ):
        load_merger(folder)
