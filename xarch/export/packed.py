"""Products of the same values by several matrices as one product by all of them: queries, keys and values; gate and up.

Each call of a product rounds and spreads its input anew; a single token feels that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from xarch.export.lowering import replace_value

OPERATOR = "MatMulNBits"
JOINT = "+"
"""Between the names of weights that are stored as one."""

Key = tuple[str, ...]


def pack_products(models: Iterable[ir.Model]) -> int:
    """Join products with weights in blocks in place, where every graph that reads one of the weights reads all of them
    together: stored as one they serve no other purpose. Return the number of products that are gone."""
    found = [_groups(model) for model in models]
    everywhere: dict[str, set[Key]] = defaultdict(set)
    for groups in found:
        for key in groups:
            for name in key:
                everywhere[name].add(key)
    done = 0
    for model, groups in zip(models, found, strict=True):
        for key, nodes in groups.items():
            if len(key) > 1 and all(everywhere[name] == {key} for name in key):
                _join(model.graph, nodes)
                done += len(nodes) - 1
        RemoveUnusedNodesPass()(model)
    return done


def _groups(model: ir.Model) -> dict[Key, list[ir.Node]]:
    """Return the products of each input by the names of their weights."""
    by_input: dict[tuple[object, ...], list[ir.Node]] = defaultdict(list)
    for node in model.graph:
        if node.op_type == OPERATOR and all(
            value is None or value.const_value is not None for value in node.inputs[1:]
        ):
            numbers = tuple((name, a.value) for name, a in sorted(node.attributes.items()) if name != "N")
            by_input[node.inputs[0], len(node.inputs), numbers].append(node)
    return {tuple(str(node.inputs[1].name) for node in nodes): nodes for nodes in by_input.values()}  # type: ignore[union-attr]


def _join(graph: ir.Graph, nodes: list[ir.Node]) -> None:
    widths = [node.attributes["N"].as_int() for node in nodes]
    first = nodes[0]
    inputs = [first.inputs[0], *(_stacked(graph, parts) for parts in zip(*(n.inputs[1:] for n in nodes), strict=True))]
    numbers = {name: a.value for name, a in first.attributes.items()} | {"N": sum(widths)}
    product = ir.node(OPERATOR, inputs, numbers, domain=first.domain)
    sizes = ir.node("Constant", [], {"value": ir.tensor(widths, dtype=ir.DataType.INT64)})
    apart = ir.node("Split", [product.outputs[0], sizes.outputs[0]], {"axis": -1}, num_outputs=len(nodes))
    shape = first.outputs[0].shape
    if shape is not None:
        product.outputs[0].shape = ir.Shape([*list(shape)[:-1], sum(widths)])
    product.outputs[0].type = first.outputs[0].type
    graph.insert_before(first, [product, sizes, apart])
    for node, part in zip(nodes, apart.outputs, strict=True):
        old = node.outputs[0]
        part.shape, part.type, part.name = old.shape, old.type, f"{old.name}_part"
        replace_value(graph, old, part)
        graph.remove(node, safe=True)


def _stacked(graph: ir.Graph, parts: tuple[ir.Value | None, ...]) -> ir.Value | None:
    """Return constants of features along the first axis, or flat, as one."""
    if parts[0] is None:
        return None
    name = JOINT.join(str(part.name) for part in parts)  # type: ignore[union-attr]
    if name not in graph.initializers:
        numbers = np.concatenate([part.const_value.numpy() for part in parts])  # type: ignore[union-attr]
        tensor = ir.tensor(numbers, name=name)
        made = ir.Value(name=name, shape=ir.Shape(numbers.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(made)
    return graph.initializers[name]
