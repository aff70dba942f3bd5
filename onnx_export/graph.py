"""An ONNX graph, written node by node."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnx_export.quantise import Blocks

OPSET = 17
"""LayerNormalization came with 17; a newer set would only shut out older runtimes."""


class GraphBuilder:
    """Collects nodes and constants; every method returns the name of the value that it made."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def node(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Append one node with one output."""
        output = output or f"{operator}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: NDArray[Any] | np.generic) -> str:
        """Store an array under a name; the same name twice must mean the same array."""
        tensor = numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)), name)
        if self._constants.setdefault(name, tensor) != tensor:
            raise ValueError(f"Two different constants are named {name!r}.")
        return name

    def integers(self, *values: int) -> str:
        """A vector of int64, for shapes and axes."""
        return self.constant(f"integers_{'_'.join(map(str, values))}", np.array(values, np.int64))

    def dequantised(self, name: str, blocks: Blocks) -> str:
        """A matrix from its blocks; all inputs being constant, a runtime computes it once, at load."""
        values = self.node("Cast", self.constant(f"{name}.values", blocks.values), to=TensorProto.FLOAT)
        scales = self.node("Cast", self.constant(f"{name}.scales", blocks.scales), to=TensorProto.FLOAT)
        return self.node("Reshape", self.node("Mul", values, scales), self.integers(*blocks.shape))

    def model(
        self, name: str, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """The finished, checked model."""
        graph = helper.make_graph(self._nodes, name, inputs, outputs, list(self._constants.values()))
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=8,
            producer_name="merger_plugins/onnx_export",
        )
        onnx.checker.check_model(model, full_check=True)
        return model
