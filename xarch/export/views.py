"""Removal of redundant view nodes: a chain of views becomes one Reshape, or nothing.

torch exports the selection of token 0 of one token as a Gather, which copies, and adjacent views as Unsqueeze and
Reshape. Every node costs time, which matters if a call is a single token: about a third of a decode step's nodes only
rename dimensions.
"""

from __future__ import annotations

import math

import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    RemoveUnusedNodesPass,
)

_RESHAPING = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")


def merge_views(model: ir.Model) -> int:
    """Rewrite every static view in place as one Reshape of the value at the root of its chain, and remove views that
    change nothing. Only views with known input and output shapes are changed.

    Returns:
        The number of removed nodes.
    """
    graph = model.graph
    before = graph.num_nodes()
    for node in list(graph):
        if not _is_view(node):
            continue
        output, root = node.outputs[0], _root(node)
        shape, source = static_shape(output), static_shape(root)
        if shape is None or source is None or math.prod(shape) != math.prod(source):
            continue
        if shape == source and not output.is_graph_output():
            output.replace_all_uses_with(root)
        elif node.op_type != "Reshape" or root is not node.inputs[0]:
            reshaped = ir.node("Reshape", [root, _shape_constant(graph, shape)])
            ir.convenience.replace_nodes_and_values(graph, node, [node], [reshaped], [output], [reshaped.outputs[0]])
    RemoveUnusedNodesPass()(model)
    DeduplicateInitializersPass()(model)
    CommonSubexpressionEliminationPass()(model)
    return before - graph.num_nodes()


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the sizes of a value, None unless all are known."""
    if value is None or value.shape is None or not all(isinstance(d, int) for d in value.shape):
        return None
    return tuple(value.shape.numpy())


def _root(node: ir.Node) -> ir.Value:
    """Return the value at the root of the chain of views that ends in ``node``."""
    value = node.inputs[0]
    assert value is not None
    producer = value.producer()
    while producer is not None and _is_view(producer) and static_shape(producer.inputs[0]) is not None:
        value = producer.inputs[0]
        assert value is not None
        producer = value.producer()
    return value


def _is_view(node: ir.Node) -> bool:
    """Whether a node only changes the shape: same elements in the same order."""
    if node.domain != "" or not node.inputs or static_shape(node.inputs[0]) is None:
        return False
    if node.op_type in _RESHAPING:
        return True
    shape = static_shape(node.inputs[0])
    assert shape is not None
    if node.op_type == "Transpose":
        perm = node.attributes.get("perm")
        order = list(reversed(range(len(shape)))) if perm is None else list(perm.as_ints())
        moved = [axis for axis in order if shape[axis] != 1]
        return moved == sorted(moved)
    if node.op_type == "Gather":
        axis = node.attributes.get("axis")
        index = node.inputs[1]
        sole = None if index is None or index.const_value is None else index.const_value
        return shape[0 if axis is None else axis.as_int()] == 1 and sole is not None and sole.size == 1
    return False


def _shape_constant(graph: ir.Graph, shape: tuple[int, ...]) -> ir.Value:
    """Return the initialiser that contains ``shape``."""
    name = "shape_" + "x".join(map(str, shape))
    if name not in graph.initializers:
        tensor = ir.tensor(shape, dtype=ir.DataType.INT64, name=name)
        value = ir.Value(
            name=name, shape=ir.Shape([len(shape)]), type=ir.TensorType(ir.DataType.INT64), const_value=tensor
        )
        graph.register_initializer(value)
    return graph.initializers[name]
