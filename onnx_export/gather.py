"""``python -m onnx_export gather``: the graph that lays vectors on a device out as sequences.

::

    nodes    (N, d) float32      vectors of any length, any number of them
    places   (b, n) int64        which of them is where; any number where padded
    present  (b, n, 1) float32   1, and 0 where padded
    vectors  (b, n, d) float32   unit length, zero where padded

Operators that CUDA has, so that nothing leaves the device: LpNormalization is not among them.
"""

from pathlib import Path

import onnx
from onnx import TensorProto, helper

OPSET = 17
SMALLEST = 1e-30


def gather_graph() -> onnx.ModelProto:
    """The graph."""
    node = helper.make_node
    graph = helper.make_graph(
        [
            node("Gather", ["nodes", "places"], ["members"], axis=0),
            node("ReduceL2", ["members"], ["lengths"], axes=[-1], keepdims=1),
            node("Max", ["lengths", "smallest"], ["safe"]),
            node("Div", ["members", "safe"], ["units"]),
            node("Mul", ["units", "present"], ["vectors"]),
        ],
        "gather",
        [
            helper.make_tensor_value_info("nodes", TensorProto.FLOAT, ["N", "d"]),
            helper.make_tensor_value_info("places", TensorProto.INT64, ["b", "n"]),
            helper.make_tensor_value_info("present", TensorProto.FLOAT, ["b", "n", 1]),
        ],
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["b", "n", "d"])],
        [helper.make_tensor("smallest", TensorProto.FLOAT, [], [SMALLEST])],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="merger_plugins"
    )
    model.ir_version = 8
    onnx.checker.check_model(model, full_check=True)
    return model


def release(path: Path) -> Path:
    """Write it."""
    path.write_bytes(gather_graph().SerializeToString(deterministic=True))
    return path
