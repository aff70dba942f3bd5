"""The exported graph against a BERT written out in NumPy."""

import math
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="install the extra export")
pytest.importorskip("onnxruntime", reason="install the extra cpu")

from merger_plugins._session import Session, SessionConfig, create_session
from onnx_export.bert import BertConfig, build
from onnx_export.graph import GraphBuilder

D, HEADS, LAYERS, POSITIONS, WORDS = 128, 2, 2, 24, 50
CONFIG = BertConfig(dimension=D, layers=LAYERS, heads=HEADS, positions=POSITIONS, epsilon=1e-12)


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    """Weights that 8 bits hold exactly (every block is of -1, 0 and 1 times one scale)."""
    rng = np.random.default_rng(0)

    def matrix(rows: int, columns: int, scale: float) -> np.ndarray:
        return (rng.integers(-1, 2, (rows, columns)) * 127 * scale).astype(np.float32)

    def vector(length: int, mean: float = 0.0) -> np.ndarray:
        return rng.normal(mean, 0.2, length).astype(np.float32)

    signs = np.array([-1, 1])
    weights = {
        "embeddings.word_embeddings.weight": matrix(WORDS, D, 2**-7),
        "embeddings.position_embeddings.weight": (rng.choice(signs, (POSITIONS, D)) * 127 * 2**-8).astype(
            "f"
        ),
        "embeddings.token_type_embeddings.weight": np.stack([np.full(D, 127 * 2**-8), vector(D)]).astype("f"),
        "embeddings.LayerNorm.weight": vector(D, 1),
        "embeddings.LayerNorm.bias": vector(D),
    }
    for layer in range(LAYERS):
        for name, columns, rows in [
            ("attention.self.query", D, D),
            ("attention.self.key", D, D),
            ("attention.self.value", D, D),
            ("attention.output.dense", D, D),
            ("intermediate.dense", D, 4 * D),
            ("output.dense", 4 * D, D),
        ]:
            weights[f"encoder.layer.{layer}.{name}.weight"] = matrix(rows, columns, 2**-11)
            weights[f"encoder.layer.{layer}.{name}.bias"] = vector(rows)
        for name in ("attention.output", "output"):
            weights[f"encoder.layer.{layer}.{name}.LayerNorm.weight"] = vector(D, 1)
            weights[f"encoder.layer.{layer}.{name}.LayerNorm.bias"] = vector(D)
    return weights


@pytest.fixture(scope="module")
def session(tensors: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Session:
    path = tmp_path_factory.mktemp("bert") / "model.onnx"
    path.write_bytes(build(tensors, CONFIG).SerializeToString())
    return create_session(path, SessionConfig(providers=("CPUExecutionProvider",), threads=1))


def expected(tensors: dict[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
    """One text without padding, in float64, from Devlin et al. (2019) and Vaswani et al. (2017)."""
    w = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
        return x * w[f"{name}.LayerNorm.weight"] + w[f"{name}.LayerNorm.bias"]

    x = w["embeddings.word_embeddings.weight"][ids]
    x = x + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings")
    width = D // HEADS
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}."
        q, k, v = (linear(x, f"{at}attention.self.{part}") for part in ("query", "key", "value"))
        context = np.empty_like(x)
        for head in range(HEADS):
            part = slice(head * width, (head + 1) * width)
            scores = np.exp(q[:, part] @ k[:, part].T / math.sqrt(width))
            context[:, part] = scores / scores.sum(1, keepdims=True) @ v[:, part]
        x = norm(linear(context, at + "attention.output.dense") + x, at + "attention.output")
        inner = linear(x, at + "intermediate.dense")
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        x = norm(linear(inner, at + "output.dense") + x, at + "output")
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


def run(session: Session, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return session.run(None, {"input_ids": ids, "attention_mask": mask})[0]


@pytest.mark.parametrize("lengths", [[1], [POSITIONS], [5, 5], [1, 24, 7, 2, 16]])
def test_graph_computes_bert_with_mean_pooling(
    session: Session, tensors: dict[str, np.ndarray], lengths: list[int]
) -> None:
    rng = np.random.default_rng(len(lengths))
    ids = rng.integers(0, WORDS, (len(lengths), max(lengths)))  # padding holds words, too
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    found = run(session, ids, mask)
    assert found.dtype == np.float32
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(found[row], expected(tensors, ids[row, :length]), atol=2e-6)


def test_padding_changes_nothing(session: Session) -> None:
    ids = np.random.default_rng(1).integers(0, WORDS, (3, 6))
    alone = run(session, ids, np.ones_like(ids))
    padded = np.pad(ids, ((0, 0), (0, 10)), constant_values=7)
    np.testing.assert_allclose(
        run(session, padded, np.pad(np.ones_like(ids), ((0, 0), (0, 10)))), alone, atol=1e-6
    )


def test_text_without_a_token_gives_zeros_not_nan(session: Session) -> None:
    ids = np.zeros((1, 4), np.int64)
    assert not run(session, ids, np.zeros_like(ids)).any()


def test_signature(session: Session) -> None:
    inputs = [(item.name, item.type, item.shape) for item in session.get_inputs()]
    assert inputs == [
        ("input_ids", "tensor(int64)", ["batch", "tokens"]),
        ("attention_mask", "tensor(int64)", ["batch", "tokens"]),
    ]
    (output,) = session.get_outputs()
    assert (output.name, output.type, output.shape) == ("embedding", "tensor(float)", ["batch", D])


def test_same_weights_give_the_same_file(tensors: dict[str, np.ndarray]) -> None:
    first, second = (build(tensors, CONFIG).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


TRANSFORMERS: dict[str, Any] = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
}


def test_sizes_are_read_from_a_transformers_config() -> None:
    assert BertConfig.from_transformers(TRANSFORMERS) == BertConfig(384, 6, 12, 512, 1e-12)


@pytest.mark.parametrize(
    "other", [{"model_type": "mpnet"}, {"hidden_act": "relu"}, {"position_embedding_type": "relative_key"}]
)
def test_other_architectures_are_refused(other: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(other.values())))):
        BertConfig.from_transformers({**TRANSFORMERS, **other})


def test_one_name_is_one_constant() -> None:
    graph = GraphBuilder()
    assert graph.constant("a", np.ones(2)) == graph.constant("a", np.ones(2)) == "a"
    with pytest.raises(ValueError, match="'a'"):
        graph.constant("a", np.zeros(2))
