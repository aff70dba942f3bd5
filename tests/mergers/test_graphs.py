"""The graphs against numpy and a textbook solution in float64, over lengths, masses and hard inputs."""

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merger_plugins import CalibratedMerger, MeanMerger, OnnxMerger, load_merger
from merger_plugins._session import CPU, Session, SessionConfig, create_session
from merger_plugins.errors import ArtefactError, DimensionError, InputError, MissingExtraError
from merger_plugins.mergers.calibrated import RIDGE_LEAST, RIDGE_MOST, RIDGE_PER_CHUNK, ridge
from merger_plugins.mergers.calibration import CalibrationStatistics
from merger_plugins.mergers.graphs import (
    MODEL,
    SHORT,
    TOLERANCE,
    calibrated_graph,
    doublings,
    mean_graph,
    short_condition,
)
from tests.strategies import Array, chunk_vectors, masses_for, normalised, ridge_solution

onnx = pytest.importorskip("onnx", reason="install the extra export")
pytest.importorskip("onnxruntime", reason="install the extra cpu")

WIDTH = 48
CLOSE = 1e-5


def collection(seed: int = 0, dimension: int = WIDTH) -> CalibratedMerger:
    """Calibrated on so many vectors, of so uneven a spread, that whitening is as unequal as it can be."""
    noise = np.random.default_rng(seed).standard_normal((12_000, dimension))
    sample = chunk_vectors(seed, 12_000, dimension, spread=0) + noise * np.geomspace(1, 1e-4, dimension)
    return CalibratedMerger(statistics=CalibrationStatistics.of(sample))


MERGER = collection()


def test_the_whitening_that_the_tests_use_is_ill_conditioned() -> None:
    assert np.linalg.cond(MERGER.calibration.whitening) > 10


def loaded(model: Any, folder: Path) -> Session:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL).write_bytes(model.SerializeToString())
    return create_session(folder / MODEL, SessionConfig(providers=(CPU,), threads=1))


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """The calibrated graph of `MERGER`."""
    graph = calibrated_graph(MERGER.calibration.mean, MERGER.calibration.whitening)
    return loaded(graph, tmp_path_factory.mktemp("calibrated"))


@pytest.fixture(scope="module")
def mean_session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return loaded(mean_graph(WIDTH), tmp_path_factory.mktemp("mean"))


def run(session: Session, vectors: Array, mask: Array | None = None, masses: Array | None = None) -> Array:
    shape = vectors.shape[:2]
    feed = {
        "vectors": vectors.astype(np.float32),
        "mask": np.ones(shape, np.bool_) if mask is None else mask,
        "masses": np.ones(shape, np.float32) if masses is None else masses.astype(np.float32),
    }
    merged: Array = session.run(["merged"], feed)[0]
    assert merged.dtype == np.float32
    return merged


def textbook(vectors: Array, masses: Array) -> Array:
    """The merge as its formula says, in float64 and one chunk at a time."""
    mean, whitening = MERGER.calibration.mean, MERGER.calibration.whitening
    points = normalised((normalised(vectors) - mean) @ whitening)
    shares = np.asarray(masses, np.float64) / np.mean(masses, dtype=np.float64)
    penalty = min(max(len(vectors) * RIDGE_PER_CHUNK, RIDGE_LEAST), RIDGE_MOST)
    return normalised(ridge_solution(points, shares, penalty) @ whitening)


def ordinary(rng: np.random.Generator, count: int) -> Array:
    return chunk_vectors(int(rng.integers(2**32)), count, WIDTH)


def scattered(rng: np.random.Generator, count: int) -> Array:
    return rng.standard_normal((count, WIDTH))


def identical(rng: np.random.Generator, count: int) -> Array:
    return np.repeat(ordinary(rng, 1), count, axis=0)


def near_duplicates(rng: np.random.Generator, count: int) -> Array:
    return identical(rng, count) + 1e-3 * scattered(rng, count)


def two_clusters(rng: np.random.Generator, count: int) -> Array:
    return ordinary(rng, 2)[rng.integers(0, 2, count)] + 1e-3 * scattered(rng, count)


def every_scale(rng: np.random.Generator, count: int) -> Array:
    """Chunks that spread from nothing to far around one: the gram matrix has eigenvalues of every size."""
    return identical(rng, count) + np.geomspace(1e-4, 3, count)[:, None] * scattered(rng, count)


SHAPES = [ordinary, scattered, identical, near_duplicates, two_clusters, every_scale]


def equal_masses(rng: np.random.Generator, count: int) -> Array:
    return np.ones(count)


def mixed_masses(rng: np.random.Generator, count: int) -> Array:
    return rng.integers(1, 401, count)


def one_heavy_mass(rng: np.random.Generator, count: int) -> Array:
    return np.where(np.arange(count) == count // 2, 400, 1)


MASSES = [equal_masses, mixed_masses, one_heavy_mass]

LENGTHS = [1, 2, 3, 7, 15, 16, 18, 40, SHORT, SHORT + 1, 100, 150, 151, 300, 500]


@pytest.mark.parametrize("weigh", MASSES)
@pytest.mark.parametrize("shape", SHAPES)
def test_graph_numpy_and_textbook_agree_at_every_length(
    session: Session, shape: Callable[..., Array], weigh: Callable[..., Array]
) -> None:
    rng = np.random.default_rng(1)
    for count in LENGTHS:
        vectors, masses = shape(rng, count).astype(np.float32), weigh(rng, count)
        merged = run(session, vectors[None], masses=masses[None])[0]
        np.testing.assert_allclose(merged, textbook(vectors, masses), atol=CLOSE, rtol=0)
        np.testing.assert_allclose(merged, MERGER.merge(vectors, masses=masses), atol=CLOSE, rtol=0)


@pytest.mark.parametrize("batch", [1, 2, 17])
@pytest.mark.parametrize("longest", [1, 5, 60, 500])
def test_ragged_batches_agree_with_numpy(session: Session, batch: int, longest: int) -> None:
    rng = np.random.default_rng(batch * longest)
    lengths = rng.integers(1, longest + 1, batch)
    shapes = [SHAPES[index] for index in rng.integers(0, len(SHAPES), batch)]
    sequences = [shape(rng, int(n)).astype(np.float32) for shape, n in zip(shapes, lengths, strict=True)]
    weights = [mixed_masses(rng, int(n)) for n in lengths]
    vectors, masses = np.full((batch, longest, WIDTH), np.nan), np.full((batch, longest), np.nan)
    for row, (sequence, weight) in enumerate(zip(sequences, weights, strict=True)):
        vectors[row, : len(sequence)], masses[row, : len(sequence)] = sequence, weight
    mask = np.arange(longest) < lengths[:, None]
    merged = run(session, vectors, mask, masses)
    np.testing.assert_allclose(merged, MERGER.merge_many(sequences, masses=weights), atol=CLOSE, rtol=0)


def test_agrees_at_the_width_of_the_bundled_model(tmp_path: Path) -> None:
    merger = collection(seed=3, dimension=384)
    vectors = chunk_vectors(4, 400, 384)
    wide = loaded(calibrated_graph(merger.calibration.mean, merger.calibration.whitening), tmp_path)
    for count in (1, 10, 120, 400):
        np.testing.assert_allclose(
            run(wide, vectors[None, :count])[0], merger.merge(vectors[:count]), atol=CLOSE, rtol=0
        )


@given(data=st.data(), count=st.integers(1, 12), padding=st.integers(0, 9), seed=st.integers(0, 2**32 - 1))
def test_neither_padding_nor_batch_mates_matter(
    session: Session, mean_session: Session, data: st.DataObject, count: int, padding: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    vectors, masses = ordinary(rng, count), data.draw(masses_for(count))
    garbage = data.draw(st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 1e30]))
    place = data.draw(st.integers(0, 2))
    batch = np.full((3, count + padding, WIDTH), garbage, np.float32)
    weights = np.full((3, count + padding), garbage, np.float32)
    mask = np.zeros((3, count + padding), np.bool_)
    for row in range(3):
        mate = identical if rng.random() < 0.5 else scattered
        length = count if row == place else int(rng.integers(1, count + padding + 1))
        mask[row, :length] = True
        batch[row, :length] = vectors if row == place else mate(rng, length)
        weights[row, :length] = masses if row == place else 1
    for graph in (session, mean_session):
        alone = run(graph, vectors[None], masses=masses[None])[0]
        together = run(graph, batch, mask, weights)
        np.testing.assert_allclose(together[place], alone, atol=CLOSE, rtol=0)
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=CLOSE)


def test_places_may_be_empty_anywhere(session: Session, mean_session: Session) -> None:
    rng = np.random.default_rng(5)
    vectors, masses = ordinary(rng, 9), mixed_masses(rng, 9)
    mask = np.array([True, False, True, True, False, False, True, True, False])
    for graph in (session, mean_session):
        np.testing.assert_allclose(
            run(graph, vectors[None], mask[None], masses[None])[0],
            run(graph, vectors[mask][None], masses=masses[mask][None])[0],
            atol=CLOSE,
        )


def test_a_sequence_without_chunks_gives_zeros_and_spoils_nothing(
    session: Session, mean_session: Session
) -> None:
    vectors = ordinary(np.random.default_rng(6), 8).reshape(2, 4, WIDTH)
    mask = np.array([[True] * 4, [False] * 4])
    for graph in (session, mean_session):
        merged = run(graph, vectors, mask)
        np.testing.assert_array_equal(merged[1], np.zeros(WIDTH))
        np.testing.assert_allclose(merged[0], run(graph, vectors[:1])[0], atol=CLOSE)


def test_lengths_of_vectors_and_scale_of_masses_carry_no_meaning(
    session: Session, mean_session: Session
) -> None:
    rng = np.random.default_rng(7)
    vectors, masses = ordinary(rng, 20), mixed_masses(rng, 20)
    lengths = rng.uniform(1e-3, 1e3, (20, 1))
    for graph in (session, mean_session):
        np.testing.assert_allclose(
            run(graph, (vectors * lengths)[None], masses=masses[None] * 1e-6),
            run(graph, vectors[None], masses=masses[None]),
            atol=CLOSE,
        )


def test_mean_graph_is_the_weighted_mean(mean_session: Session) -> None:
    rng = np.random.default_rng(8)
    for count in (1, 2, 30, 500):
        vectors, masses = scattered(rng, count).astype(np.float32), mixed_masses(rng, count)
        expected = normalised(np.average(normalised(vectors), axis=0, weights=masses))
        merged = run(mean_session, vectors[None], masses=masses[None])[0]
        np.testing.assert_allclose(merged, expected, atol=CLOSE)
        np.testing.assert_allclose(merged, MeanMerger().merge(vectors, masses=masses), atol=CLOSE)


def with_branches_of_long_sequences() -> Any:
    """The graph of `MERGER` that solves the equation of every sequence as those of long ones are solved."""
    model = calibrated_graph(MERGER.calibration.mean, MERGER.calibration.whitening)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        branches = {attribute.name: attribute.g for attribute in node.attribute if node.op_type == "If"}
        long = branches.get("else_branch")
        if long is not None and "Loop" in {inner.op_type for inner in long.node}:
            rename = onnx.helper.make_node("Identity", [long.output[0].name], node.output)
            model.graph.node.extend([*long.node, rename])
        else:
            model.graph.node.append(node)
    return model


@pytest.mark.parametrize(("longest", "most"), [(1, 12), (18, 33), (180, 33), (500, 55)])
def test_iterations_end_within_the_bound_with_a_small_residual(
    tmp_path: Path, longest: int, most: int
) -> None:
    model = with_branches_of_long_sequences()
    (loop,) = [node for node in model.graph.node if node.op_type == "Loop"]
    value = onnx.helper.make_tensor_value_info
    model.graph.output.append(value(loop.input[0], onnx.TensorProto.INT64, []))
    model.graph.output.append(value(loop.input[5], onnx.TensorProto.FLOAT, None))
    model.graph.output.append(value(loop.output[3], onnx.TensorProto.FLOAT, None))
    spied = loaded(model, tmp_path)
    condition = 1 + longest / float(ridge(np.array([longest]))[0])
    assert most == math.ceil(math.sqrt(condition) / 2 * math.log(2 * math.sqrt(condition) / TOLERANCE))
    rng = np.random.default_rng(9)
    for shape in SHAPES:
        vectors, masses = shape(rng, longest).astype(np.float32), mixed_masses(rng, longest)
        feed = {
            "vectors": vectors[None],
            "mask": np.ones((1, longest), np.bool_),
            "masses": masses[None].astype(np.float32),
        }
        merged, limit, at_start, at_end = spied.run(
            ["merged", loop.input[0], loop.input[5], loop.output[3]], feed
        )
        assert limit == most
        assert math.sqrt(float(at_end.squeeze() / at_start.squeeze())) <= TOLERANCE
        np.testing.assert_allclose(merged[0], textbook(vectors, masses), atol=CLOSE, rtol=0)


def test_the_degree_for_short_sequences_suffices_and_half_of_it_does_not() -> None:
    condition = max(1 + count / float(ridge(np.array([count]))[0]) for count in range(1, SHORT + 1))
    assert short_condition() == pytest.approx(condition)
    at_zero = (condition + 1) / (condition - 1)
    degree = 2 ** doublings(condition)
    least = [1 / np.polynomial.Chebyshev.basis(m)(at_zero) for m in (degree, degree // 2)]
    assert least[0] <= TOLERANCE < least[1]


def operators(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from operators(attribute.g)


@pytest.mark.parametrize("make", [lambda: mean_graph(4), lambda: calibrated_graph(np.zeros(4), np.eye(4))])
def test_signature_and_operators_are_standard(make: Callable[[], Any]) -> None:
    model = make()
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    assert {node.domain for node in operators(model.graph)} == {""}

    def described(value: Any) -> tuple[str, int, list[int | str]]:
        tensor = value.type.tensor_type
        return value.name, tensor.elem_type, [d.dim_value or d.dim_param for d in tensor.shape.dim]

    FLOAT, BOOL = onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL
    assert [described(value) for value in model.graph.input] == [
        ("vectors", FLOAT, ["b", "n", 4]),
        ("mask", BOOL, ["b", "n"]),
        ("masses", FLOAT, ["b", "n"]),
    ]
    assert [described(value) for value in model.graph.output] == [("merged", FLOAT, ["b", 4])]


@pytest.mark.parametrize(("mean", "whitening"), [((4,), (4, 5)), ((4,), (5, 5)), ((4, 1), (4, 4))])
def test_arrays_that_do_not_belong_together_are_refused(mean: Any, whitening: Any) -> None:
    with pytest.raises(DimensionError, match=r"expected \(d,\) and \(d, d\)"):
        calibrated_graph(np.zeros(mean), np.zeros(whitening))


def test_export_writes_a_folder_that_loads_as_the_same_merger(tmp_path: Path) -> None:
    folder = MERGER.export(tmp_path / "exported")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "config.json", "manifest.json", "model.onnx",
    ]  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    assert (config["kind"], config["dimension"], config["window"]) == ("onnx", WIDTH, None)
    assert config["source"]["kind"] == "calibrated"
    assert config["source"]["fingerprint"] == MERGER.fingerprint
    assert MERGER.fingerprint in (folder / "README.md").read_text()
    merger = load_merger(folder)
    assert isinstance(merger, OnnxMerger)
    assert merger.dimension == WIDTH
    assert merger.window is None
    assert merger.context_weights == MERGER.context_weights
    assert merger.fingerprint != MERGER.fingerprint


def test_equal_mergers_export_equal_folders(tmp_path: Path) -> None:
    fingerprints = {load_merger(MERGER.export(tmp_path / name)).fingerprint for name in "ab"}
    fingerprints |= {load_merger(collection().export(tmp_path / "c")).fingerprint}
    assert len(fingerprints) == 1
    assert load_merger(collection(seed=2).export(tmp_path / "d")).fingerprint not in fingerprints


def test_mean_exports_with_a_dimension(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pass dimension="):
        MeanMerger().export(tmp_path / "mean")
    merger = load_merger(MeanMerger().export(tmp_path / "mean", dimension=WIDTH))
    assert merger.dimension == WIDTH
    assert merger.context_weights == MeanMerger().context_weights


def test_export_leaves_a_folder_of_other_things_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("mine")
    with pytest.raises(ArtefactError, match=r"thesis\.doc"):
        MERGER.export(tmp_path)
    assert (tmp_path / "thesis.doc").read_text() == "mine"


def test_without_onnx_the_export_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    for export in (
        lambda: MERGER.export(tmp_path / "exported"),
        lambda: MeanMerger().export(tmp_path / "exported", dimension=WIDTH),
    ):
        with pytest.raises(MissingExtraError, match=r"pip install 'merger-plugins\[export\]'"):
            export()
    assert not (tmp_path / "exported").exists()
