"""Graph rewrites that let all graphs of an export share the same weight bytes.

torch writes a linear layer over a matrix as ``Gemm(x, W, transB=1)`` and over a batch of matrices as
``MatMul(x, Transpose(W))``; the optimiser then folds the transpose into a second copy of ``W``. Otherwise a decode
graph and a prefill graph of one student would share nothing, and a tied embedding would be stored twice.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass


def lift_constants(model: ir.Model) -> None:
    """Turn every Constant node into an initialiser, so that a pass finds all constants in one place."""
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def _constant_weight(node: ir.Node) -> ir.Value | None:
    """Return the initialiser W of ``MatMul(x, Transpose(W))``, None for any other node."""
    if node.op_type != "MatMul" or node.domain != "":
        return None
    right = node.inputs[1]
    transpose = None if right is None else right.producer()
    if transpose is None or transpose.op_type != "Transpose":
        return None
    weight = transpose.inputs[0]
    perm = transpose.attributes.get("perm")
    if weight is None or weight.const_value is None or len(weight.const_value.shape) != 2:
        return None
    return weight if perm is None or tuple(perm.as_ints()) == (1, 0) else None


def _added_bias(node: ir.Node, width: int) -> tuple[ir.Node, ir.Value] | None:
    """Return the only consumer ``Add(node, bias)`` with a constant bias of ``width`` elements, and the bias."""
    output = node.outputs[0]
    uses = list(output.uses())
    if output.is_graph_output() or len(uses) != 1 or uses[0].node.op_type != "Add":
        return None
    add = uses[0].node
    bias = add.inputs[1 - uses[0].idx]
    if bias is None or bias.const_value is None or list(bias.const_value.shape) != [width]:
        return None
    return add, bias


def _free_dims(shape: ir.Shape) -> list[int]:
    """Return the leading dimensions as integers, free ones as -1."""
    return [d if isinstance(d, int) else -1 for d in list(shape)[:-1]]


def linear_to_gemm(model: ir.Model) -> int:
    """Rewrite ``MatMul(x, Transpose(W)) [+ bias]`` into ``Gemm(x, W, bias, transB=1)`` in place.

    ``x`` of higher rank is flattened to a matrix and the result is reshaped; both are views. A product whose
    leading dimensions have more than one free size is left unchanged, because its result cannot be reshaped
    without computing sizes at run time.

    Returns:
        The number of rewritten products.
    """
    graph = model.graph
    done = 0
    for node in list(graph):
        weight = _constant_weight(node)
        x = None if weight is None else node.inputs[0]
        if weight is None or x is None or x.shape is None or len(x.shape) < 2:
            continue
        lead = _free_dims(x.shape)
        if lead.count(-1) > 1:
            continue
        assert weight.const_value is not None
        rows, cols = weight.const_value.shape.numpy()
        last, operands = node, [x, weight]
        biased = _added_bias(node, rows)
        if biased is not None:
            last = biased[0]
            operands.append(biased[1])
        new: list[ir.Node] = []
        if len(lead) > 1:
            flat = ir.node("Reshape", [x, ints(new, [-1, cols])])
            _describe(flat, lead, cols, x)
            new.append(flat)
            operands[0] = flat.outputs[0]
        gemm = ir.node("Gemm", operands, attributes={"transB": 1})
        new.append(gemm)
        if len(lead) > 1:
            new.append(ir.node("Reshape", [gemm.outputs[0], ints(new, [*lead, rows])]))
            _describe(gemm, lead, rows, x)
        _replace(graph, node, last, new)
        done += 1
    return done


def gather_rows(model: ir.Model) -> int:
    """Rewrite GatherND with one index per row into Gather in place; return the number of rewrites.

    torch exports every look-up in a vector that way; GatherND takes only 64-bit indices, and few accelerators have it.
    """
    graph = model.graph
    done = 0
    for node in list(graph):
        index = node.inputs[1] if node.op_type == "GatherND" and node.domain == "" else None
        batched = "batch_dims" in node.attributes and node.attributes["batch_dims"].as_int() != 0
        if index is None or batched or index.shape is None or index.shape[-1] != 1:
            continue
        made: list[ir.Node] = []
        squeeze = ir.node("Squeeze", [index, ints(made, [-1])])
        squeeze.outputs[0].shape, squeeze.outputs[0].type = ir.Shape(list(index.shape)[:-1]), index.type
        gather = ir.node("Gather", [node.inputs[0], squeeze.outputs[0]], attributes={"axis": 0})
        ir.convenience.replace_nodes_and_values(
            graph, node, [node], [*made, squeeze, gather], [node.outputs[0]], [gather.outputs[0]]
        )
        done += 1
    return done


def fold_layout(model: ir.Model) -> int:
    """Fold reshapes and transposes of constants of any size in place; return the number of removed nodes.

    The optimiser skips large constants, but a pass that changes the storage of weights needs their final layout.
    """
    lift_constants(model)
    graph = model.graph
    done = 0
    for node in list(graph):
        if node.domain != "" or node.op_type not in ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose"):
            continue
        tensor = node.inputs[0].const_value if node.inputs[0] is not None else None
        output = node.outputs[0]
        if tensor is None or tensor.dtype == ir.DataType.STRING or output.is_graph_output():
            continue
        if node.op_type == "Transpose":
            perm = node.attributes.get("perm")
            numbers = tensor.numpy().transpose(None if perm is None else list(perm.as_ints()))
        elif output.shape is not None and all(isinstance(d, int) for d in output.shape):
            numbers = tensor.numpy().reshape(output.shape.numpy())
        else:
            continue
        name = output.name or f"constant_{done}"
        made = ir.Value(
            name=f"{name}_folded",
            shape=ir.Shape(numbers.shape),
            type=output.type,
            const_value=ir.tensor(np.ascontiguousarray(numbers), dtype=tensor.dtype, name=f"{name}_folded"),
        )
        graph.register_initializer(made)
        output.replace_all_uses_with(made)
        done += 1
    RemoveUnusedNodesPass()(model)
    return done


UNIFORM_BYTES = 1024
"""Number of elements from which a constant of equal elements is stored as a single element."""


def expand_uniform(model: ir.Model) -> int:
    """Replace constants whose elements are all equal by Expand of one element, in place; return the number.

    The optimiser folds filled tensors; with static shapes that is one value per sample of every ray.
    """
    graph = model.graph
    done = 0
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes < UNIFORM_BYTES or tensor.dtype == ir.DataType.STRING:
            continue
        numbers = tensor.numpy()
        first = numbers.reshape(-1)[:1]
        if not bool((numbers == first).all()):
            continue
        name = f"{value.name}_element"
        one = ir.Value(
            name=name, shape=ir.Shape([1]), type=value.type, const_value=ir.tensor(first, dtype=tensor.dtype, name=name)
        )
        graph.register_initializer(one)
        made: list[ir.Node] = []
        expand = ir.node("Expand", [one, ints(made, list(numbers.shape))])
        expand.outputs[0].shape, expand.outputs[0].type = value.shape, value.type
        graph.insert_before(graph[0], [*made, expand])
        value.replace_all_uses_with(expand.outputs[0])
        done += 1
    RemoveUnusedNodesPass()(model)
    return done


def reciprocal_to_div(model: ir.Model) -> int:
    """Rewrite ``x * Reciprocal(y)`` into ``x / y`` in place; return the number of rewrites.

    torch exports ``rsqrt`` as Reciprocal(Sqrt(.)); runtimes recognise an RMS norm by the division.
    """
    graph = model.graph
    done = 0
    for node in list(graph):
        if node.op_type != "Reciprocal" or node.outputs[0].is_graph_output():
            continue
        uses = list(node.outputs[0].uses())
        if any(use.node.op_type != "Mul" for use in uses):
            continue
        for use in uses:
            product = use.node
            division = ir.node("Div", [product.inputs[1 - use.idx], node.inputs[0]])
            ir.convenience.replace_nodes_and_values(
                graph, product, [product], [division], [product.outputs[0]], [division.outputs[0]]
            )
        graph.remove(node, safe=True)
        done += 1
    return done


def _describe(node: ir.Node, lead: list[int], width: int, like: ir.Value) -> None:
    """Set shape and type of a matrix whose leading dimensions are flattened."""
    node.outputs[0].shape = ir.Shape([None if -1 in lead else math.prod(lead), width])
    node.outputs[0].type = like.type


def ints(nodes: list[ir.Node], values: list[int]) -> ir.Value:
    """Append a Constant node with a vector of integers to ``nodes`` and return its value."""
    tensor = ir.tensor(values, dtype=ir.DataType.INT64)
    constant = ir.node("Constant", [], attributes={"value": tensor})
    constant.outputs[0].const_value = tensor
    constant.outputs[0].shape = ir.Shape([len(values)])
    constant.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    nodes.append(constant)
    return constant.outputs[0]


def replace_node(graph: ir.Graph, node: ir.Node, new: list[ir.Node], value: ir.Value) -> None:
    """Replace ``node`` by the nodes ``new``, and its output by ``value``."""
    if new:
        graph.insert_before(node, new)
    replace_value(graph, node.outputs[0], value)
    graph.remove(node, safe=True)


def replace_value(graph: ir.Graph, old: ir.Value, value: ir.Value) -> None:
    """Let ``value`` be read instead of ``old``, and returned under its name."""
    if old.is_graph_output():
        graph.outputs[list(graph.outputs).index(old)] = value
        value.name, old.name = old.name, None
    old.replace_all_uses_with(value)


def _replace(graph: ir.Graph, first: ir.Node, last: ir.Node, new: list[ir.Node]) -> None:
    """Replace ``first`` (the product) and ``last`` (the product or its bias addition) by ``new``."""
    old, fresh = last.outputs[0], new[-1].outputs[0]
    transpose = first.inputs[1].producer()  # type: ignore[union-attr]
    ir.convenience.replace_nodes_and_values(graph, last, [last], new, [old], [fresh])
    if first is not last:
        graph.remove(first, safe=True)
    if transpose is not None and not list(transpose.outputs[0].uses()):
        graph.remove(transpose, safe=True)
