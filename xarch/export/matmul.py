"""Products of few rows as MatMul with the weight's columns apart: the form that other tools quantise.

Without repacked weights it is also a third faster for a single row than ``Gemm(transB=1)``. A weight that is also
looked up by rows (a tied embedding) stays as it is: the other form would store it twice.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

COLUMNS = "_columns"
"""Ends the name of a weight that is stored transposed."""


def gemm_to_matmul(model: ir.Model) -> int:
    """Rewrite ``Gemm(x, W, bias, transB=1)`` into ``MatMul(x, Wᵀ) [+ bias]`` in place; views of x and of the result
    that only join and split its leading dimensions are dropped. Return the number of rewrites."""
    graph = model.graph
    columns: dict[ir.Value, ir.Value] = {}
    done = 0
    for node in list(graph):
        if not _rewritable(node):
            continue
        x, weight = node.inputs[0], node.inputs[1]
        assert x is not None
        assert weight is not None
        if weight not in columns:
            columns[weight] = _columns(graph, weight)
        last = _split_again(node, x)
        source = node if last is node else x.producer()
        assert source is not None
        product = ir.node("MatMul", [source.inputs[0], columns[weight]])
        nodes = [product]
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            nodes.append(ir.node("Add", [product.outputs[0], node.inputs[2]]))
        output = last.outputs[0]
        for one in nodes:
            one.outputs[0].shape, one.outputs[0].type = output.shape, output.type
        ir.convenience.replace_nodes_and_values(graph, last, [last], nodes, [output], [nodes[-1].outputs[0]])
        if last is not node:
            graph.remove(node, safe=True)
        done += 1
    RemoveUnusedNodesPass()(model)
    return done


def _rewritable(node: ir.Node) -> bool:
    if node.op_type != "Gemm" or node.domain != "":
        return False
    numbers = {name: a.value for name, a in node.attributes.items()}
    if numbers.pop("transB", 0) != 1 or any(v != (1 if k in ("alpha", "beta") else 0) for k, v in numbers.items()):
        return False
    weight = node.inputs[1]
    constant = weight is not None and weight.is_initializer() and weight.const_value is not None
    return constant and all(use.node.op_type == "Gemm" and use.idx == 1 for use in weight.uses())  # type: ignore[union-attr]


def _split_again(node: ir.Node, x: ir.Value) -> ir.Node:
    """Return the Reshape that undoes the one before a product, or the product."""
    before, uses = x.producer(), list(node.outputs[0].uses())
    if before is None or before.op_type != "Reshape" or len(uses) != 1 or uses[0].node.op_type != "Reshape":
        return node
    given, found = before.inputs[0], uses[0].node.outputs[0]
    if given is None or given.shape is None or found.shape is None or node.outputs[0].is_graph_output():
        return node
    if list(given.shape)[:-1] != list(found.shape)[:-1] or node.inputs[1] is None or node.inputs[1].shape is None:
        return node
    rows, width = list(node.inputs[1].shape)
    return uses[0].node if (given.shape[-1], found.shape[-1]) == (width, rows) else node


def _columns(graph: ir.Graph, weight: ir.Value) -> ir.Value:
    """Return the initialiser with the transpose of a matrix, computed when it is read."""
    tensor = weight.const_value
    assert tensor is not None
    name, shape = f"{weight.name}{COLUMNS}", ir.Shape(list(reversed(tensor.shape.numpy())))
    held = ir.LazyTensor(
        lambda: ir.tensor(np.ascontiguousarray(tensor.numpy().T)), dtype=tensor.dtype, shape=shape, name=name
    )
    made = ir.Value(name=name, shape=shape, type=weight.type or ir.TensorType(tensor.dtype), const_value=held)
    graph.register_initializer(made)
    return made
