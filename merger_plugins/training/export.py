"""A checkpoint as a model folder with an ONNX graph, checked against the network that it was made from.

The graph has the signature of `merger_plugins.mergers.graphs`: ``vectors`` (b, n, d) float32, ``mask`` (b, n)
bool and ``masses`` (b, n) float32 in, ``merged`` (b, d) float32 out. It computes in float32 whatever its
weights are stored as, as processors are slow in float16: narrow weights are widened when a runtime loads the
graph, by operators that every runtime has. The precision ``mixed`` is for GPUs: matrix products, which are
nearly all of the work, take float16, and everything between them float32.
"""

from __future__ import annotations

import logging
import math
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from merger_plugins._artefact import CARD, write_artefact
from merger_plugins._session import CPU, SessionConfig, create_session
from merger_plugins.errors import ArtefactError, InputError
from merger_plugins.mergers.graphs import MODEL

if TYPE_CHECKING:
    import os

OPSET, IR_VERSION = 20, 10
"""The oldest runtime of the extra ``cpu``, ONNX Runtime 1.20, knows both."""

LARGEST = 2_000_000_000
"""Bytes of a graph in one file: a protobuf message ends at 2 GiB."""

BLOCK = 64
"""Up to so many neighbours share the scale of their 8-bit weights."""

NARROWED = 1_024
"""Arrays of fewer numbers stay in float32."""


@dataclass(frozen=True)
class Precision:
    """How weights are stored and multiplied, and how far the graph may then be from the network.

    Attributes:
        name: ``"float32"``, ``"float16"``, ``"mixed"`` or ``"int8"``.
        difference: largest accepted difference of a number of a merged vector.
        cosine: smallest accepted cosine of a merged vector with the network's.
    """

    name: str
    difference: float
    cosine: float


PRECISIONS = {
    "float32": Precision("float32", 1e-5, 1 - 1e-6),
    "float16": Precision("float16", 2e-3, 0.9999),
    "mixed": Precision("mixed", 2e-3, 0.9999),
    "int8": Precision("int8", math.inf, 0.999),
}


@dataclass(frozen=True)
class Parity:
    """How far a graph is from the network: over sequences of 1 to `longest` vectors, ragged in batches.

    Attributes:
        sequences: how many were compared.
        longest: vectors of the longest.
        difference: largest difference of a number of a merged vector.
        cosine: smallest cosine.
    """

    sequences: int
    longest: int
    difference: float
    cosine: float


@dataclass(frozen=True)
class Provenance:
    """Where a network came from, as its folder's config and card tell it.

    Attributes:
        name: of the model.
        fingerprint: of the checkpoint.
        embedder: the embedding model whose vectors it merges; None where unknown.
        licence: an SPDX name; None where unknown.
    """

    name: str
    fingerprint: str
    embedder: str | None = None
    licence: str | None = None


def export_network(
    network: nn.Module,
    folder: str | os.PathLike[str],
    *,
    dimension: int,
    window: int | None,
    source: Provenance,
    precision: str = "float32",
    sample: NDArray[np.float32] | None = None,
) -> Path:
    """Write a network as a model folder that `load_merger` reads as an `OnnxMerger`; returns the folder.

    Args:
        network: takes ``vectors``, ``mask`` and ``masses`` as the graph does, in that order, and gives
            ``merged``; on the CPU, in float32 and not in training.
        folder: where.
        dimension: d.
        window: how many vectors one merge takes at the most; None for any number.
        source: where it came from.
        precision: a name of `PRECISIONS`.
        sample: (m, d) chunk vectors to compare on; None for random ones.

    Raises:
        InputError: there is no such precision.
        ArtefactError: the network cannot be exported, its graph differs from it by more than the precision
            allows, or the folder holds other files.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; it is one of {', '.join(PRECISIONS)}.")
    model = narrowed(to_graph(network, dimension, window), precision)
    check_structure(model)
    data = serialised(model)
    parity = compare(network, data, dimension=dimension, window=window, sample=sample)
    allowed = PRECISIONS[precision]
    if not (parity.difference <= allowed.difference and parity.cosine >= allowed.cosine):  # NaN is neither
        raise ArtefactError(
            f"The {precision} graph of {source.name} is not the network: merged vectors differ by up to "
            f"{parity.difference:.1e}, with cosines from {parity.cosine:.6f} on, where "
            f"{allowed.difference:.0e} and {allowed.cosine} are allowed. "
            + (
                "A network whose merges depend on padding cannot be exported."
                if precision == "float32"
                else "Choose a wider precision."
            )
        )
    parameters = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    config = {
        "kind": "onnx",
        "dimension": dimension,
        "window": window,
        "normalises": True,
        "precision": precision,
        "license": source.licence,
        "source": {"name": source.name, "fingerprint": source.fingerprint, "embedder": source.embedder},
    }
    card = _card(config, parity, parameters)
    return write_artefact(folder, config, {MODEL: data, CARD: card.encode()}).path


def to_graph(network: nn.Module, dimension: int, window: int | None) -> onnx.ModelProto:
    """The float32 graph of a network, traced by torch's exporter; b and n stay open.

    Raises:
        ArtefactError: the network cannot be traced so.
    """
    count, places = 3, min(window or 5, 5)
    mask = torch.arange(places) < torch.tensor([[places], [places - 1], [1]])
    example = (torch.randn(count, places, dimension), mask, torch.rand(count, places) + 0.5)
    axes = {0: "b", 1: "n"}
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                network,
                example,
                dynamo=True,
                input_names=["vectors", "mask", "masses"],
                output_names=["merged"],
                dynamic_shapes=(axes, axes, axes),
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises what it meets, of many kinds
        raise ArtefactError(f"torch cannot export the network as an ONNX graph: {error}") from error
    assert program is not None  # only where a file name was passed
    model: onnx.ModelProto = program.model_proto
    # What is left of the tracing: lines of code and paths of the machine it ran on.
    model.doc_string = model.graph.doc_string = ""
    model.producer_name, model.producer_version = "merger_plugins", ""
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    for item in [*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer]:
        item.doc_string = ""
        del item.metadata_props[:]
    model.ir_version = min(model.ir_version, IR_VERSION)
    return model


def narrowed(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """The same graph with its large float32 weights stored in a narrower type.

    ``mixed`` multiplies matrices in float16, too. 8-bit weights come in blocks of up to `BLOCK` neighbours on
    the last axis, each with a float32 scale of its own: the largest of a block is 127.
    """
    if precision == "float32":
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    kept, nodes = [], []
    helper, types = onnx.helper, onnx.TensorProto

    def constant(name: str, array: NDArray[Any]) -> str:
        kept.append(onnx.numpy_helper.from_array(array, name))
        return name

    def node(operator: str, *inputs: str, output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    for tensor in graph.initializer:
        name = tensor.name
        if tensor.data_type != types.FLOAT or np.prod(tensor.dims) < NARROWED:
            kept.append(tensor)
            continue
        array = onnx.numpy_helper.to_array(tensor)
        block = math.gcd(array.shape[-1], BLOCK)
        if precision in ("float16", "mixed") or block < 8:
            node("Cast", constant(f"{name}.half", array.astype(np.float16)), output=name, to=types.FLOAT)
            continue
        blocks = array.reshape(-1, block)
        scales = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
        rounded = np.rint(blocks / np.where(scales > 0, scales, 1)).astype(np.int8)
        wide = node("Cast", constant(f"{name}.values", rounded), output=f"{name}.wide", to=types.FLOAT)
        scaled = node("Mul", wide, constant(f"{name}.scales", scales), output=f"{name}.scaled")
        node("Reshape", scaled, constant(f"{name}.shape", np.array(array.shape, np.int64)), output=name)
    small = {tensor.name for tensor in kept}
    halves = {item.output[0]: item.input[0] for item in nodes if precision == "mixed"}
    widened = set(halves)
    for item in graph.node:
        if precision != "mixed" or item.op_type != "MatMul" or small & set(item.input):
            nodes.append(item)
            continue
        for wide in item.input:
            if wide not in halves:
                halves[wide] = node("Cast", wide, output=f"{wide}.narrow", to=types.FLOAT16)
        (output,) = item.output
        product = node("MatMul", *(halves[wide] for wide in item.input), output=f"{output}.product")
        node("Cast", product, output=output, to=types.FLOAT)
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)
    read = {name for item in _nodes(graph) for name in item.input}
    unread = [item for item in graph.node if item.output[0] in widened and item.output[0] not in read]
    for item in unread:
        graph.node.remove(item)
    return result


def check_structure(model: onnx.ModelProto) -> None:
    """Check that any runtime of opset `OPSET` can run a graph, from one file and without float64.

    Raises:
        ArtefactError: it cannot, with every reason.
    """
    problems = []
    for opset in model.opset_import:
        if opset.domain not in ("", "ai.onnx"):
            problems.append(f"it uses operators of {opset.domain}")
        elif opset.version > OPSET:
            problems.append(f"it has opset {opset.version}, above {OPSET}")
    if model.functions:
        problems.append(f"it has functions of its own: {model.functions[0].name}")
    for node in _nodes(model.graph):
        if node.domain not in ("", "ai.onnx"):
            problems.append(f"{node.op_type} is an operator of {node.domain}")
        if node.op_type == "Cast" and onnx.TensorProto.DOUBLE in [a.i for a in node.attribute]:
            problems.append(f"{node.name} computes in float64")
    for tensor in _tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            problems.append(f"{tensor.name} is kept outside the file")
        if tensor.data_type == onnx.TensorProto.DOUBLE:
            problems.append(f"{tensor.name} is float64")
    if not problems:
        try:
            onnx.checker.check_model(model, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
            problems.append(str(error))
    if problems:
        raise ArtefactError(f"The exported graph cannot be used: {'; '.join(problems)}.")


def compare(
    network: nn.Module,
    data: bytes,
    *,
    dimension: int,
    window: int | None,
    sample: NDArray[np.float32] | None = None,
) -> Parity:
    """Run a graph in ragged, padded batches, and the network on each sequence alone.

    Args:
        network: as `export_network`.
        data: the ONNX file.
        dimension: d.
        window: the longest sequence compared; None for 24.
        sample: (m, d) vectors to draw from; None for random ones about a common direction, as those of
            embedding models are.
    """
    rng = np.random.default_rng(0)
    longest = window or 24
    if sample is None:
        centre = rng.standard_normal(dimension)
        sample = (centre + 1.5 * rng.standard_normal((256, dimension))).astype(np.float32)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, MODEL)
        path.write_bytes(data)
        session = create_session(path, SessionConfig(providers=(CPU,), threads=1))
        found, expected = [], []
        for lengths in _grid(longest):
            vectors, mask, masses = _batch(lengths, sample, rng)
            found.append(session.run(["merged"], {"vectors": vectors, "mask": mask, "masses": masses})[0])
            expected.append(_alone(network, lengths, vectors, masses))
        del session
    ours, theirs = np.concatenate(found).astype(np.float64), np.concatenate(expected).astype(np.float64)
    cosines = np.sum(ours * theirs, axis=1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    return Parity(len(ours), longest, float(np.abs(ours - theirs).max()), float(cosines.min()))


def serialised(model: onnx.ModelProto) -> bytes:
    """The bytes of the ONNX file; equal graphs give equal bytes.

    Raises:
        ArtefactError: there are too many for one file.
    """
    size = model.ByteSize()
    if size > LARGEST:
        raise ArtefactError(
            f"The graph has {size / 1e9:.1f} GB, and one ONNX file holds {LARGEST / 1e9:.0f}. "
            "Export it as float16 or int8."
        )
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _grid(longest: int) -> Iterator[list[int]]:
    """Lengths of the sequences of each batch: one of them, equal ones, ragged ones."""
    some = sorted({1, 2, 3, longest // 2, longest - 1, longest} - {0})
    for length in some:
        yield [length]
        yield [length, length]
    yield some
    yield [longest, *some[::-1], 1, longest]


def _batch(
    lengths: Sequence[int], sample: NDArray[np.float32], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]:
    """Vectors (b, n, d), mask and masses (b, n); no two sequences alike, and what is padded is not zero."""
    shape = (len(lengths), max(lengths))
    mask = np.arange(shape[1]) < np.array(lengths)[:, None]
    vectors = sample[rng.integers(len(sample), size=shape)].astype(np.float32)
    return vectors, mask, rng.uniform(1, 100, shape).astype(np.float32)


def _alone(
    network: nn.Module, lengths: Sequence[int], vectors: NDArray[np.float32], masses: NDArray[np.float32]
) -> NDArray[np.float32]:
    rows = []
    with torch.no_grad():
        for row, length in enumerate(lengths):
            one = torch.from_numpy(vectors[row : row + 1, :length])
            rows.append(
                network(
                    one,
                    torch.ones(1, length, dtype=torch.bool),
                    torch.from_numpy(masses[row : row + 1, :length]),
                )
            )
    merged: NDArray[np.float32] = torch.cat(rows).numpy()
    return merged


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from _nodes(inner)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in [attribute.g, *attribute.graphs]:
                yield from _tensors(inner)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that it does not find and on its own older interfaces."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _card(config: dict[str, Any], parity: Parity, parameters: int) -> str:
    source = config["source"]
    licence = f"license: {config['license'].lower()}\n" if config["license"] else ""
    return f"""---
library_name: merger-plugins
{licence}tags: [embeddings, retrieval, onnx]
---
# {source["name"]} as an ONNX graph

A trained network that merges the chunk vectors of a document or conversation, in reading order, into one unit
vector that a raw query vector of the same embedding model can search.

| | |
|---|---|
| made from | `{source["name"]}`, fingerprint `{source["fingerprint"]}` |
| embedding model | {source["embedder"] or "not recorded"} |
| licence | {config["license"] or "not recorded"} |
| dimension d | {config["dimension"]} |
| vectors in one merge | {config["window"] or "any number"} |
| numbers in the file | {parameters:,}, weights as {config["precision"]} |
| inputs | `vectors` (b, n, d) float32, `mask` (b, n) bool, `masses` (b, n) float32 |
| output | `merged` (b, d) float32, unit length |
| against torch | {parity.sequences} sequences of 1 to {parity.longest} vectors in ragged batches: largest \
difference of a number {parity.difference:.1e}, smallest cosine {parity.cosine:.6f} |

```python
from merger_plugins import load_merger

load_merger("this-folder").merge(vectors)  # (n, {config["dimension"]}) -> ({config["dimension"]},)
```
"""
