"""Exported graphs: parity with torch over ragged batches, their structure, and networks that are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="install the extra train")
onnx = pytest.importorskip("onnx", reason="install the extra train")
pytest.importorskip("onnxscript", reason="install the extra train")
pytest.importorskip("onnxruntime", reason="install the extra cpu")

from merger_plugins import MeanMerger, OnnxMerger, load_merger  # noqa: E402
from merger_plugins._session import CPU, SessionConfig, create_session  # noqa: E402
from merger_plugins.errors import ArtefactError, InputError  # noqa: E402
from merger_plugins.training import export  # noqa: E402
from merger_plugins.training.checkpoint import MergingNetwork  # noqa: E402
from merger_plugins.training.network import Synthesizer  # noqa: E402
from tests.strategies import Array, chunk_vectors  # noqa: E402
from tests.synthesizers import D, config, trained  # noqa: E402

SOURCE = export.Provenance("a network", "0123456789abcdef", "an embedder", "Apache-2.0")


@pytest.fixture(scope="module", params=["ours", "vector, learned positions", "the card's"])
def pair(request: Any) -> tuple[MergingNetwork, Any]:
    """A network and its float32 graph."""
    torch.set_num_threads(1)
    network = MergingNetwork(trained(request.param)).eval()
    return network, export.to_graph(network, D, network.model.config.window)


def run(model: Any, folder: Path, feed: dict[str, Array]) -> Array:
    path = folder / "model.onnx"
    path.write_bytes(export.serialised(model))
    rows: Array = create_session(path, SessionConfig(providers=(CPU,), threads=1)).run(["merged"], feed)[0]
    return rows


@pytest.mark.parametrize("precision", export.PRECISIONS)
def test_a_graph_in_ragged_batches_is_the_network_on_each_sequence_alone(
    pair: tuple[MergingNetwork, Any], precision: str, tmp_path: Path
) -> None:
    network, graph = pair
    narrow = export.narrowed(graph, precision)
    rng = np.random.default_rng(0)
    for lengths in ([1], [7], [1, 1, 1, 1], [2, 5, 1, 9], [12, 3]):
        shape = (len(lengths), max(lengths))
        vectors = np.stack([chunk_vectors(int(s), shape[1], D) for s in rng.integers(0, 10**6, shape[0])])
        mask = np.arange(shape[1]) < np.array(lengths)[:, None]
        vectors[~mask] = np.nan  # padding of any kind
        masses = rng.uniform(1, 100, shape).astype(np.float32)
        found = run(narrow, tmp_path, {"vectors": vectors, "mask": mask, "masses": masses})
        assert found.dtype == np.float32
        for row, length in enumerate(lengths):
            with torch.no_grad():
                alone = torch.from_numpy(vectors[row : row + 1, :length])
                expected = network.model(alone, None, torch.from_numpy(masses[row : row + 1, :length]))
            expected = expected.pooler_output.numpy()[0]
            if precision == "int8":
                assert found[row] @ expected >= 0.999
            else:
                np.testing.assert_allclose(found[row], expected, atol={"float32": 1e-5}.get(precision, 2e-3))


def test_a_graph_is_standard_and_tells_nothing_of_the_machine(pair: tuple[MergingNetwork, Any]) -> None:
    _, graph = pair
    for precision in export.PRECISIONS:
        narrow = export.narrowed(graph, precision)
        export.check_structure(narrow)
        data = export.serialised(narrow)
        assert str(Path.home()).encode() not in data
        assert b".py" not in data
        assert narrow.ir_version <= 10
        assert {(o.domain, o.version) for o in narrow.opset_import} == {("", 20)}
        axes = {value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
                for value in [*narrow.graph.input, *narrow.graph.output]}  # fmt: skip
        assert axes == {
            "vectors": ["b", "n", D],
            "mask": ["b", "n"],
            "masses": ["b", "n"],
            "merged": ["b", D],
        }


def test_heads_that_only_training_uses_are_left_out(pair: tuple[MergingNetwork, Any]) -> None:
    network, graph = pair
    inside = sum(int(np.prod(tensor.dims)) for tensor in graph.graph.initializer)
    model = network.model
    unused = [*model.reconstruct.parameters(), *model.continuity.parameters(), model.masked]
    trainable = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in unused)
    assert trainable <= inside < trainable + 100  # and a few numbers of the code


def test_narrow_weights_make_a_small_file() -> None:
    weights = np.random.default_rng(0).standard_normal((256, 192)).astype(np.float32)
    small = np.ones(192, np.float32)
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("MatMul", ["x", "weights"], ["y"]),
            onnx.helper.make_node("Add", ["y", "small"], ["z"]),
        ],
        "product",
        [onnx.helper.make_tensor_value_info("x", 1, ["b", 256])],
        [onnx.helper.make_tensor_value_info("z", 1, ["b", 192])],
        [onnx.numpy_helper.from_array(weights, "weights"), onnx.numpy_helper.from_array(small, "small")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    x = np.random.default_rng(1).standard_normal((5, 256)).astype(np.float32)
    bytes_of, error_of = {}, {}
    for precision in export.PRECISIONS:
        narrow = export.narrowed(model, precision)
        onnx.checker.check_model(narrow, full_check=True)
        (z,) = onnx.reference.ReferenceEvaluator(narrow).run(None, {"x": x})
        bytes_of[precision] = len(export.serialised(narrow)) / weights.size
        error_of[precision] = np.abs(z - small - x @ weights).max() / np.abs(x @ weights).max()
    assert bytes_of["float32"] > 4
    assert bytes_of["float16"] < 2.05
    assert bytes_of["mixed"] < 2.05
    assert bytes_of["int8"] < 1.1
    assert error_of["float32"] < error_of["float16"] < error_of["mixed"] < 2e-3 < error_of["int8"] < 1e-2


def test_a_product_may_be_the_last_operator() -> None:
    weights = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    make = onnx.helper
    graph = make.make_graph(
        [make.make_node("MatMul", ["x", "weights"], ["y"])],
        "product",
        [make.make_tensor_value_info("x", 1, ["b", 64])],
        [make.make_tensor_value_info("y", 1, ["b", 32])],
        [onnx.numpy_helper.from_array(weights, "weights")],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=10)
    x = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)
    for precision in export.PRECISIONS:
        narrow = export.narrowed(model, precision)
        onnx.checker.check_model(narrow, full_check=True)
        (y,) = onnx.reference.ReferenceEvaluator(narrow).run(None, {"x": x})
        assert y.dtype == np.float32
        assert np.abs(y - x @ weights).max() < 0.02 * np.abs(x @ weights).max()


def test_mixed_precision_multiplies_matrices_in_float16_alone(pair: tuple[MergingNetwork, Any]) -> None:
    _, graph = pair
    mixed = onnx.shape_inference.infer_shapes(export.narrowed(graph, "mixed"))
    feed = {
        "vectors": chunk_vectors(0, 12, D).reshape(3, 4, D),
        "mask": np.arange(4) < np.array([[4], [2], [1]]),
        "masses": np.ones((3, 4), np.float32),
    }
    # ONNX Runtime's processor has no such product and takes float32; the reference rounds as a GPU does.
    wide, narrow = (onnx.reference.ReferenceEvaluator(each).run(None, feed)[0] for each in (graph, mixed))
    assert 0 < np.abs(wide - narrow).max() < 2e-3
    kinds = {value.name: value.type.tensor_type.elem_type for value in mixed.graph.value_info}
    operators = {
        (node.op_type, kinds[node.output[0]] == onnx.TensorProto.FLOAT16)
        for node in mixed.graph.node
        if node.op_type != "Cast" and node.output[0] in kinds
    }
    assert {operator for operator, is_half in operators if is_half} == {"MatMul"}


def test_the_untrained_graph_is_the_mean_merger_and_a_folder_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = MergingNetwork(Synthesizer(config(num_layers=1)).eval())
    folder = export.export_network(network, tmp_path / "folder", dimension=D, window=5, source=SOURCE)
    merger = load_merger(folder)
    assert isinstance(merger, OnnxMerger)
    assert (merger.dimension, merger.window) == (D, 5)
    rng = np.random.default_rng(3)
    for count in range(1, 6):
        vectors, masses = chunk_vectors(count, count, D) * 40, rng.uniform(1, 90, count)
        np.testing.assert_allclose(
            merger.merge(vectors, masses=masses), MeanMerger().merge(vectors, masses=masses), atol=1e-6
        )
    stated = json.loads((folder / "config.json").read_text())
    assert stated["license"] == "Apache-2.0"
    assert stated["source"] == {
        "name": "a network", "fingerprint": "0123456789abcdef", "embedder": "an embedder"
    }  # fmt: skip
    card = (folder / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "sequences of 1 to 5 vectors" in card
    # The same network gives the same file: a fingerprint can be made again.
    again = export.to_graph(network, D, 5)
    assert export.serialised(again) == (folder / "model.onnx").read_bytes()


# -- refused -------------------------------------------------------------------------------------------


class Pooling(torch.nn.Module):
    """The mean of all places, padding included."""

    def forward(self, vectors: Any, mask: Any, masses: Any) -> Any:
        zeroed = vectors.masked_fill(~mask[..., None], 0) + 0 * masses[..., None]
        return torch.nn.functional.normalize(zeroed.mean(1) + 1, dim=-1)


class Mapped(torch.nn.Module):
    """The masked sum through a matrix that 8 bits cannot hold: 1,000 beside numbers of about 1."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        matrix = torch.randn(64, 64, generator=generator)
        matrix[:, 0] = 1000  # what gives the first number, which is not kept
        self.matrix = torch.nn.Parameter(matrix)

    def forward(self, vectors: Any, mask: Any, masses: Any) -> Any:
        weights = masses.masked_fill(~mask, 0)[..., None]
        total = vectors.masked_fill(~mask[..., None], 0).mul(weights).sum(1)
        kept = torch.arange(64) > 0
        return torch.nn.functional.normalize((total @ self.matrix) * kept, dim=-1)


class Branching(torch.nn.Module):
    """Looks into its input to choose what to do."""

    def forward(self, vectors: Any, mask: Any, masses: Any) -> Any:
        return vectors[:, 0] if vectors.sum() > 0 else vectors[:, -1] * masses[:, :1] * mask[:, :1]


def test_a_network_that_depends_on_padding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"differ by up to .* whose merges depend on padding"):
        export.export_network(Pooling(), tmp_path / "out", dimension=D, window=4, source=SOURCE)
    assert not (tmp_path / "out").exists()


def test_a_precision_that_loses_too_much_is_refused(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"dimension": 64, "window": 4, "source": SOURCE}
    with pytest.raises(ArtefactError, match=r"The int8 graph of a network .* Choose a wider precision"):
        export.export_network(Mapped(), tmp_path / "out", precision="int8", **arguments)


def test_a_network_that_cannot_be_traced_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="torch cannot export the network"):
        export.export_network(Branching(), tmp_path / "out", dimension=D, window=4, source=SOURCE)


def test_an_unknown_precision_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'int4'; it is one of float32, float16, mixed, int8"):
        export.export_network(
            Pooling(), tmp_path / "out", dimension=D, window=4, source=SOURCE, precision="int4"
        )


def broken(case: str) -> Any:
    """A graph with one thing wrong."""
    helper = onnx.helper
    kind = onnx.TensorProto.DOUBLE if case == "float64" else onnx.TensorProto.FLOAT
    operator = {"foreign operator": "Gelu", "no such operator": "Frobnicate"}.get(case, "Identity")
    domain = "com.microsoft" if case == "foreign operator" else ""
    constants = [onnx.numpy_helper.from_array(np.ones(3), "wide")] if case == "float64" else []
    nodes = [helper.make_node(operator, ["x"], ["y"], domain=domain)]
    if case == "a branch in float64":
        inner = helper.make_node("Cast", ["x"], ["z"], to=onnx.TensorProto.DOUBLE)
        back = helper.make_node("Cast", ["z"], ["w"], to=onnx.TensorProto.FLOAT)
        branch = helper.make_graph([inner, back], "b", [], [helper.make_tensor_value_info("w", 1, None)])
        nodes = [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)]
        constants = [onnx.numpy_helper.from_array(np.array(True), "c")]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", kind, [3])],
        [helper.make_tensor_value_info("y", kind, [3])],
        constants,
    )
    opset = 21 if case == "newer" else 20
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    if case == "outside":
        tensor = model.graph.initializer.add(name="far", data_type=1, dims=[3])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights.bin")
    return model


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("float64", "wide is float64"),
        ("a branch in float64", "computes in float64"),
        ("foreign operator", "Gelu is an operator of com.microsoft"),
        ("no such operator", "Frobnicate"),
        ("newer", "opset 21, above 20"),
        ("outside", "far is kept outside the file"),
    ],
)
def test_a_graph_that_some_runtime_could_not_run_is_refused(case: str, message: str) -> None:
    with pytest.raises(ArtefactError, match=message):
        export.check_structure(broken(case))
