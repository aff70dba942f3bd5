"""A merger for any graph: a black box with a window against its tree done by hand, and our own exports."""

import copy
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merger_plugins import MeanMerger, OnnxMerger, SequenceMerger, load_merger
from merger_plugins._artefact import write_artefact
from merger_plugins._session import CPU, CUDA
from merger_plugins.errors import (
    ArtefactError,
    DimensionError,
    EmptyInputError,
    FingerprintError,
    InputError,
    MissingExtraError,
    NoMemoryError,
    NonFiniteError,
    ProviderError,
    StateError,
    ZeroVectorError,
)
from merger_plugins.mergers import onnx as module
from merger_plugins.mergers.black_box import ITEMS_PER_RUN
from merger_plugins.mergers.context import ContextWeights
from merger_plugins.mergers.graphs import MODEL
from merger_plugins.mergers.loading import SYNTHESIZER
from tests.strategies import (
    CALIBRATED,
    DIMENSION,
    Array,
    chunk_vectors,
    masses_for,
    normalised,
    ragged_batches,
    weighted_sequences,
)

onnx = pytest.importorskip("onnx", reason="install the extra export")
onnxruntime = pytest.importorskip("onnxruntime", reason="install the extra cpu")

WINDOW = 4
CLOSE = 1e-5
FLOAT, FLOAT16, BOOL, INT64 = (
    onnx.TensorProto.DataType.Value(n) for n in ("FLOAT", "FLOAT16", "BOOL", "INT64")
)

Axes = list[int | str]


def build(
    nodes: list[Any],
    constants: dict[str, Array] | None = None,
    *,
    inputs: dict[str, tuple[int, Axes]] | None = None,
    merged: tuple[int, Axes] = (FLOAT, ["b", DIMENSION]),
    output: str = "merged",
) -> Any:
    """A model with the given nodes; without `inputs`, those of a merger."""
    described = inputs or {
        "vectors": (FLOAT, ["b", "n", DIMENSION]),
        "mask": (BOOL, ["b", "n"]),
        "masses": (FLOAT, ["b", "n"]),
    }
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "black box",
        [value(name, *parts) for name, parts in described.items()],
        [value(output, *merged)],
        [onnx.numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def black_box(places: int | str = "n") -> Any:
    """tanh(Σ w x) with w the masses times 1 + 1 / place: not linear, nor of unit length, nor blind to order
    or to the scale of the masses."""
    node = onnx.helper.make_node
    nodes = [
        node("Shape", ["mask"], ["shape"]),
        node("Gather", ["shape", "i1"], ["count"]),
        node("Range", ["i0", "count", "i1"], ["places"]),
        node("Cast", ["places"], ["from_zero"], to=FLOAT),
        node("Add", ["from_zero", "one"], ["from_one"]),
        node("Reciprocal", ["from_one"], ["falling"]),
        node("Add", ["falling", "one"], ["by_place"]),
        node("Mul", ["masses", "by_place"], ["everywhere"]),
        node("Where", ["mask", "everywhere", "zero"], ["weights"]),
        node("Unsqueeze", ["weights", "axis"], ["row"]),
        node("MatMul", ["row", "vectors"], ["pooled"]),
        node("Squeeze", ["pooled", "axis"], ["sum"]),
        node("Tanh", ["sum"], ["merged"]),
    ]
    constants = {
        "i0": np.array(0),
        "i1": np.array(1),
        "axis": np.array([1]),
        "one": np.array(1, np.float32),
        "zero": np.array(0, np.float32),
    }
    inputs: dict[str, tuple[int, Axes]] = {
        "vectors": (FLOAT, ["b", places, DIMENSION]),
        "mask": (BOOL, ["b", places]),
        "masses": (FLOAT, ["b", places]),
    }
    return build(nodes, constants, inputs=inputs)


Node = tuple[Array, float]


def merged_by_hand(nodes: list[Node]) -> Array:
    """What `black_box` computes of unit vectors and of masses over their largest, in float64."""
    largest = max(mass for _, mass in nodes)
    shares = np.array([mass / largest * (1 + 1 / (place + 1)) for place, (_, mass) in enumerate(nodes)])
    directions = normalised(np.stack([direction for direction, _ in nodes]))
    return normalised(np.tanh(shares @ directions))


def joined_by_hand(nodes: list[Node | None]) -> Node | None:
    """Nodes as one: nothing of nothing, one alone as it is, several merged."""
    present = [node for node in nodes if node is not None]
    if len(present) < 2:
        return present[0] if present else None
    return merged_by_hand(present), sum(mass for _, mass in present)


def tree_by_hand(leaves: list[Node | None]) -> Array:
    """The root: every `WINDOW` complete nodes joined, then what each level has left, upwards."""
    carry: Node | None = None
    level = leaves
    while level:
        complete = len(level) // WINDOW * WINDOW
        carry = joined_by_hand([*level[complete:], carry])
        level = [joined_by_hand(level[start : start + WINDOW]) for start in range(0, complete, WINDOW)]
    assert carry is not None
    single = sum(leaf is not None for leaf in leaves) == 1
    return merged_by_hand([carry]) if single else normalised(carry[0])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model folder of each sort."""
    root = tmp_path_factory.mktemp("graphs")
    config = {"kind": "onnx", "dimension": DIMENSION, "window": WINDOW}
    return {
        "window": write_artefact(root / "window", config, {MODEL: black_box().SerializeToString()}).path,
        "fixed": write_artefact(root / "fixed", config, {MODEL: black_box(WINDOW).SerializeToString()}).path,
        "mean": MeanMerger().export(root / "mean", dimension=DIMENSION),
        "calibrated": CALIBRATED.export(root / "calibrated"),
    }


@pytest.fixture(scope="module")
def mergers(folders: dict[str, Path]) -> dict[str, OnnxMerger]:
    return {name: OnnxMerger(folder, providers=(CPU,), threads=1) for name, folder in folders.items()}


@pytest.fixture(params=["window", "fixed", "mean", "calibrated"])
def merger(request: pytest.FixtureRequest, mergers: dict[str, OnnxMerger]) -> OnnxMerger:
    return mergers[request.param]


def saved(model: Any, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


# -- merging ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mean", "calibrated"])
@given(batch=ragged_batches())
def test_an_export_merges_as_its_source(
    mergers: dict[str, OnnxMerger], name: str, batch: tuple[list[Array], list[Array | None]]
) -> None:
    sequences, masses = batch
    source = CALIBRATED if name == "calibrated" else MeanMerger()
    np.testing.assert_allclose(
        mergers[name].merge_many(sequences, masses=masses),
        source.merge_many(sequences, masses=masses),
        atol=CLOSE,
    )


@given(batch=ragged_batches())
def test_merging_many_is_merging_each(
    mergers: dict[str, OnnxMerger], batch: tuple[list[Array], list[Array | None]]
) -> None:
    sequences, masses = batch
    for merger in mergers.values():
        together = merger.merge_many(sequences, masses=masses)
        assert together.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=CLOSE)
        for row, sequence, weights in zip(together, sequences, masses, strict=True):
            np.testing.assert_allclose(row, merger.merge(sequence, masses=weights), atol=CLOSE)


def test_more_sequences_than_one_run_takes(mergers: dict[str, OnnxMerger]) -> None:
    sequences = [chunk_vectors(seed, 3) for seed in range(ITEMS_PER_RUN)]
    together = mergers["calibrated"].merge_many(sequences)
    np.testing.assert_allclose(together, CALIBRATED.merge_many(sequences), atol=CLOSE)


@given(pair=weighted_sequences(max_size=3), scale=st.sampled_from([1e-3, 7.0, 1e6]))
def test_only_proportions_of_masses_and_directions_of_vectors_matter(
    mergers: dict[str, OnnxMerger], pair: tuple[Array, Array], scale: float
) -> None:
    vectors, masses = pair
    for merger in mergers.values():
        np.testing.assert_allclose(
            merger.merge(vectors * np.float32(scale), masses=masses * np.float32(scale)),
            merger.merge(vectors, masses=masses),
            atol=CLOSE,
        )


@pytest.mark.parametrize(
    ("vectors", "error"),
    [
        (np.zeros((0, DIMENSION)), EmptyInputError),
        (np.zeros((2, DIMENSION)), ZeroVectorError),
        (np.full((2, DIMENSION), np.nan), NonFiniteError),
        (np.ones((2, DIMENSION + 1)), DimensionError),
    ],
)
def test_bad_input_never_reaches_the_graph(
    merger: OnnxMerger, vectors: Array, error: type[Exception]
) -> None:
    with pytest.raises(error):
        merger.merge(vectors)


# -- the tree --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["window", "fixed"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 16, 17, 21, 64, 70])
def test_a_window_makes_the_tree_done_by_hand(mergers: dict[str, OnnxMerger], name: str, count: int) -> None:
    # The fixed graph takes four vectors and no more: nothing that runs on it ever merged five.
    vectors = chunk_vectors(count, count)
    masses = np.random.default_rng(count).integers(1, 400, count).astype(np.float32)
    expected = tree_by_hand(list(zip(vectors, masses.tolist(), strict=True)))
    np.testing.assert_allclose(mergers[name].merge(vectors, masses=masses), expected, atol=CLOSE)
    rolling = mergers[name].rolling()
    for vector, mass in zip(vectors, masses, strict=True):
        rolling.append(vector, mass=float(mass))
    np.testing.assert_allclose(rolling.vector, expected, atol=CLOSE)


@given(data=st.data(), count=st.integers(1, 21))
def test_removed_chunks_leave_no_trace_in_a_windowed_tree(
    mergers: dict[str, OnnxMerger], data: st.DataObject, count: int
) -> None:
    vectors, masses = chunk_vectors(count, count), data.draw(masses_for(count))
    kept = data.draw(st.integers(0, count - 1))
    removed = data.draw(st.sets(st.integers(0, count - 1).filter(lambda place: place != kept)))
    rolling = mergers["fixed"].rolling()
    rolling.extend(vectors, masses=masses)
    for place in removed:
        rolling.remove(place)
    leaves = [None if place in removed else (vectors[place], float(masses[place])) for place in range(count)]
    np.testing.assert_allclose(rolling.vector, tree_by_hand(leaves), atol=CLOSE)


@pytest.mark.parametrize(("name", "source"), [("mean", MeanMerger()), ("calibrated", CALIBRATED)])
def test_an_unbounded_graph_is_used_once_on_sums_of_raw_vectors(
    mergers: dict[str, OnnxMerger], name: str, source: SequenceMerger
) -> None:
    vectors = chunk_vectors(3, 57)
    masses = np.random.default_rng(3).integers(1, 400, 57).astype(np.float32)
    rolling = mergers[name].rolling()
    rolling.extend(vectors, masses=masses)
    # Three times ten places are read one by one, and what is older by tens.
    weighted = normalised(vectors) * masses[:, None]
    oldest = weighted[:30].reshape(3, 10, DIMENSION).sum(axis=1)
    nodes = np.concatenate([oldest, weighted[30:]])
    node_masses = np.concatenate([masses[:30].reshape(3, 10).sum(axis=1), masses[30:]])
    expected = source.merge(nodes, masses=node_masses)
    np.testing.assert_allclose(rolling.vector, expected, atol=CLOSE)


@pytest.mark.parametrize("count", [1, 2, 9, 10, 29])
def test_an_unbounded_graph_reads_a_short_sequence_as_a_whole(
    mergers: dict[str, OnnxMerger], count: int
) -> None:
    vectors = chunk_vectors(count, count)
    rolling = mergers["calibrated"].rolling()
    rolling.extend(vectors)
    np.testing.assert_allclose(rolling.vector, CALIBRATED.merge(vectors), atol=CLOSE)


@given(data=st.data(), count=st.integers(1, 45))
def test_rolling_is_the_same_however_it_came_about(
    mergers: dict[str, OnnxMerger], data: st.DataObject, count: int
) -> None:
    vectors, masses = chunk_vectors(count, count), data.draw(masses_for(count))
    cut, place = data.draw(st.integers(0, count)), data.draw(st.integers(0, count - 1))
    for merger in mergers.values():
        whole = merger.rolling()
        whole.extend(vectors, masses=masses)
        for stop in (1, 2):
            grown = merger.rolling()
            for part in (slice(0, cut), slice(cut, count)):
                if vectors[part].size:
                    grown.extend(vectors[part], masses=masses[part])
            np.testing.assert_allclose(grown.vector, whole.vector, atol=CLOSE)
            np.testing.assert_allclose(merger.rolling(grown.state).vector, whole.vector, atol=CLOSE)
            if stop == 2:
                break
            vectors = vectors.copy()
            vectors[place] = chunk_vectors(999, 1)[0]
            whole.replace(place, vectors[place])


def test_a_chunks_own_vector_is_what_the_graph_gives_for_one(merger: OnnxMerger) -> None:
    vectors = chunk_vectors(6, 23)
    rolling = merger.rolling()
    rolling.extend(vectors, masses=np.arange(1, 24))
    rolling.remove(5)
    own = rolling.sections(0)
    np.testing.assert_array_equal(own[5], np.zeros(DIMENSION))
    for place in (0, 4, 22):
        alone = merger.merge(vectors[place : place + 1])
        np.testing.assert_allclose(own[place], alone, atol=CLOSE)
        single = merger.rolling()
        single.append(vectors[place], mass=7)
        np.testing.assert_allclose(single.vector, alone, atol=CLOSE)


def test_the_last_chunk_that_is_left_is_seen_by_the_graph_once(merger: OnnxMerger) -> None:
    vectors = chunk_vectors(7, 18)
    rolling = merger.rolling()
    rolling.extend(vectors)
    for place in range(18):
        if place != 2:
            rolling.remove(place)
    np.testing.assert_allclose(rolling.vector, merger.merge(vectors[2:3]), atol=CLOSE)


def test_sections_are_merges_of_their_chunks(merger: OnnxMerger) -> None:
    vectors = chunk_vectors(8, 33)
    masses = np.random.default_rng(8).integers(1, 90, 33).astype(np.float32)
    rolling = merger.rolling()
    rolling.extend(vectors, masses=masses)
    fanout = merger.fanout
    parts = [slice(start, start + fanout) for start in range(0, 33, fanout)]
    expected = merger.merge_many([vectors[p] for p in parts], masses=[masses[p] for p in parts])
    np.testing.assert_allclose(rolling.sections(1), expected, atol=CLOSE)


@pytest.mark.parametrize("name", ["window", "calibrated"])
def test_a_chain_merges_what_was_merged_with_what_follows(mergers: dict[str, OnnxMerger], name: str) -> None:
    merger, vectors = mergers[name], chunk_vectors(9, 5)
    rolling = merger.rolling(strategy="chain")
    expected = vectors[0]
    for place, vector in enumerate(vectors):
        rolling.append(vector)
        if place:
            expected = merger.merge(np.stack([expected, vector]), masses=[place, 1])
        alone = merger.merge(vectors[:1])
        np.testing.assert_allclose(rolling.vector, expected if place else alone, atol=CLOSE)


def test_a_flat_reading_beyond_a_fixed_graph_is_refused(mergers: dict[str, OnnxMerger]) -> None:
    vectors = chunk_vectors(10, WINDOW + 1)
    flat = mergers["window"].rolling(strategy="flat")
    flat.extend(vectors)
    expected = merged_by_hand([(vector, 1.0) for vector in vectors])
    np.testing.assert_allclose(flat.vector, expected, atol=CLOSE)
    flat = mergers["fixed"].rolling(strategy="flat")
    flat.extend(vectors)
    with pytest.raises(InputError, match=r"5 vectors .* takes 4.*strategy='tree'"):
        _ = flat.vector


def test_contextual_vectors_are_blends_of_what_the_graph_gives(mergers: dict[str, OnnxMerger]) -> None:
    vectors = chunk_vectors(11, 12)
    for merger in mergers.values():
        alone = np.stack([merger.merge(vector[None]) for vector in vectors])
        nothing_added = merger.contextualize(vectors, weights=ContextWeights(near=0, root=0))
        np.testing.assert_allclose(nothing_added, alone, atol=CLOSE)
        root = merger.merge(vectors)
        blended = merger.contextualize(vectors, weights=ContextWeights(near=0, root=0.5))
        np.testing.assert_allclose(blended, normalised(alone + 0.5 * root), atol=CLOSE)
    np.testing.assert_allclose(
        mergers["mean"].contextualize(vectors), MeanMerger().contextualize(vectors), atol=CLOSE
    )


def test_a_state_of_another_graph_is_refused(mergers: dict[str, OnnxMerger]) -> None:
    rolling = mergers["window"].rolling()
    rolling.extend(chunk_vectors(12, 9))
    with pytest.raises(StateError, match="fingerprint"):
        mergers["fixed"].rolling(rolling.state)


def test_calibrating_a_graph_says_what_to_do_instead(merger: OnnxMerger) -> None:
    with pytest.raises(InputError, match=r"cannot be calibrated.*export that again.*load_merger\(\)"):
        merger.calibrated(chunk_vectors(13, 30))


# -- files -----------------------------------------------------------------------------------------------


def test_a_graph_file_alone_tells_dimension_and_window(tmp_path: Path) -> None:
    unbounded = OnnxMerger(saved(black_box(), tmp_path / "a.onnx"))
    assert (unbounded.dimension, unbounded.window) == (DIMENSION, None)
    fixed = OnnxMerger(saved(black_box(WINDOW), tmp_path / "b.onnx"))
    assert (fixed.dimension, fixed.window) == (DIMENSION, WINDOW)
    vectors = chunk_vectors(14, 3)
    expected = merged_by_hand([(vector, 1.0) for vector in vectors])
    np.testing.assert_allclose(unbounded.merge(vectors), expected, atol=CLOSE)
    np.testing.assert_allclose(fixed.merge(vectors), expected, atol=CLOSE)
    assert unbounded.fingerprint != fixed.fingerprint


def test_a_graph_of_any_dimension(tmp_path: Path) -> None:
    total = onnx.helper.make_node("ReduceSum", ["vectors", "axis"], ["merged"], keepdims=0)
    inputs: dict[str, tuple[int, Axes]] = {
        "vectors": (FLOAT, ["b", "n", "d"]), "mask": (BOOL, ["b", "n"]), "masses": (FLOAT, ["b", "n"])
    }  # fmt: skip
    model = build([total], {"axis": np.array([1])}, inputs=inputs, merged=(FLOAT, ["b", "d"]))
    merger = OnnxMerger(saved(model, tmp_path / "any.onnx"))
    assert merger.dimension is None
    for width in (3, 8):
        vectors = chunk_vectors(width, 5, width)
        np.testing.assert_allclose(merger.merge(vectors), MeanMerger().merge(vectors), atol=CLOSE)


def test_what_the_config_leaves_out_the_graph_tells(tmp_path: Path) -> None:
    files = {MODEL: black_box(WINDOW).SerializeToString()}
    merger = OnnxMerger(write_artefact(tmp_path / "bare", {"kind": "onnx"}, files).path)
    assert (merger.dimension, merger.window) == (DIMENSION, WINDOW)
    narrower = {"kind": "onnx", "dimension": DIMENSION, "window": 2}
    merger = OnnxMerger(write_artefact(tmp_path / "narrow", narrower, files).path)
    assert merger.window == 2
    vectors = chunk_vectors(15, 2)
    expected = merged_by_hand([(vector, 1.0) for vector in vectors])
    np.testing.assert_allclose(merger.merge(vectors), expected, atol=CLOSE)


def test_saving_keeps_files_and_fingerprint(merger: OnnxMerger, tmp_path: Path) -> None:
    vectors = chunk_vectors(16, 9)
    for write in (merger.save, merger.export):
        again = load_merger(write(tmp_path / "copy"))
        assert isinstance(again, OnnxMerger)
        assert (again.fingerprint, again.window) == (merger.fingerprint, merger.window)
        np.testing.assert_array_equal(again.merge(vectors), merger.merge(vectors))
    names = {path.name for path in merger.path.iterdir()}
    assert {path.name for path in (tmp_path / "copy").iterdir()} == names


def test_a_graph_file_is_saved_as_a_folder_of_the_same_fingerprint(tmp_path: Path) -> None:
    merger = OnnxMerger(saved(black_box(WINDOW), tmp_path / "graph.onnx"))
    again = load_merger(merger.save(tmp_path / "folder"))
    assert (again.fingerprint, again.window) == (merger.fingerprint, WINDOW)


def test_weights_beside_a_graph_count_in_its_fingerprint_and_are_saved(tmp_path: Path) -> None:
    node = onnx.helper.make_node

    def merger(name: str, value: float) -> OnnxMerger:
        model = build(
            [
                node("ReduceMean", ["vectors"], ["mean"], axes=[1], keepdims=0),
                node("Mul", ["mean", "w"], ["merged"]),
            ],
            {"w": np.linspace(1, value, DIMENSION, dtype=np.float32)},
        )
        (tmp_path / name).mkdir()
        onnx.save_model(
            model,
            tmp_path / name / "graph.onnx",
            save_as_external_data=True,
            location="weights.bin",
            size_threshold=0,
        )
        assert (tmp_path / name / "weights.bin").stat().st_size >= DIMENSION * 4
        return OnnxMerger(tmp_path / name / "graph.onnx")

    first, second = merger("first", 2), merger("second", 3)
    assert first.fingerprint != second.fingerprint
    again = load_merger(first.save(tmp_path / "saved"))
    assert again.fingerprint == first.fingerprint
    vectors = chunk_vectors(17, 3)
    np.testing.assert_array_equal(again.merge(vectors), first.merge(vectors))


@pytest.mark.parametrize("name", [MODEL, "config.json"])
def test_a_damaged_folder_is_refused(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(folders["calibrated"], tmp_path / "copy")
    (folder / name).write_bytes((folder / name).read_bytes()[:-1] + b" ")
    with pytest.raises(ArtefactError, match=f"{name} is damaged"):
        load_merger(folder)


def test_a_folder_without_its_graph_is_refused(tmp_path: Path) -> None:
    folder = write_artefact(tmp_path / "empty", {"kind": "onnx"}, {"other.onnx": b""}).path
    with pytest.raises(ArtefactError, match=r"does not list 'model\.onnx'"):
        OnnxMerger(folder)


def test_another_kind_of_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="holds the kind 'mean', where 'onnx'"):
        OnnxMerger(MeanMerger().save(tmp_path / "mean"))


def test_a_missing_file_and_one_that_is_no_graph_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"nothing\.onnx is missing"):
        OnnxMerger(tmp_path / "nothing.onnx")
    (tmp_path / "text.onnx").write_text("no graph at all")
    with pytest.raises(ArtefactError, match=r"text\.onnx"):
        OnnxMerger(tmp_path / "text.onnx")


def test_a_graph_that_was_exchanged_after_loading_is_refused(tmp_path: Path) -> None:
    vectors = chunk_vectors(18, 2)
    folder = CALIBRATED.export(tmp_path / "folder")
    merger = load_merger(folder)
    MeanMerger().export(folder, dimension=DIMENSION)
    for use in (lambda: merger.merge(vectors), lambda: merger.save(tmp_path / "copy")):
        with pytest.raises(FingerprintError, match=r"was changed.*Load it anew"):
            use()
    assert not (tmp_path / "copy").exists()
    alone = OnnxMerger(saved(black_box(), tmp_path / "graph.onnx"))
    stored = pickle.dumps(alone)
    saved(black_box(WINDOW), tmp_path / "graph.onnx")
    with pytest.raises(FingerprintError, match="was changed"):
        pickle.loads(stored).merge(vectors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dimension": 0}, "states dimension 0"),
        ({"dimension": "6"}, "states dimension '6'"),
        ({"window": 1}, "states window 1"),
        ({"window": True}, "states window True"),
        ({"context_weights": {"near": 7}}, "near is 7"),
        ({"context_weights": {"nearby": 0.1}}, "nearby"),
        ({"context_weights": [1]}, "context_weights"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    config = {"kind": "onnx", "dimension": DIMENSION, "window": WINDOW, **change}
    folder = write_artefact(tmp_path / "folder", config, {MODEL: black_box().SerializeToString()}).path
    with pytest.raises(ArtefactError, match=message):
        OnnxMerger(folder)


@pytest.mark.parametrize("change", [{"dimension": DIMENSION + 1}, {"window": WINDOW + 1}, {"window": None}])
def test_a_config_that_contradicts_its_graph_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    config = {"kind": "onnx", "dimension": DIMENSION, "window": WINDOW, **change}
    folder = write_artefact(tmp_path / "folder", config, {MODEL: black_box(WINDOW).SerializeToString()}).path
    with pytest.raises(ArtefactError, match=f"graph has dimension {DIMENSION} and takes {WINDOW}"):
        OnnxMerger(folder).merge(np.ones((1, config["dimension"])))


# -- graphs with another signature -----------------------------------------------------------------------

VECTORS, MASK, MASSES = (FLOAT, ["b", "n", DIMENSION]), (BOOL, ["b", "n"]), (FLOAT, ["b", "n"])


@pytest.mark.parametrize(
    ("inputs", "merged", "output", "message"),
    [
        ({"vectors": VECTORS, "mask": MASK}, None, "merged", "it has no input masses"),
        ({"vectors": VECTORS, "mask": MASK, "masses": MASSES}, None, "pooled", "it has no output merged"),
        (
            {"vectors": (FLOAT16, VECTORS[1]), "mask": MASK, "masses": MASSES},
            (FLOAT16, ["b", DIMENSION]),
            "merged",
            r"vectors is a tensor\(float16\), not a tensor\(float\); merged is a tensor\(float16\)",
        ),
        (
            {"vectors": VECTORS, "mask": (INT64, ["b", "n"]), "masses": MASSES},
            None,
            "merged",
            r"mask is a tensor\(int64\), not a tensor\(bool\)",
        ),
        (
            {"vectors": VECTORS, "mask": MASK, "masses": (FLOAT, ["b", "n", 1])},
            None,
            "merged",
            r"masses has the shape \['b', 'n', 1\], not \(b, n\)",
        ),
        (
            {"vectors": VECTORS, "mask": MASK, "masses": MASSES, "types": (INT64, ["b"])},
            None,
            "merged",
            "it wants types as well",
        ),
        (
            {"vectors": (FLOAT, [3, "n", DIMENSION]), "mask": MASK, "masses": MASSES},
            (FLOAT, [3, DIMENSION]),
            "merged",
            "its batch size is fixed to 3",
        ),
        (
            {"vectors": (FLOAT, ["b", 4, DIMENSION]), "mask": (BOOL, ["b", 5]), "masses": MASSES},
            None,
            "merged",
            "its axis n is both 4 and 5",
        ),
        (
            {"vectors": (FLOAT, ["b", 1, DIMENSION]), "mask": MASK, "masses": MASSES},
            None,
            "merged",
            "it takes one vector only",
        ),
    ],
)
def test_another_signature_is_named(
    tmp_path: Path,
    inputs: dict[str, tuple[int, Axes]],
    merged: tuple[int, Axes] | None,
    output: str,
    message: str,
) -> None:
    total = onnx.helper.make_node("ReduceSum", ["vectors", "axis"], [output], keepdims=0)
    model = build(
        [total],
        {"axis": np.array([1])},
        inputs=inputs,
        merged=merged or (FLOAT, ["b", DIMENSION]),
        output=output,
    )
    path = saved(model, tmp_path / "other.onnx")
    with pytest.raises(
        ArtefactError, match=rf"other\.onnx is not the graph of a merger: .*{message}.*Export"
    ):
        OnnxMerger(path)


def summing(operator: str, *inputs: str, width: int | str = DIMENSION, **attributes: Any) -> Any:
    """A graph that sums the vectors and sends "sum" through one more operator."""
    make = onnx.helper.make_node
    nodes = [
        make("ReduceSum", ["vectors", "axis"], ["sum"], keepdims=0),
        make(operator, inputs, ["merged"], **attributes),
    ]
    constants = {"axis": np.array([1]), "narrowing": np.ones((DIMENSION, 2), np.float32)}
    described: dict[str, tuple[int, Axes]] = {
        "vectors": (FLOAT, ["b", "n", "d"]),
        "mask": MASK,
        "masses": MASSES,
    }
    declared = described if isinstance(width, str) else None
    return build(nodes, constants, inputs=declared, merged=(FLOAT, ["b", width]))


def test_an_output_of_another_dimension_is_refused(tmp_path: Path) -> None:
    narrowing = summing("MatMul", "sum", "narrowing", width=2)
    with pytest.raises(ArtefactError, match="its axis d is both 2 and 6"):
        OnnxMerger(saved(narrowing, tmp_path / "narrowing.onnx"))
    doubling = summing("Concat", "sum", "sum", width="e", axis=1)
    merger = OnnxMerger(saved(doubling, tmp_path / "doubling.onnx"))
    with pytest.raises(ArtefactError, match=r"gives \(1, 12\), where \(1, 6\) was expected"):
        merger.merge(chunk_vectors(19, 3))


def test_an_output_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    merger = OnnxMerger(saved(summing("Log", "sum"), tmp_path / "log.onnx"))
    negative = -np.abs(chunk_vectors(20, 3))
    with pytest.raises(NonFiniteError, match="for 1 of 2 sequences"):
        merger.merge_many([negative, -negative])


def test_a_graph_that_fails_on_its_input_is_reported(tmp_path: Path) -> None:
    make = onnx.helper.make_node
    nodes = [
        make("Add", ["vectors", "three"], ["moved"]),
        make("ReduceSum", ["moved", "axis"], ["merged"], keepdims=0),
    ]
    three = {"three": np.zeros((1, 3, DIMENSION), np.float32), "axis": np.array([1])}
    merger = OnnxMerger(saved(build(nodes, three), tmp_path / "three.onnx"))
    with pytest.raises(ArtefactError, match=r"(?s)failed on vectors of shape \(1, 2, 6\).*b dynamic"):
        merger.merge(chunk_vectors(21, 2))


def greedy() -> Any:
    """Sums, beside which it fills an array: 16 MB for two sequences, more than any machine has for four."""
    make = onnx.helper.make_node
    nodes = [
        make("Shape", ["mask"], ["shape"]),
        make("Gather", ["shape", "zero"], ["sequences"]),
        make("Mul", ["sequences", "eleven"], ["power"]),
        make("Cast", ["power"], ["asked"], to=FLOAT),
        make("Min", ["asked", "most"], ["exponent"]),
        make("Pow", ["two", "exponent"], ["size"]),
        make("Cast", ["size"], ["length"], to=INT64),
        make("Unsqueeze", ["length", "axis"], ["one_axis"]),
        make("ConstantOfShape", ["one_axis"], ["filled"]),
        make("ReduceMax", ["filled"], ["nothing"], keepdims=0),
        make("ReduceSum", ["vectors", "places"], ["sum"], keepdims=0),
        make("Add", ["sum", "nothing"], ["merged"]),
    ]
    constants = {
        "zero": np.array(0),
        "eleven": np.array(11),
        "most": np.array(48, np.float32),
        "two": np.array(2, np.float32),
        "axis": np.array([0]),
        "places": np.array([1]),
    }
    return build(nodes, constants)


def test_where_memory_runs_out_half_as_many_are_merged_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    merger = OnnxMerger(saved(greedy(), tmp_path / "greedy.onnx"))
    sequences = [chunk_vectors(seed, 2) for seed in range(7)]
    merged = merger.merge_many(sequences)
    expected = normalised(np.stack([normalised(part).sum(axis=0) for part in sequences]))
    np.testing.assert_allclose(merged, expected, atol=CLOSE)
    said = [record.getMessage() for record in caplog.records]
    assert [message.partition("going on with ")[2] for message in said] == [
        "3 sequences of 2 vectors at once.",
        "1 sequences of 2 vectors at once.",
    ]
    merger.merge_many(sequences)
    assert len(caplog.records) == 2  # it begins where it ended before


def test_a_sequence_that_fits_into_no_memory_is_an_error_that_says_so(tmp_path: Path) -> None:
    model = greedy()
    (eleven,) = (tensor for tensor in model.graph.initializer if tensor.name == "eleven")
    eleven.CopyFrom(onnx.numpy_helper.from_array(np.array(48), "eleven"))
    merger = OnnxMerger(saved(model, tmp_path / "greedy.onnx"))
    with pytest.raises(NoMemoryError, match=r"1 sequences of 2 vectors do not fit .*greedy\.onnx.*allocate"):
        merger.merge(chunk_vectors(0, 2))


# -- sessions --------------------------------------------------------------------------------------------


def counting(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files for which sessions are created from here on."""
    created: list[Path] = []
    create = module.create_session

    def count(path: Path, config: Any) -> Any:
        created.append(path)
        return create(path, config)

    monkeypatch.setattr(module, "create_session", count)
    return created


def test_a_folders_session_is_created_once_and_late(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    created = counting(monkeypatch)
    merger = OnnxMerger(folders["calibrated"])
    assert merger.dimension == DIMENSION
    assert not created
    sequences = [chunk_vectors(seed, 5) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        merged = np.stack(list(pool.map(merger.merge, sequences)))
    assert created == [folders["calibrated"] / MODEL]
    np.testing.assert_allclose(merged, CALIBRATED.merge_many(sequences), atol=CLOSE)


@pytest.mark.parametrize(
    "duplicate", [lambda merger: pickle.loads(pickle.dumps(merger)), copy.copy, copy.deepcopy]
)
def test_copies_merge_with_a_session_of_their_own(
    merger: OnnxMerger, duplicate: Callable[[OnnxMerger], OnnxMerger], monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = chunk_vectors(22, 9)
    expected = merger.merge(vectors)
    created = counting(monkeypatch)
    again = duplicate(merger)
    assert not created
    assert again.fingerprint == merger.fingerprint
    assert again.rolling().merger is again
    np.testing.assert_array_equal(again.merge(vectors), expected)
    assert len(created) == 1


def test_what_ran_where_is_told(merger: OnnxMerger) -> None:
    assert merger.providers == (CPU,)
    placed = merger.placement()
    assert set(placed) == {CPU}
    assert placed[CPU] >= 3


def test_threads_and_providers_reach_a_graph_and_nothing_else(folders: dict[str, Path]) -> None:
    loaded = load_merger(folders["mean"], providers=[CPU], threads=1)
    assert isinstance(loaded, OnnxMerger)
    assert loaded.providers == (CPU,)
    assert loaded._graph().session.get_session_options().intra_op_num_threads == 1
    for name in ("mean", None):
        with pytest.raises(InputError, match=r"threads arrived for .* no ONNX graph.*OMP_NUM_THREADS"):
            load_merger(name, threads=1)


def test_cuda_where_there_is_none_is_an_error_that_says_so() -> None:
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this build of ONNX Runtime has CUDA")
    merger = load_merger(SYNTHESIZER, providers=(CUDA,))
    with pytest.raises(ProviderError, match=rf"{CUDA}: not available here.*merger-plugins\[gpu\]"):
        merger.merge(np.ones((2, 384), np.float32))


def test_a_relative_path_survives_a_change_of_folder(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(folders["mean"].parent)
    merger = OnnxMerger("mean")
    monkeypatch.chdir(tmp_path)
    vectors = chunk_vectors(23, 3)
    np.testing.assert_allclose(merger.merge(vectors), MeanMerger().merge(vectors), atol=CLOSE)


def test_a_provider_that_is_not_there_is_an_error_that_lists_those_that_are(folders: dict[str, Path]) -> None:
    merger = OnnxMerger(folders["mean"], providers=("QuantumExecutionProvider",))
    with pytest.raises(ProviderError, match=f"QuantumExecutionProvider.*There is .*{CPU}"):
        merger.merge(chunk_vectors(24, 2))
    with pytest.raises(ProviderError, match="QuantumExecutionProvider"):
        OnnxMerger(folders["mean"] / MODEL, providers=("QuantumExecutionProvider",))


@pytest.mark.parametrize("options", [{"providers": ()}, {"providers": CPU}, {"threads": 0}])
def test_options_out_of_range_are_refused(folders: dict[str, Path], options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        OnnxMerger(folders["mean"], **options)


def test_without_onnx_runtime_a_merge_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    merger = load_merger(CALIBRATED.export(tmp_path / "exported"))
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert merger.dimension == config["dimension"]
    with pytest.raises(MissingExtraError, match=r"pip install 'merger-plugins\[cpu\]'"):
        merger.merge(chunk_vectors(25, 2))


def test_without_onnx_a_graph_still_runs(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    merger = OnnxMerger(folders["calibrated"])
    vectors = chunk_vectors(26, 4)
    np.testing.assert_allclose(merger.merge(vectors), CALIBRATED.merge(vectors), atol=CLOSE)
    assert load_merger(merger.export(tmp_path / "copy")).fingerprint == merger.fingerprint
