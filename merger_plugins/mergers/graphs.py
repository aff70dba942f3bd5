"""Mergers in closed form as ONNX graphs: standard operators of opset 17, any batch and any length.

::

    vectors (b, n, d) float32   chunk vectors of any length, in reading order; padded places are ignored
    mask    (b, n)    bool      False where padded
    masses  (b, n)    float32   tokens each vector stands for; only proportions matter
    merged  (b, d)    float32   unit length
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from merger_plugins._artefact import CARD, write_artefact
from merger_plugins._extras import require
from merger_plugins.errors import DimensionError
from merger_plugins.mergers.calibrated import RIDGE_LEAST, RIDGE_MOST, RIDGE_PER_CHUNK
from merger_plugins.mergers.calibrated import ridge as ridge_of

if TYPE_CHECKING:
    import os

    import onnx

    from merger_plugins.mergers.base import SequenceMerger

MODEL = "model.onnx"
"""The name of the graph in a model folder."""

OPSET = 17
"""Nothing here needs a newer operator set, and a newer one would shut out older runtimes."""

TOLERANCE = 1e-7
"""What the equations are solved to, relative to their right-hand side: half a unit of float32."""

SHORT = 48
"""Up to so many places, multiplying Gram matrices takes less time than conjugate gradients do."""

SMALLEST = 1e-37
"""Squared lengths below this count as zero; those of accepted vectors are above 1e-30."""

_FLOAT, _INT32, _INT64, _BOOL = 1, 6, 7, 9  # onnx.TensorProto.DataType


def mean_graph(dimension: int) -> onnx.ModelProto:
    """The graph of `MeanMerger`: the mass-weighted mean of the unit vectors, normalised.

    Args:
        dimension: d.

    Raises:
        MissingExtraError: the package ``onnx`` is not installed.
    """
    graph = _Graph()
    masses = _masses(graph)

    def total(graph: _Graph, vectors: str) -> str:
        weights = graph("Div", masses, _lengths(graph, vectors))  # (b, n)
        return _pooled(graph, weights, vectors)

    return _model(graph, "mean", dimension, _without_padding(graph, total))


def calibrated_graph(
    mean: NDArray[np.floating[Any]], whitening: NDArray[np.floating[Any]]
) -> onnx.ModelProto:
    """The graph of `CalibratedMerger._merge_batch`, calibration inside.

    With R the rows √(g_i / λ) z_i, the merged vector is P Rᵀ a, normalised, where (I + R Rᵀ) a = √g; any
    multiple of a gives the same. P only occurs as Q = P², so that y_i = Q (x_i - m) is the one product with a
    (d, d) matrix: |P (x_i - m)|² = y_i · (x_i - m), the Gram matrix R Rᵀ holds y_i · (x_j - m), scaled, and
    P Rᵀ a is a weighted sum of the y_i.

    ONNX has no operator that solves equations. Short sequences take a polynomial in the Gram matrix, long
    ones conjugate gradients; a batch takes one of the two, by its number of places.

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
    masses = _masses(graph)
    graph.constant("mean", mean.astype(np.float32))
    wide = whitening.astype(np.float64)
    graph.constant("whitening_twice", (wide @ wide).astype(np.float32))
    centred = _without_padding(graph, lambda graph, vectors: graph("Sub", _unit(graph, vectors), "mean"))
    mapped = graph("MatMul", centred, "whitening_twice")
    counts = graph("ReduceSum", graph("Cast", "mask", to=_FLOAT), graph.integers(1), keepdims=1)  # (b, 1)
    total = graph("ReduceSum", masses, graph.integers(1), keepdims=1)
    growing = graph("Mul", counts, graph.scalar(RIDGE_PER_CHUNK))
    ridge = graph("Clip", growing, graph.scalar(RIDGE_LEAST), graph.scalar(RIDGE_MOST))
    mean_mass = graph("Div", graph("Mul", _nonzero(graph, total), ridge), _nonzero(graph, counts))
    targets = graph("Sqrt", graph("Div", masses, mean_mass))  # √(g / λ)
    lengths = graph("Sqrt", _nonzero(graph, _squared(graph, centred, mapped)))
    scales = graph("Div", targets, lengths)
    places = graph("Gather", graph("Shape", "mask"), graph.constant("places_axis", np.array(1, np.int64)))
    is_short = graph("LessOrEqual", places, graph.constant("short", np.array(SHORT, np.int64)))
    short, long = graph.inner(), graph.inner()
    weights = graph.either(
        is_short,
        (short, _solved_short(short, centred, mapped, scales, targets)),
        (long, _solved_long(long, centred, mapped, scales, targets, counts, ridge)),
    )
    return _model(graph, "calibrated", dimension, _pooled(graph, graph("Mul", weights, scales), mapped))


def write_onnx_merger(
    folder: str | os.PathLike[str], graph: onnx.ModelProto, *, dimension: int, source: SequenceMerger
) -> Path:
    """Write a graph as a model folder that `load_merger` reads as an `OnnxMerger`; returns the folder.

    Args:
        folder: where.
        graph: with the signature at the top of this module, blind to the lengths of its vectors.
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
        "normalises": True,
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
        self.numbers = count()

    def __call__(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        output = output or f"{operator}_{next(self.numbers)}"
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.constants[name] = self.onnx.numpy_helper.from_array(value, name)
        return name

    def scalar(self, value: float) -> str:
        return self.constant(f"float_{value:.9g}", np.array(value, np.float32))

    def integers(self, *values: int) -> str:
        return self.constant(f"integers_{'_'.join(map(str, values))}", np.array(values, np.int64))

    def inner(self) -> _Graph:
        """A graph inside this one, which sees its names and shares its constants."""
        inner = _Graph()
        inner.constants, inner.numbers = self.constants, self.numbers
        return inner

    def either(self, condition: str, then: tuple[_Graph, str], otherwise: tuple[_Graph, str]) -> str:
        """The output of one of two inner graphs; the other one is not run."""
        describe, make = self.onnx.helper.make_tensor_value_info, self.onnx.helper.make_graph
        then_branch, else_branch = (
            make(inner.nodes, output, [], [describe(output, _FLOAT, None)])
            for inner, output in (then, otherwise)
        )
        return self("If", condition, then_branch=then_branch, else_branch=else_branch)


def _masses(graph: _Graph) -> str:
    """Masses with zeros in padded places."""
    return graph("Where", "mask", "masses", graph.scalar(0))


def _without_padding(graph: _Graph, function: Callable[[_Graph, str], str]) -> str:
    """A function of the vectors, with zeros in padded places; a product would let NaN through.

    Putting them there takes as long as a mean does, and is left out where nothing is padded.
    """
    full = graph("Cast", graph("ReduceMin", graph("Cast", "mask", to=_INT32), keepdims=0), to=_BOOL)
    plain, padded = graph.inner(), graph.inner()
    present = padded("Unsqueeze", "mask", graph.integers(2))
    zeroed = padded("Where", present, "vectors", graph.scalar(0))
    return graph.either(full, (plain, function(plain, "vectors")), (padded, function(padded, zeroed)))


def _nonzero(graph: _Graph, value: str) -> str:
    """The value, or 1 where it is 0 or rounded to less: a divisor."""
    return graph("Where", graph("Greater", value, graph.scalar(0)), value, graph.scalar(1))


def _squared(graph: _Graph, left: str, right: str, *, keepdims: int = 0) -> str:
    """Products of each row with its counterpart; ONNX Runtime's ReduceL2 takes twice the time."""
    return graph("ReduceSum", graph("Mul", left, right), graph.integers(-1), keepdims=keepdims)


def _lengths(graph: _Graph, vectors: str, *, keepdims: int = 0) -> str:
    """Lengths to divide by: a vector of zeros stays one."""
    squared = _squared(graph, vectors, vectors, keepdims=keepdims)
    return graph("Sqrt", graph("Max", squared, graph.scalar(SMALLEST)))


def _unit(graph: _Graph, vectors: str) -> str:
    return graph("Div", vectors, _lengths(graph, vectors, keepdims=1))


def _pooled(graph: _Graph, weights: str, vectors: str) -> str:
    """(b, n) weights of (b, n, d) vectors -> their (b, d) sums."""
    total = graph("MatMul", graph("Unsqueeze", weights, graph.integers(1)), vectors)
    return graph("Squeeze", total, graph.integers(1))


def _solved_short(graph: _Graph, centred: str, mapped: str, scales: str, targets: str) -> str:
    """Solve (I + R Rᵀ) a = t by a Chebyshev polynomial in the Gram matrix R Rᵀ, up to a factor.

    The eigenvalues of R Rᵀ add up to n / λ, as Σ g_i |z_i|² = n, so those of the equation lie in [1, κ] with
    κ = 1 + n / λ at the most. With T the Chebyshev polynomials, scaled to be 1 at 0 as r_m, the polynomial
    (1 - r_m(x)) / x is the inverse within 1 / T_m((κ + 1) / (κ - 1)) (Saad 2003, section 6.11).
    T_2m = 2 T_m² - 1 doubles the degree by squaring the matrix, and 1 - r_2m is a multiple of
    (1 - r_m)(1 + r_m), so that a doubles with it: a + r_m a.

    Returns:
        (b, n) a multiple of a.
    """
    one, two = graph.integers(1), graph.integers(2)
    rows, columns = graph("Unsqueeze", scales, two), graph("Unsqueeze", scales, one)
    products = graph("MatMul", mapped, graph("Transpose", centred, perm=[0, 2, 1]))
    gram = graph("Mul", graph("Mul", products, rows), columns)
    zero = graph.integers(0)
    first = graph("Squeeze", graph("Slice", gram, zero, one, zero), zero)
    identity = graph("EyeLike", first)  # (n, n)

    def residual(matrix: str, factor: float, diagonal: float) -> str:
        return graph(
            "Add",
            graph("Mul", matrix, graph.scalar(factor)),
            graph("Mul", identity, graph.scalar(diagonal)),
        )

    condition = short_condition()
    at_zero = (condition + 1) / (condition - 1)  # T_1 there
    matrix = residual(gram, -2 / (condition + 1), 1 / at_zero)
    weights = graph("Unsqueeze", targets, one)
    for turn in range(doublings(condition)):
        if turn:
            doubled = 2 * at_zero**2 - 1
            squared = graph("MatMul", matrix, matrix)
            matrix = residual(squared, 2 * at_zero**2 / doubled, -1 / doubled)
            at_zero = doubled
        weights = graph("Add", weights, graph("MatMul", weights, matrix))
    return graph("Squeeze", weights, one)


def short_condition() -> float:
    """The largest κ = 1 + n / λ of a short sequence."""
    counts = np.arange(1, SHORT + 1)
    return float(np.max(1 + counts / ridge_of(counts)))


def doublings(condition: float) -> int:
    """How often the degree 1 is to be doubled until the residual is below `TOLERANCE`."""
    root = math.sqrt(condition)
    degree = math.log(2 / TOLERANCE) / math.log((root + 1) / (root - 1))
    return math.ceil(math.log2(degree))


def _solved_long(
    graph: _Graph, centred: str, mapped: str, scales: str, targets: str, counts: str, ridge: str
) -> str:
    """Solve (I + R Rᵀ) a = t by conjugate gradients (Hestenes and Stiefel 1952); R Rᵀ is never formed.

    All sequences of a batch take steps at once, of sizes of their own; one that has converged is left as it
    is. The condition number is κ <= 1 + n / λ: 13 up to 180 chunks, 35 for 500. The residual falls to
    `TOLERANCE` of the right-hand side within ½ √κ ln(2 √κ / `TOLERANCE`) iterations, 33 and 55, after which
    the loop ends in any case.

    Returns:
        (b, n) a.
    """
    column = graph("Unsqueeze", scales, graph.integers(2))
    right = graph("Unsqueeze", targets, graph.integers(1))
    start = graph("Mul", right, graph.scalar(0))
    squared = _squared(graph, right, right, keepdims=1)  # (b, 1, 1)
    outside = {
        "rows": graph("Mul", mapped, column),
        "columns": graph("Transpose", graph("Mul", centred, column), perm=[0, 2, 1]),
        "enough": graph("Mul", squared, graph.scalar(TOLERANCE**2)),
    }
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
    return graph("Squeeze", "solved_weights", graph.integers(1))


def _iteration(
    graph: _Graph, state: Sequence[str], *, rows: str, columns: str, enough: str
) -> onnx.GraphProto:
    """One step of conjugate gradients, for as long as one sequence of the batch needs it."""
    body = graph.inner()
    zero, one = graph.scalar(0), graph.scalar(1)
    weights, residual, direction, squared = state
    product = body("MatMul", body("MatMul", direction, rows), columns)
    product = body("Add", product, direction, output="product")
    curvature = _squared(body, direction, product, keepdims=1)
    # A sequence that has converged takes steps of length 0 / 1 while it waits for its batch-mates.
    active = body("Greater", squared, enough)
    step = body("Div", body("Where", active, squared, zero), body("Where", active, curvature, one))
    body("Add", weights, body("Mul", step, direction), output="next_weights")
    body("Sub", residual, body("Mul", step, product), output="next_residual")
    body("Identity", _squared(body, "next_residual", "next_residual", keepdims=1), output="next_squared")
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
