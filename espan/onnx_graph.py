"""Writing a PyTorch module as an ONNX graph.

It covers what the networks of `espan.models` consist of, needs only the package onnx, and takes
milliseconds.  `torch.onnx.export` needs onnxscript and about ten seconds, and writes the paths of
source files into the model.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import onnx
import torch
import torch.fx
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from espan.models.network import cut, unshuffled

_TYPES = {torch.float32: TensorProto.FLOAT, torch.float16: TensorProto.FLOAT16}
_BINARY = {operator.add: "Add", operator.sub: "Sub", operator.mul: "Mul"}
_UNARY = {torch.tanh: "Tanh", F.relu: "Relu"}


def model(
    module: nn.Module,
    *,
    dtype: torch.dtype,
    image_dtype: torch.dtype,
    input_shape: list[int | str],
    output_shape: list[int | str],
    opset: int,
    metadata: Mapping[str, str],
) -> onnx.ModelProto:
    """The ONNX model of a module with one tensor as its input and one as its result.

    Args:
        module: convolutions, and the functions handled by `_Graph.call`.
        dtype: of the module's weights; numbers in its code take it too.
        image_dtype: of input and result; each is torch.float32 or torch.float16.
        input_shape, output_shape: a name is a dimension of any size.
        opset: of the operators.
        metadata: added to the model.

    Raises NotImplementedError, with the name, for an operation that cannot be written.
    """
    traced = torch.fx.symbolic_trace(module)
    graph = _Graph(traced, dtype)
    for node in traced.graph.nodes:
        graph.add(node)
    domain = helper.make_opsetid("", opset)
    written = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "espan",
            [helper.make_tensor_value_info("input", _TYPES[image_dtype], input_shape)],
            [helper.make_tensor_value_info("output", _TYPES[image_dtype], output_shape)],
            list(graph.constants.values()),
        ),
        opset_imports=[domain],
        # Not the newest: other programs refuse versions that they do not know.
        ir_version=helper.find_min_ir_version_for([domain]),
        producer_name="espan",
    )
    helper.set_model_props(written, dict(metadata))
    onnx.checker.check_model(written, full_check=True)
    return written


class _Graph:
    """The ONNX nodes and constants for the nodes of a traced module."""

    def __init__(self, traced: torch.fx.GraphModule, dtype: torch.dtype) -> None:
        self.traced = traced
        self.dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.names: dict[torch.fx.Node, str] = {}
        (output,) = (node for node in traced.graph.nodes if node.op == "output")
        self.last = output.args[0]

    def add(self, node: torch.fx.Node) -> None:
        name = "output" if node is self.last else node.name
        if node.op == "placeholder":
            name = "input"
        elif node.op == "get_attr":
            self.constant(name, operator.attrgetter(str(node.target))(self.traced))
        elif node.op == "call_module":
            self.convolution(name, node)
        elif node.op != "output":
            self.call(name, node)
        self.names[node] = name

    def call(self, name: str, node: torch.fx.Node) -> None:
        target: Any = node.target
        arguments: Any = node.args
        if target in _BINARY:
            self.node(_BINARY[target], [self.operand(value) for value in arguments], name)
        elif target in _UNARY:
            self.node(_UNARY[target], [self.operand(arguments[0])], name)
        elif target is F.silu:  # opset 24 has it as one operator
            x = self.operand(arguments[0])
            self.node("Sigmoid", [x], f"{name}_sigmoid")
            self.node("Mul", [x, f"{name}_sigmoid"], name)
        elif target is F.mish:  # not every runtime has it as one operator
            x = self.operand(arguments[0])
            self.node("Softplus", [x], f"{name}_softplus")
            self.node("Tanh", [f"{name}_softplus"], f"{name}_tanh")
            self.node("Mul", [x, f"{name}_tanh"], name)
        elif target is unshuffled:
            self.unshuffle(name, self.operand(arguments[0]), arguments[1])
        elif target is cut:
            result, image = (self.operand(value) for value in arguments[:2])
            scale = arguments[2]
            self.node("Shape", [image], f"{name}_size", start=2)
            self.node("Mul", [f"{name}_size", self.integers(scale, scale)], f"{name}_end")
            ends = [self.integers(0, 0), f"{name}_end", self.integers(2, 3)]
            self.node("Slice", [result, *ends], name)
        elif target is torch.cat:
            parts = [self.operand(part) for part in arguments[0]]
            self.node("Concat", parts, name, axis=node.kwargs["dim"])
        elif target is F.pixel_shuffle:
            x, scale = self.operand(arguments[0]), arguments[1]
            self.node("DepthToSpace", [x], name, blocksize=scale, mode="CRD")
        elif target == "to":
            self.node("Cast", [self.operand(arguments[0])], name, to=_TYPES[arguments[1]])
        else:
            raise NotImplementedError(f"no ONNX operator is known for {target} in {node.name}")

    def unshuffle(self, name: str, x: str, u: int) -> None:
        """Extend by reflection to a multiple of u, then as F.pixel_unshuffle."""
        self.node("Shape", [x], f"{name}_size", start=2)
        self.node("Neg", [f"{name}_size"], f"{name}_minus")
        self.node("Mod", [f"{name}_minus", self.integers(u, u)], f"{name}_missing")
        pads = [self.integers(*[0] * 6), f"{name}_missing"]
        self.node("Concat", pads, f"{name}_pads", axis=0)
        self.node("Pad", [x, f"{name}_pads"], f"{name}_extended", mode="reflect")
        self.node("SpaceToDepth", [f"{name}_extended"], f"{name}_blocks", blocksize=u)
        # Its channels are ordered (dy, dx, colour), those of pixel_unshuffle (colour, dy, dx).
        order = self.integers(*torch.arange(3 * u * u).view(-1, 3).T.flatten().tolist())
        self.node("Gather", [f"{name}_blocks", order], name, axis=1)

    def integers(self, *values: int) -> str:
        name = "integers_" + "_".join(map(str, values))
        self.constant(name, torch.tensor(values))
        return name

    def convolution(self, name: str, node: torch.fx.Node) -> None:
        path = str(node.target)
        conv = self.traced.get_submodule(path)
        if not isinstance(conv, nn.Conv2d):
            raise NotImplementedError(f"{path} is a {type(conv).__name__}, not a plain convolution")
        self.constant(f"{path}.weight", conv.weight)
        inputs = [self.operand(node.args[0]), f"{path}.weight"]
        if conv.bias is not None:
            self.constant(f"{path}.bias", conv.bias)
            inputs.append(f"{path}.bias")
        padding: Any = conv.padding
        self.node(
            "Conv",
            inputs,
            name,
            kernel_shape=conv.kernel_size,
            pads=[*padding, *padding],
            strides=conv.stride,
            dilations=conv.dilation,
            group=conv.groups,
        )

    def operand(self, value: Any) -> str:
        """The name of a node's result, or of a constant for a number."""
        if isinstance(value, torch.fx.Node):
            return self.names[value]
        name = f"constant_{value}"
        self.constant(name, torch.tensor(value, dtype=self.dtype))
        return name

    def constant(self, name: str, tensor: Tensor) -> None:
        self.constants[name] = numpy_helper.from_array(tensor.detach().cpu().numpy(), name)

    def node(self, operator_type: str, inputs: list[str], name: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(operator_type, inputs, [name], name=name, **attributes))
