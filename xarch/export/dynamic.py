"""8-bit matrix products whose inputs are quantised while they run, for runtimes on CPUs.

Each product measures the range of its input (``DynamicQuantizeLinear``), multiplies integers (``MatMulInteger``) and
scales the sums back. Ranges fit every input, so attention keeps its precision where calibrated ranges clip outliers;
the price is a pass over each input. Weights of convolutions are stored in 8 bits and multiplied in float32, since
integer convolutions with measured ranges are several times slower.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from xarch.export.quantise import SINGLE, Quantiser, output_axis, products, symmetric


def quantise_dynamically(model: ir.Model) -> int:
    """Rewrite ``model`` in place; its inputs and outputs stay float32. Return the number of products with 8-bit
    inputs."""
    made = Quantiser(model.graph)
    measured: dict[ir.Value, list[ir.Value]] = {}
    done = 0
    for node in products(model):
        weight = node.inputs[1]
        assert weight is not None
        if node.op_type == "Conv":
            made.quantise_weight(node, weight, output_axis(node))
        else:
            _rewrite(model.graph, made, node, measured)
            done += 1
    made.quantise_tables()
    RemoveUnusedNodesPass()(model)
    return done


def _rewrite(graph: ir.Graph, made: Quantiser, node: ir.Node, measured: dict[ir.Value, list[ir.Value]]) -> None:
    x, weight = node.inputs[0], node.inputs[1]
    assert x is not None
    assert weight is not None
    assert weight.const_value is not None
    if x not in measured:
        down = ir.node("DynamicQuantizeLinear", [x], num_outputs=3)
        kinds = (ir.DataType.UINT8, SINGLE, ir.DataType.UINT8)
        for part, kind, name in zip(down.outputs, kinds, ("8bit", "scale", "zero"), strict=True):
            part.name, part.type = f"{x.name}_dynamic_{name}", ir.TensorType(kind)
        down.outputs[0].shape = x.shape
        graph.insert_before(node, down)
        measured[x] = list(down.outputs)
    small, scale_x, zero = measured[x]
    axis = output_axis(node)
    numbers, scale = symmetric(weight.const_value.numpy(), axis)
    if axis == 0:
        numbers = np.ascontiguousarray(numbers.T)
    kept = made.constant(f"{weight.name}_columns", numbers)
    scale_w = made.constant(f"{weight.name}_columns_scale", scale)
    zero_w = made.constant(f"{weight.name}_columns_zero", np.zeros((), np.int8))
    output = node.outputs[0]
    product = ir.node("MatMulInteger", [small, kept, zero, zero_w])
    cast = ir.node("Cast", [product.outputs[0]], attributes={"to": int(SINGLE)})
    factor = ir.node("Mul", [scale_x, scale_w])
    scaled = ir.node("Mul", [cast.outputs[0], factor.outputs[0]])
    nodes = [product, cast, factor, scaled]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        nodes.append(ir.node("Add", [scaled.outputs[0], node.inputs[2]]))
    for i, one in enumerate(nodes):
        kind = ir.DataType.INT32 if one is product else SINGLE
        one.outputs[0].type, one.outputs[0].name = ir.TensorType(kind), f"{output.name}_{i}"
        one.outputs[0].shape = scale_w.shape if one is factor else output.shape
    graph.insert_before(node, nodes)
    last = nodes[-1].outputs[0]
    if output.is_graph_output():
        output.name, last.name = f"{output.name}_float", output.name
        graph.outputs[list(graph.outputs).index(output)] = last
    output.replace_all_uses_with(last)
    graph.remove(node, safe=True)
