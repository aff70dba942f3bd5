"""Data sets of chunks merged by workers: what one process makes, whatever happens to the workers."""

import numpy as np
import pytest

ray = pytest.importorskip("ray")
pa = pytest.importorskip("pyarrow")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from integrations.ray.data import (  # noqa: E402
    DIMENSION,
    Dies,
    DiesOnce,
    Recorded,
    assert_merged,
    documents,
    rows_of,
    tables_of,
)
from merger_plugins import CalibratedMerger, MeanMerger, load_merger  # noqa: E402
from merger_plugins.errors import (  # noqa: E402
    ClusterError,
    DimensionError,
    EmptyInputError,
    InputError,
    NonFiniteError,
    ZeroVectorError,
)
from merger_plugins.mergers.calibration import CalibrationStatistics  # noqa: E402
from merger_plugins.ray import Columns, cluster, merge_dataset  # noqa: E402
from merger_plugins.ray.engine import ATTEMPTS, translated  # noqa: E402
from merger_plugins.ray.rows import checked_rows  # noqa: E402
from merger_plugins.ray.trees import parts_of, root_of  # noqa: E402
from tests.strategies import NarrowCalibrated, NarrowMean, chunk_vectors, masses_for  # noqa: E402

SIZES = [1, 2, 9, 10, 11, 28, 29, 30, 31, 99, 100, 101, 130, 329, 1_000, 1_001, 1_219, 2_345]
WITH_MASSES = Columns(mass="tokens")


def merged(dataset, merger=None, **options):
    """The result as one table, and the merger."""
    with translated("The merge"):
        found, used = merge_dataset(dataset, merger, **options)
        tables = list(found.iter_batches(batch_size=None, batch_format="pyarrow"))
    return pa.concat_tables([table for table in tables if table.num_rows]), used


def dataset_of(texts, parts=7, seed=0):
    return ray.data.from_arrow(tables_of(rows_of(texts, seed), parts))


@pytest.mark.parametrize("calibrated", [True, False])
def test_split_and_shuffled_documents_merge_as_in_one_process(calibrated):
    texts = documents(SIZES)
    table, merger = merged(
        dataset_of(texts),
        None if calibrated else MeanMerger(),
        columns=WITH_MASSES,
        sections=True,
        block=100,
        partitions=4,
    )
    if calibrated:
        alone = CalibratedMerger(dimension=DIMENSION).calibrated(vectors for vectors, _ in texts.values())
        np.testing.assert_allclose(merger.calibration.whitening, alone.calibration.whitening, rtol=1e-9)
        np.testing.assert_allclose(merger.calibration.mean, alone.calibration.mean, rtol=1e-9)
    assert_merged(table, texts, merger, sections=True)


@settings(max_examples=3, deadline=None)
@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=12), seed=st.integers(0, 99), data=st.data())
def test_any_sizes_in_any_order_merge_as_in_one_process(sizes, seed, data):
    merger = data.draw(st.sampled_from([NarrowMean(), NarrowCalibrated(dimension=DIMENSION)]))
    texts = documents(sizes, seed)
    table, _ = merged(
        dataset_of(texts, parts=data.draw(st.integers(1, 4)), seed=seed),
        merger,
        columns=WITH_MASSES,
        calibrate=False,
        block=data.draw(st.sampled_from([3, 9])),
        partitions=data.draw(st.integers(1, 3)),
    )
    assert_merged(table, texts, merger, sections=False)


@given(places=st.integers(1, 400), power=st.integers(1, 4), narrow=st.booleans(), data=st.data())
def test_a_tree_made_of_blocks_is_the_tree(places, power, narrow, data):
    """Without Ray: blocks of any power of the fan-out, in any order."""
    merger = NarrowMean() if narrow else NarrowCalibrated(dimension=DIMENSION)
    block = 3**power
    vectors = chunk_vectors(places, places, DIMENSION)
    masses = data.draw(masses_for(places)) if places < 40 else np.ones(places, np.float32)
    parts = {}
    for first in range(0, places, block):
        span = slice(first, first + block)
        for part in parts_of(merger, vectors[span], masses[span], first=first, block=block, places=places):
            parts.setdefault(part.level, []).insert(0, part)
    rolling = merger.rolling()
    rolling.extend(vectors, masses=masses)
    found = root_of("d", parts, merger, block, places)
    assert found.places == len(found) == places
    np.testing.assert_allclose(found.vector, rolling.vector, atol=1e-5)


def test_statistics_of_parts_of_a_sequence_are_those_of_the_whole():
    sequences = [chunk_vectors(seed, size, DIMENSION) for seed, size in enumerate([40, 3, 1])]
    whole, parts = CalibrationStatistics.of(sequences), CalibrationStatistics(DIMENSION)
    for sequence in sequences:
        total = sum(parts.add_part(sequence[start : start + 7]) for start in range(0, len(sequence), 7))
        parts.end_sequence(total, len(sequence))
    assert (parts.vectors, parts.sequences) == (whole.vectors, whole.sequences)
    np.testing.assert_allclose(parts.covariance, whole.covariance, rtol=1e-5, atol=1e-9)


def test_an_exported_merger_runs_in_workers(tmp_path):
    pytest.importorskip("onnx")
    texts = documents([4, 37])
    merger = load_merger(CalibratedMerger(dimension=DIMENSION).export(tmp_path / "onnx"))
    table, _ = merged(dataset_of(texts, parts=2), merger, columns=WITH_MASSES)
    assert_merged(table, texts, merger, sections=False)


def test_a_worker_that_is_killed_costs_only_its_part(tmp_path):
    texts = documents([5] * 80)
    merger = DiesOnce(tmp_path)
    table, _ = merged(dataset_of(texts), merger, columns=WITH_MASSES, partitions=6)
    assert (tmp_path / "died").exists()
    assert merger.parts == 6 + 1
    assert_merged(table, texts, MeanMerger(), sections=False)


def test_a_part_whose_workers_always_die_is_an_error_in_the_end(tmp_path):
    merger = Dies(tmp_path)
    with pytest.raises(ClusterError, match=r"partitions=.*from there"):
        merged(dataset_of(documents([5])), merger, partitions=1)
    assert merger.parts == ATTEMPTS


def changed(texts, name, place, **values):
    """The chunks of these documents, one of them changed, in three tables."""
    rows = rows_of(texts)
    (row,) = [row for row in rows if (row["document_id"], row["position"]) == (name, place)]
    row.update(values)
    return tables_of(rows, 3)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"name": "d1", "place": 7, "position": 6}, "'d1' has two chunks or more at the position 6"),
        ({"name": "d1", "place": 7, "position": 20}, "'d1' has no chunk at the position 7, and one at 20"),
        ({"name": "d2", "place": 150, "position": 450}, "'d2' has no chunk at the position (150|400)"),
        ({"name": "d2", "place": 299, "position": 1_299}, "'d2' has no chunk at the position (299|1200)"),
    ],
)
def test_positions_that_are_missing_or_there_twice_are_errors_that_name_the_document(values, said):
    dataset = ray.data.from_arrow(changed(documents([3, 20, 300]), **values))
    with pytest.raises(InputError, match=said):
        merged(dataset, MeanMerger(), columns=WITH_MASSES, block=100, partitions=2)


def test_a_bad_vector_is_an_error_of_ours_wherever_it_is_found():
    dataset = ray.data.from_arrow(changed(documents([3, 20]), "d1", 7, vector=[1.0, 2.0]))
    with pytest.raises(DimensionError, match=r"chunk 7 of the document 'd1' .* dimension 2"):
        merged(dataset, MeanMerger(), partitions=2)


NAN = [float("nan"), *[1.0] * (DIMENSION - 1)]


@pytest.mark.parametrize(
    ("values", "kind", "said"),
    [
        ({"position": -1}, InputError, "'d1' has the position -1"),
        ({"position": None}, InputError, "'d1' has no position"),
        ({"document_id": None}, InputError, "belong to no document"),
        ({"vector": None}, DimensionError, "chunk 7 of the document 'd1' has no vector"),
        ({"vector": NAN}, NonFiniteError, "chunk 7 of the document 'd1'"),
        ({"vector": [None, *NAN[1:]]}, NonFiniteError, "chunk 7 of the document 'd1'"),
        ({"vector": [0.0] * DIMENSION}, ZeroVectorError, "chunk 7 of the document 'd1'"),
        ({"tokens": 0.0}, InputError, "chunk 7 of the document 'd1' has the mass 0"),
    ],
)
def test_bad_chunks_are_errors_that_name_the_document(values, kind, said):
    table = pa.concat_tables(changed(documents([3, 20]), "d1", 7, **values))
    with pytest.raises(kind, match=said):
        checked_rows(table, WITH_MASSES, DIMENSION, 100)


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float32(), DIMENSION)]
)
def test_vectors_may_be_lists_of_any_kind(kind):
    table = pa.concat_tables(tables_of(rows_of(documents([3])), 2))
    place = table.schema.get_field_index("vector")
    listed = pa.array(table.column("vector").to_pylist(), kind)
    expected = checked_rows(table, WITH_MASSES, DIMENSION, 100)
    assert checked_rows(table.set_column(place, "vector", listed), WITH_MASSES, DIMENSION, 100) == expected


def test_bad_calls_are_errors_that_say_what_to_do(tmp_path):
    dataset = dataset_of(documents([3]), parts=1)
    with pytest.raises(InputError, match="none called text_id"):
        merge_dataset(dataset, columns=Columns(document="text_id"))
    with pytest.raises(InputError, match="dimension 12, and CalibratedMerger"):
        merge_dataset(dataset, CalibratedMerger(dimension=5))
    with pytest.raises(InputError, match="a power of the merger's fan-out 10"):
        merge_dataset(dataset, block=50)
    with pytest.raises(EmptyInputError, match="no rows"):
        merge_dataset(ray.data.from_arrow(tables_of(rows_of(documents([3])), 1)[0].slice(0, 0)))
    with (
        pytest.raises(InputError, match="3 workers were asked for, and the Ray cluster has 2 CPUs"),
        cluster(workers=3),
    ):
        pass
    assert Recorded(tmp_path).parts == 0
