"""A BERT encoder (Devlin et al., 2019) with mean pooling, as an ONNX graph with 8-bit weights."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnx_export.graph import GraphBuilder
from onnx_export.quantise import quantise

# Weights that share a scale should be of one size. At the inputs of the attention the strongest activations
# meet the smallest weights, so there neighbours along the outputs share; in the feed-forward part strong
# activations meet large weights, and neighbours along the inputs share. The other way round costs more than
# a third again in error. The tables hardly matter to the error, so their blocks are long.
_INPUTS, _OUTPUTS = 0, 1
_LAYER_BLOCK, _TABLE_BLOCK = 16, 128

_MASKED = -10_000.0
"""Added to the score of a padding token; exp of it is exactly 0 in float32, so padding changes nothing."""


@dataclass(frozen=True)
class BertConfig:
    """The sizes of an encoder.

    Attributes:
        dimension: length of a token's vector.
        layers: number of encoder layers.
        heads: attention heads a layer; they divide `dimension`.
        positions: the longest input, in tokens.
        epsilon: added to the variance by layer normalisation.
    """

    dimension: int
    layers: int
    heads: int
    positions: int
    epsilon: float

    @classmethod
    def from_transformers(cls, config: Mapping[str, Any]) -> "BertConfig":
        """Read a transformers config.json.

        Raises:
            ValueError: it describes something other than a BERT with GELU and absolute positions.
        """
        expected = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
        found = {key: config.get(key, "absolute" if key.startswith("position") else None) for key in expected}
        if found != expected:
            raise ValueError(f"The encoder is {found}, and only {expected} can be exported.")
        return cls(
            dimension=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            positions=config["max_position_embeddings"],
            epsilon=config["layer_norm_eps"],
        )


def build(tensors: Mapping[str, NDArray[np.float32]], config: BertConfig) -> onnx.ModelProto:
    """The graph (input_ids, attention_mask) -> embedding.

    Inputs are (b, t) int64 with 1 <= t <= ``config.positions``, both dimensions free; the mask holds 1 for a
    token and 0 for padding; every token has type 0. The output is (b, d) float32: the mean over the tokens
    of the last layer's states, at unit length.

    Args:
        tensors: the float32 weights under the names that transformers gives them.
        config: the encoder's sizes.
    """
    encoder = _Encoder(tensors, config)
    hidden = encoder.embed()  # (b, t, d)
    for index in range(config.layers):
        hidden = encoder.layer(hidden, f"encoder.layer.{index}")
    encoder.pool(hidden)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", config.dimension])
    return encoder.graph.model("sentence_encoder", inputs, [output])


class _Encoder:
    def __init__(self, tensors: Mapping[str, NDArray[np.float32]], config: BertConfig) -> None:
        self.graph = GraphBuilder()
        self._tensors = tensors
        self._config = config
        graph = self.graph
        self._mask = graph.node("Cast", "attention_mask", to=TensorProto.FLOAT)  # (b, t)
        padding = graph.node("Sub", graph.constant("one", np.float32(1)), self._mask)
        penalty = graph.node("Mul", padding, graph.constant("masked", np.float32(_MASKED)))
        self._penalty = graph.node("Unsqueeze", penalty, graph.integers(1, 2))  # (b, 1, 1, t)

    def embed(self) -> str:
        """Word plus position plus the type-0 vector, normalised."""
        graph, d = self.graph, self._config.dimension
        # Rows are looked up as integers and only those found are dequantised: the float table, half of
        # all weights, is never made.
        words = quantise(
            self._tensors["embeddings.word_embeddings.weight"], axis=_OUTPUTS, block=_TABLE_BLOCK
        )
        values = graph.node("Gather", graph.constant("words.values", words.values), "input_ids")
        scales = graph.node("Gather", graph.constant("words.scales", words.scales), "input_ids")
        values = graph.node("Cast", values, to=TensorProto.FLOAT)  # (b, t, d / 128, 128)
        scales = graph.node("Cast", scales, to=TensorProto.FLOAT)  # (b, t, d / 128, 1)
        word = graph.node("Reshape", graph.node("Mul", values, scales), graph.integers(0, 0, d))  # (b, t, d)

        table = self._tensors["embeddings.position_embeddings.weight"]
        table = table + self._tensors["embeddings.token_type_embeddings.weight"][0]
        positions = graph.dequantised("positions", quantise(table, axis=_OUTPUTS, block=_TABLE_BLOCK))
        length = graph.node("Shape", "input_ids", start=1, end=2)
        position = graph.node("Slice", positions, graph.integers(0), length, graph.integers(0))  # (t, d)
        return self._normalise(graph.node("Add", word, position), "embeddings.LayerNorm")

    def layer(self, hidden: str, name: str) -> str:
        """One encoder layer, (b, t, d) -> (b, t, d): attention, then feed-forward, each with its residual."""
        graph, config = self.graph, self._config
        d, heads = config.dimension, config.heads
        attention = f"{name}.attention"
        # The scores' division by the root of the head's width is done to the query's weights.
        scale = 1 / math.sqrt(d // heads)
        split = graph.integers(0, 0, heads, d // heads)

        def project(part: str, permutation: list[int], factor: float = 1.0) -> str:
            projected = self._linear(hidden, f"{attention}.self.{part}", _OUTPUTS, factor)
            return graph.node("Transpose", graph.node("Reshape", projected, split), perm=permutation)

        query = project("query", [0, 2, 1, 3], scale)  # (b, heads, t, d / heads)
        key = project("key", [0, 2, 3, 1])  # (b, heads, d / heads, t)
        value = project("value", [0, 2, 1, 3])  # (b, heads, t, d / heads)
        scores = graph.node("Add", graph.node("MatMul", query, key), self._penalty)  # (b, heads, t, t)
        context = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), value)
        context = graph.node("Transpose", context, perm=[0, 2, 1, 3])
        context = graph.node("Reshape", context, graph.integers(0, 0, d))  # (b, t, d)
        attended = self._linear(context, f"{attention}.output.dense", _OUTPUTS)
        hidden = self._normalise(graph.node("Add", attended, hidden), f"{attention}.output.LayerNorm")

        inner = self._gelu(self._linear(hidden, f"{name}.intermediate.dense", _INPUTS))  # (b, t, 4d)
        outer = self._linear(inner, f"{name}.output.dense", _INPUTS)
        return self._normalise(graph.node("Add", outer, hidden), f"{name}.output.LayerNorm")

    def pool(self, hidden: str) -> str:
        """Mean over the mask, then unit length: (b, t, d) -> (b, d)."""
        graph = self.graph
        kept = graph.node("Mul", hidden, graph.node("Unsqueeze", self._mask, graph.integers(2)))
        total = graph.node("ReduceSum", kept, graph.integers(1), keepdims=0)
        count = graph.node("ReduceSum", self._mask, graph.integers(1), keepdims=1)
        mean = graph.node("Div", total, graph.node("Max", count, graph.constant("least", np.float32(1e-9))))
        square = graph.node("ReduceSum", graph.node("Mul", mean, mean), graph.integers(1), keepdims=1)
        norm = graph.node("Max", graph.node("Sqrt", square), graph.constant("shortest", np.float32(1e-12)))
        return graph.node("Div", mean, norm, output="embedding")

    def _linear(self, value: str, name: str, axis: int, factor: float = 1.0) -> str:
        weight = (self._tensors[f"{name}.weight"].T * factor).astype(np.float32)  # torch stores (out, in)
        bias = (self._tensors[f"{name}.bias"] * factor).astype(np.float32)
        matrix = self.graph.dequantised(f"{name}.weight", quantise(weight, axis=axis, block=_LAYER_BLOCK))
        return self.graph.node(
            "Add", self.graph.node("MatMul", value, matrix), self.graph.constant(f"{name}.bias", bias)
        )

    def _normalise(self, value: str, name: str) -> str:
        weight = self.graph.constant(f"{name}.weight", self._tensors[f"{name}.weight"])
        bias = self.graph.constant(f"{name}.bias", self._tensors[f"{name}.bias"])
        return self.graph.node(
            "LayerNormalization", value, weight, bias, axis=-1, epsilon=self._config.epsilon
        )

    def _gelu(self, value: str) -> str:
        # x (1 + erf(x / sqrt 2)) / 2 in the form that ONNX Runtime fuses with the bias before it.
        graph = self.graph
        scaled = graph.node("Div", value, graph.constant("sqrt_two", np.float32(math.sqrt(2))))
        gate = graph.node("Add", graph.node("Erf", scaled), graph.constant("one", np.float32(1)))
        return graph.node("Mul", graph.node("Mul", value, gate), graph.constant("half", np.float32(0.5)))
