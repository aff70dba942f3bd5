"""Mergers in closed form as ONNX graphs: standard operators of opset 17, any batch and any length.

::

    vectors (b, n, d) float32   chunk vectors in reading order; what stands in padded places is ignored
    mask    (b, n)    bool      False where padded
    masses  (b, n)    float32   tokens each vector stands for; only proportions matter
    merged  (b, d)    float32   unit length
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from merger_plugins._artefact import CARD, write_artefact
from merger_plugins._extras import require
from merger_plugins.errors import DimensionError
from merger_plugins.mergers.calibrated import RIDGE_LEAST, RIDGE_MOST, RIDGE_PER_CHUNK

if TYPE_CHECKING:
    import os

    import onnx

    from merger_plugins.mergers.base import SequenceMerger

MODEL = "model.onnx"
"""The name of the graph in a model folder."""

OPSET = 17
"""Nothing here needs a newer operator set, and a newer one would shut out older runtimes."""

TOLERANCE = 1e-7
"""Conjugate gradients stop at this residual, relative to the right-hand side: half a unit of float32."""

_FLOAT, _BOOL, _INT64 = 1, 9, 7  # onnx.TensorProto.DataType


def mean_graph(dimension: int) -> onnx.ModelProto:
    """The graph of `MeanMerger`: the mass-weighted mean of the unit vectors, normalised.

    Args:
        dimension: d.

    Raises:
        MissingExtraError: the package ``onnx`` is not installed.
    """
    graph = _Graph()
    vectors, masses = _inputs(graph)
    weights = graph("Unsqueeze", masses, graph.integers(1))  # (b, 1, n)
    total = graph("MatMul", weights, _unit(graph, vectors))
    return _model(graph, "mean", dimension, graph("Squeeze", total, graph.integers(1)))


def calibrated_graph(
    mean: NDArray[np.floating[Any]], whitening: NDArray[np.floating[Any]]
) -> onnx.ModelProto:
    """The graph of `CalibratedMerger._merge_batch`, calibration inside.

    With R the rows √g_i z_i, the merged vector is P Rᵀ a, normalised, where (R Rᵀ + λ I) a = √g. ONNX has no
    operator that solves equations, so conjugate gradients do (Hestenes and Stiefel 1952), for all sequences
    of a batch at once and with step sizes of their own; one that has converged is left as it is. R Rᵀ is
    never formed. Its eigenvalues add up to n, as Σ g_i |z_i|² = n, so the condition number is κ <= 1 + n / λ:
    13 up to 180 chunks, 35 for 500. The residual falls to `TOLERANCE` of the right-hand side within
    ½ √κ ln(2 √κ / `TOLERANCE`) iterations, 33 and 55, after which the loop ends in any case.

    Args:
        mean: (d,) m, of unit vectors.
        whitening: (d, d) P, symmetric.

    Raises:
        DimensionError: the shapes do not belong together.
        MissingExtraError: the package ``onnx`` is not installed.
    """
    dimension = len(mean)
    if mean.shape != (dimension,) or whitening.shape != (dimension, dimension):
        raise DimensionError(
            f"mean has shape {mean.shape} and whitening {whitening.shape}; expected (d,) and (d, d)."
        )
    graph = _Graph()
    vectors, masses = _inputs(graph)
    graph.constant("mean", mean.astype(np.float32))
    graph.constant("whitening", whitening.astype(np.float32))
    whitened = graph("MatMul", graph("Sub", _unit(graph, vectors), "mean"), "whitening")
    counts = graph("ReduceSum", graph("Cast", "mask", to=_FLOAT), graph.integers(1), keepdims=1)  # (b, 1)
    total = graph("ReduceSum", masses, graph.integers(1), keepdims=1)
    relative = graph("Mul", masses, graph("Div", counts, _nonzero(graph, total)))
    roots = graph("Sqrt", relative)
    rows = graph("Mul", _unit(graph, whitened), graph("Unsqueeze", roots, graph.integers(2)))
    growing = graph("Mul", counts, graph.scalar(RIDGE_PER_CHUNK))
    ridge = graph("Clip", growing, graph.scalar(RIDGE_LEAST), graph.scalar(RIDGE_MOST))
    weights = _solved(graph, rows, roots, counts, ridge)
    pooled = graph("Squeeze", graph("MatMul", weights, rows), graph.integers(1))
    return _model(graph, "calibrated", dimension, graph("MatMul", pooled, "whitening"))


def write_onnx_merger(
    folder: str | os.PathLike[str], graph: onnx.ModelProto, *, dimension: int, source: SequenceMerger
) -> Path:
    """Write a graph as a model folder that `load_merger` reads as an `OnnxMerger`; returns the folder.

    Args:
        folder: where.
        graph: with the signature at the top of this module.
        dimension: d.
        source: the merger that it was made from: its window, context weights and fingerprint are recorded.

    Raises:
        ArtefactError: the folder exists and holds other files.
    """
    kind = getattr(source, "kind", type(source).__name__)
    weights = source.context_weights
    config = {
        "kind": "onnx",
        "dimension": dimension,
        "window": source.window,
        "context_weights": {"near": weights.near, "root": weights.root},
        "source": {
            "kind": kind,
            "fingerprint": source.fingerprint,
            "embedder": getattr(source, "embedder", None),
        },
    }
    files = {
        MODEL: graph.SerializeToString(deterministic=True),
        CARD: _card(dimension, kind, source).encode(),
    }
    return write_artefact(folder, config, files).path


class _Graph:
    """Nodes and constants of a graph; a call adds a node and returns the name of its output."""

    def __init__(self) -> None:
        self.onnx = require("onnx", extra="export", purpose="Exporting a merger as an ONNX graph")
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def __call__(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        output = output or f"{operator}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.constants[name] = self.onnx.numpy_helper.from_array(value, name)
        return name

    def scalar(self, value: float) -> str:
        return self.constant(f"float_{value:g}", np.array(value, np.float32))

    def integers(self, *values: int) -> str:
        return self.constant(f"integers_{'_'.join(map(str, values))}", np.array(values, np.int64))


def _inputs(graph: _Graph) -> tuple[str, str]:
    """Vectors and masses with zeros in padded places; a product would let NaN through."""
    present = graph("Unsqueeze", "mask", graph.integers(2))
    vectors = graph("Where", present, "vectors", graph.scalar(0))
    return vectors, graph("Where", "mask", "masses", graph.scalar(0))


def _nonzero(graph: _Graph, value: str) -> str:
    """The value, or 1 where it is 0: a divisor."""
    return graph("Where", graph("Greater", value, graph.scalar(0)), value, graph.scalar(1))


def _unit(graph: _Graph, vectors: str) -> str:
    lengths = graph("ReduceL2", vectors, axes=[-1], keepdims=1)
    return graph("Div", vectors, _nonzero(graph, lengths))


def _solved(graph: _Graph, rows: str, targets: str, counts: str, ridge: str) -> str:
    """Solve (R Rᵀ + λ I) a = t for each sequence by conjugate gradients.

    Args:
        graph: is added to.
        rows: (b, n, d) R.
        targets: (b, n) t.
        counts: (b, 1) how many rows are not padded.
        ridge: (b, 1) λ.

    Returns:
        (b, 1, n) a.
    """
    right = graph("Unsqueeze", targets, graph.integers(1))
    start = graph("Mul", right, graph.scalar(0))
    squared = graph("ReduceSum", graph("Mul", right, right), graph.integers(2), keepdims=1)  # (b, 1, 1)
    outside = {
        "rows": rows,
        "columns": graph("Transpose", rows, perm=[0, 2, 1]),
        "ridge": graph("Unsqueeze", ridge, graph.integers(2)),
        "enough": graph("Mul", squared, graph.scalar(TOLERANCE**2)),
    }
    graph.scalar(0), graph.scalar(1), graph.integers(2)  # the body refers to them
    bound = graph("Add", graph("Div", counts, ridge), graph.scalar(1))
    root = graph("Sqrt", graph("ReduceMax", bound, keepdims=0))
    most = graph("Mul", graph("Log", graph("Mul", root, graph.scalar(2 / TOLERANCE))), root)
    limit = graph("Cast", graph("Ceil", graph("Mul", most, graph.scalar(0.5))), to=_INT64)
    state = ["weights", "residual", "direction", "squared"]
    graph.nodes.append(
        graph.onnx.helper.make_node(
            "Loop",
            [limit, "", start, right, right, squared],
            [f"solved_{name}" for name in state],
            body=_iteration(graph, state, **outside),
        )
    )
    return "solved_weights"


def _iteration(
    graph: _Graph, state: Sequence[str], *, rows: str, columns: str, ridge: str, enough: str
) -> onnx.GraphProto:
    """One step of conjugate gradients, for as long as one sequence of the batch needs it."""
    body = _Graph()
    zero, one, last = graph.scalar(0), graph.scalar(1), graph.integers(2)
    weights, residual, direction, squared = state
    product = body("MatMul", body("MatMul", direction, rows), columns)
    product = body("Add", product, body("Mul", ridge, direction), output="product")
    curvature = body("ReduceSum", body("Mul", direction, product), last, keepdims=1)
    # A sequence that has converged takes steps of length 0 / 1 while it waits for its batch-mates.
    active = body("Greater", squared, enough)
    step = body("Div", body("Where", active, squared, zero), body("Where", active, curvature, one))
    body("Add", weights, body("Mul", step, direction), output="next_weights")
    body("Sub", residual, body("Mul", step, product), output="next_residual")
    body("ReduceSum", body("Mul", "next_residual", "next_residual"), last, keepdims=1, output="next_squared")
    turn = body("Div", "next_squared", body("Where", active, squared, one))
    body("Add", "next_residual", body("Mul", turn, direction), output="next_direction")
    worst = body("ReduceMax", body("Sub", "next_squared", enough), keepdims=0)
    body("Greater", worst, zero, output="unfinished")
    describe = graph.onnx.helper.make_tensor_value_info
    inputs = [describe("iteration", _INT64, []), describe("continuing", _BOOL, [])]
    outputs = [describe("unfinished", _BOOL, [])]
    inputs += [describe(name, _FLOAT, None) for name in state]
    outputs += [describe(f"next_{name}", _FLOAT, None) for name in state]
    iteration: onnx.GraphProto = graph.onnx.helper.make_graph(body.nodes, "iteration", inputs, outputs)
    return iteration


def _model(graph: _Graph, name: str, dimension: int, direction: str) -> onnx.ModelProto:
    """The finished, checked model that gives the direction at unit length."""
    graph("Identity", _unit(graph, direction), output="merged")
    helper = graph.onnx.helper
    describe = helper.make_tensor_value_info
    inputs = [
        describe("vectors", _FLOAT, ["b", "n", dimension]),
        describe("mask", _BOOL, ["b", "n"]),
        describe("masses", _FLOAT, ["b", "n"]),
    ]
    outputs = [describe("merged", _FLOAT, ["b", dimension])]
    model: onnx.ModelProto = helper.make_model(
        helper.make_graph(graph.nodes, name, inputs, outputs, list(graph.constants.values())),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=8,
        producer_name="merger_plugins",
    )
    graph.onnx.checker.check_model(model, full_check=True)
    return model


def _card(dimension: int, kind: str, source: SequenceMerger) -> str:
    embedder = getattr(source, "embedder", None) or "not recorded"
    window = source.window or "any number"
    return f"""---
library_name: merger-plugins
tags: [embeddings, retrieval, onnx]
---
# A merger of chunk vectors, as an ONNX graph

Merges the chunk vectors of a document or conversation, in reading order, into one unit vector that a raw
query vector of the same embedding model can search.

| | |
|---|---|
| made from | a merger of kind `{kind}`, fingerprint `{source.fingerprint}` |
| embedding model | {embedder} |
| dimension d | {dimension} |
| vectors in one merge | {window} |
| inputs | `vectors` (b, n, d) float32, `mask` (b, n) bool, `masses` (b, n) float32 |
| output | `merged` (b, d) float32, unit length |

```python
from merger_plugins import load_merger

load_merger("this-folder").merge(vectors)  # (n, {dimension}) -> ({dimension},)
```

The weights are statistics of chunk vectors, where there are any; no text is inside.
"""
