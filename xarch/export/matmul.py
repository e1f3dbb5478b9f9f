"""Products of few rows as MatMul with the weight's columns apart: the form that other tools quantise.

Without repacked weights it is also a third faster for a single row than ``Gemm(transB=1)``. A weight that is also
looked up by rows (a tied embedding) stays as it is: the other form would store it twice.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from xarch.export.lowering import ints
from xarch.export.views import static_shape

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
        last, source, before = _without_views(graph, node, x)
        product = ir.node("MatMul", [source, columns[weight]])
        nodes = [*before, product]
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            nodes.append(ir.node("Add", [product.outputs[0], node.inputs[2]]))
        output = last.outputs[0]
        shape = output.shape
        if last is node and shape is not None and source.shape is not None:
            shape = ir.Shape([*list(source.shape)[:-1], shape[-1]])
        for one in nodes[len(before) :]:
            one.outputs[0].shape, one.outputs[0].type = shape, output.type
        ir.convenience.replace_nodes_and_values(graph, last, [last], nodes, [output], [nodes[-1].outputs[0]])
        nodes[-1].outputs[0].shape = shape
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


def _without_views(graph: ir.Graph, node: ir.Node, x: ir.Value) -> tuple[ir.Node, ir.Value, list[ir.Node]]:
    """Return the last node that a product stands for, its input, and nodes that make this.

    A product takes any number of leading dimensions: a Reshape that joins them before it is not needed if another
    splits them again, or if nothing but a Reshape reads the result. One that splits them goes before the product,
    where another is anyway.
    """
    before, uses = x.producer(), list(node.outputs[0].uses())
    last_use = uses[0].node if uses else node
    plain: tuple[ir.Node, ir.Value, list[ir.Node]] = node, x, []
    if before is None or before.op_type != "Reshape" or not uses or node.outputs[0].is_graph_output():
        return plain
    if any(use.node.op_type != "Reshape" or use.idx for use in uses) or node.inputs[1] is None:
        return plain
    given, found, weight = before.inputs[0], last_use.outputs[0], node.inputs[1].shape
    if given is None or given.shape is None or found.shape is None or weight is None:
        return plain
    rows, width = list(weight)
    splits = len(uses) == 1 and found.shape[-1] == rows
    if given.shape[-1] == width and splits and list(given.shape)[:-1] == list(found.shape)[:-1]:
        return last_use, given, []
    if given.shape[-1] == width and static_shape(given) is not None and all(_says_all(use.node) for use in uses):
        return node, given, []
    if splits and static_shape(given) is not None and static_shape(found) is not None:
        shape = [*(static_shape(found) or ())[:-1], *(static_shape(x) or ())[-1:]]
        made: list[ir.Node] = []
        view = ir.node("Reshape", [given, ints(made, shape)])
        view.outputs[0].shape, view.outputs[0].type = ir.Shape(shape), x.type
        return last_use, view.outputs[0], [*made, view]
    return plain


def _says_all(view: ir.Node) -> bool:
    """Whether a Reshape takes no size from the place where its input has it, which is another one if that has more
    dimensions."""
    sizes = ir.convenience.get_const_tensor(view.inputs[1]) if view.inputs[1] is not None else None
    return sizes is not None and bool((sizes.numpy() != 0).all())


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
