"""8-bit integers for weights and the inputs they are multiplied with, as QuantizeLinear and DequantizeLinear.

Weights are symmetric with a scale per output channel, inputs asymmetric with the calibrated range, biases
32-bit with the product of both scales (gemmlowp's scheme, arXiv 1712.05877, section 2). Everything between products
stays float32: an accelerator fuses what it can, and a runtime that fuses nothing computes the same. Look-up tables
(grids, embeddings) are also stored in 8 bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from xarch.export.lowering import fold_layout

SINGLE = ir.DataType.FLOAT
TABLE = 1024
"""Number of elements from which a table is stored in 8 bits."""

SUMS = 1 << 17
"""Number of elements up to which a matrix is looked at, whether it only adds up."""

Range = tuple[float, float]


def products(model: ir.Model) -> list[ir.Node]:
    """Return the nodes that multiply a computed value by a constant weight."""
    fold_layout(model)
    return [node for node in model.graph if _is_product(node)]


def quantise(model: ir.Model, ranges: Mapping[str, Range]) -> int:
    """Rewrite ``model`` in place; its inputs and outputs stay float32.

    Args:
        ranges: name of a weight -> (minimum, maximum) of the values it is multiplied with.

    Returns:
        The number of products with 8-bit inputs.

    Raises:
        KeyError: a weight has no range.
    """
    found = products(model)
    made = Quantiser(model.graph)
    for node in found:
        x, weight = node.inputs[0], node.inputs[1]
        assert x is not None
        assert weight is not None
        assert weight.name is not None
        scale_x = made.quantise_input(node, x, ranges[weight.name])
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        scale_w = made.quantise_weight(node, weight, output_axis(node), _least_scale(bias, scale_x))
        if bias is not None:
            made.quantise_bias(node, bias, scale_x * scale_w)
    made.quantise_tables()
    RemoveUnusedNodesPass()(model)
    return len(found)


def _is_product(node: ir.Node) -> bool:
    if node.domain != "" or node.op_type not in ("Gemm", "MatMul", "Conv"):
        return False
    x, weight = node.inputs[0], node.inputs[1]
    if x is None or weight is None or x.const_value is not None or weight.const_value is None:
        return False
    scaled = any(node.attributes[k].as_float() != 1 for k in ("alpha", "beta") if k in node.attributes)
    return weight.dtype == SINGLE and len(weight.const_value.shape) >= 2 and not scaled and not _adds_up(weight)


def _adds_up(weight: ir.Value) -> bool:
    """Whether a matrix consists of zeros and ones: sums of what 8 bits would round, and nothing that was learned."""
    assert weight.const_value is not None
    if weight.const_value.size > SUMS:
        return False
    numbers = weight.const_value.numpy()
    return bool(((numbers == 0) | (numbers == 1)).all() and numbers.any())


def output_axis(node: ir.Node) -> int:
    """Return the output-channel axis of a weight."""
    weight = node.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    rank = len(weight.const_value.shape)
    transposed = "transB" in node.attributes and node.attributes["transB"].as_int() == 1
    return 0 if node.op_type == "Conv" or transposed else rank - 1


class Quantiser:
    """Creates quantised versions of values, each once."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.inputs: dict[ir.Value, tuple[ir.Value, float]] = {}
        self.weights: dict[tuple[ir.Value, int], tuple[np.ndarray, np.ndarray]] = {}
        self.readers: Counter[tuple[ir.Value, int]] = Counter()

    def quantise_input(self, node: ir.Node, x: ir.Value, seen: Range) -> float:
        """Quantise the input x of ``node`` to 8 bits and return the scale."""
        if x not in self.inputs:
            low, high = min(seen[0], 0.0), max(seen[1], 0.0)
            scale = float(np.float32(max(high - low, 1e-8) / 255))
            zero = int(np.clip(round(-low / scale), 0, 255))
            constants = [
                self.constant(f"{x.name}_scale", np.float32(scale)),
                self.constant(f"{x.name}_zero", np.uint8(zero)),
            ]
            down = ir.node("QuantizeLinear", [x, *constants])
            down.outputs[0].type, down.outputs[0].shape = ir.TensorType(ir.DataType.UINT8), x.shape
            up = ir.node("DequantizeLinear", [down.outputs[0], *constants])
            up.outputs[0].type, up.outputs[0].shape = ir.TensorType(SINGLE), x.shape
            down.outputs[0].name, up.outputs[0].name = f"{x.name}_8bit", f"{x.name}_restored"
            self.graph.insert_before(node, [down, up])
            self.inputs[x] = up.outputs[0], scale
        restored, scale = self.inputs[x]
        node.replace_input_with(0, restored)
        return scale

    def quantise_weight(
        self, node: ir.Node, weight: ir.Value, axis: int, least: np.ndarray | float = 0.0
    ) -> np.ndarray:
        """Store a weight in 8 bits and return the scale of every output channel, none of them below ``least``."""
        if (weight, axis) not in self.weights:
            assert weight.const_value is not None
            self.weights[weight, axis] = symmetric(weight.const_value.numpy(), axis, least)
        numbers, scale = self.weights[weight, axis]
        # Of a weight that two products read onnxruntime makes two of one name where it needs exact sums. A file of
        # weights holds equal bytes once.
        before = self.readers[weight, axis]
        self.readers[weight, axis] += 1
        name = f"{weight.name}_axis{axis}" + (f"_{before}" if before else "")
        node.replace_input_with(1, self._stored(name, numbers, scale, axis, node))
        return scale

    def quantise_bias(self, node: ir.Node, bias: ir.Value, scale: np.ndarray) -> None:
        """Store a bias as integer multiples of the scale of the products it is added to."""
        if bias.const_value is None or bias.const_value.numpy().shape != scale.shape:
            return
        numbers = np.round(bias.const_value.numpy() / scale)
        numbers = numbers.clip(-(2**31) + 1, 2**31 - 1).astype(np.int32)
        restored = self._stored(f"{bias.name}_{node.outputs[0].name}", numbers, scale.astype(np.float32), 0, node)
        node.replace_input_with(2, restored)

    def quantise_tables(self) -> None:
        """Quantise look-up tables: images of GridSample per channel, rows of Gather per column."""
        for value in list(self.graph.initializers.values()):
            if value.dtype != SINGLE or value.const_value is None or value.const_value.size < TABLE:
                continue
            readers = [use for use in value.uses() if use.idx == 0 and use.node.op_type in ("GridSample", "Gather")]
            for use in readers:
                assert value.const_value is not None
                rows = use.node.op_type == "Gather"
                axis = len(value.const_value.shape) - 1 if rows else 1
                bare = rows and use.node.outputs[0].is_graph_output()
                if bare or (rows and (len(value.const_value.shape) < 2 or _axis(use.node) != 0)):
                    continue
                numbers, scale = symmetric(value.const_value.numpy(), axis)
                if rows:
                    self._gather_small(use.node, f"{value.name}_axis{axis}", numbers, scale)
                else:
                    use.node.replace_input_with(
                        0, self._stored(f"{value.name}_axis{axis}", numbers, scale, axis, use.node)
                    )

    def _gather_small(self, node: ir.Node, name: str, numbers: np.ndarray, scale: np.ndarray) -> None:
        """Gather 8-bit rows and dequantise only those."""
        rows = node.outputs[0]
        assert rows.shape is not None
        node.replace_input_with(0, self.constant(name, numbers))
        readers = list(rows.uses())
        up = ir.node(
            "DequantizeLinear",
            [
                rows,
                self.constant(f"{name}_scale", scale),
                self.constant(f"{name}_zero", np.zeros(scale.shape, np.int8)),
            ],
            attributes={"axis": len(rows.shape) - 1},
        )
        up.outputs[0].type, up.outputs[0].shape = ir.TensorType(SINGLE), rows.shape
        up.outputs[0].name = f"{rows.name}_restored"
        rows.type = ir.TensorType(ir.DataType.INT8)
        self.graph.insert_after(node, up)
        for use in readers:
            use.node.replace_input_with(use.idx, up.outputs[0])

    def _stored(self, name: str, numbers: np.ndarray, scale: np.ndarray, axis: int, before: ir.Node) -> ir.Value:
        """Add a quantised constant and the node that dequantises it."""
        parts = [
            self.constant(name, numbers),
            self.constant(f"{name}_scale", scale),
            self.constant(f"{name}_zero", np.zeros(scale.shape, numbers.dtype)),
        ]
        up = ir.node("DequantizeLinear", parts, attributes={"axis": axis})
        made = up.outputs[0]
        made.name, made.type, made.shape = f"{name}_restored", ir.TensorType(SINGLE), ir.Shape(numbers.shape)
        self.graph.insert_before(before, up)
        return made

    def constant(self, name: str, numbers: np.ndarray | np.generic) -> ir.Value:
        """Return an initialiser, shared by name."""
        if name not in self.graph.initializers:
            tensor = ir.tensor(np.asarray(numbers), name=name)
            made = ir.Value(
                name=name, shape=ir.Shape(numbers.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            self.graph.register_initializer(made)
        return self.graph.initializers[name]


def symmetric(weight: np.ndarray, axis: int, least: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return integers from -127 to 127 and the scale of every entry along ``axis``, none of them below ``least``."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.maximum(np.abs(weight).max(axis=others), 1e-12).astype(np.float32) / np.float32(127)
    scale = np.maximum(scale, least).astype(np.float32)
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    return np.round(weight / scale.reshape(shape)).clip(-127, 127).astype(np.int8), scale


def _least_scale(bias: ir.Value | None, scale_x: float) -> np.ndarray | float:
    """Return the scale of weights from which on a bias fits into 32 bits: a channel of no weights has a bias, too."""
    if bias is None or bias.const_value is None or len(bias.const_value.shape) != 1:
        return 0.0
    return np.asarray(np.abs(bias.const_value.numpy()) / (2.0**30 * scale_x))


def _axis(node: ir.Node) -> int:
    return node.attributes["axis"].as_int() if "axis" in node.attributes else 0
