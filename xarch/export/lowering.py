"""Graph rewrites that let every graph of an export read the same weight bytes.

torch writes a linear layer over a matrix as ``Gemm(x, W, transB=1)`` and over a batch of matrices as
``MatMul(x, Transpose(W))``; the optimiser then folds the transpose into a second copy of ``W``. Left alone, a decode
graph and a prefill graph of one student would share nothing, and a tied embedding would be stored twice.
"""

from __future__ import annotations

import math

import onnx_ir as ir


def _constant_weight(node: ir.Node) -> ir.Value | None:
    """The initialiser W of ``MatMul(x, Transpose(W))`` or None when the node is something else."""
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
    """The only consumer ``Add(node, bias)`` with a constant bias of ``width`` elements, and that bias."""
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
    """The leading dimensions as integers, free ones as -1."""
    return [d if isinstance(d, int) else -1 for d in list(shape)[:-1]]


def linear_to_gemm(model: ir.Model) -> int:
    """Rewrite ``MatMul(x, Transpose(W)) [+ bias]`` into ``Gemm(x, W, bias, transB=1)`` in place.

    ``x`` of higher rank is flattened to a matrix and the result is shaped back; both are views. A product whose
    leading dimensions leave more than one size free is left as it is, because its result cannot be shaped back
    without computing sizes at run time.

    Returns:
        How many products were rewritten.
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
            flat = ir.node("Reshape", [x, _ints(new, [-1, cols])])
            _describe(flat, lead, cols, x)
            new.append(flat)
            operands[0] = flat.outputs[0]
        gemm = ir.node("Gemm", operands, attributes={"transB": 1})
        new.append(gemm)
        if len(lead) > 1:
            new.append(ir.node("Reshape", [gemm.outputs[0], _ints(new, [*lead, rows])]))
            _describe(gemm, lead, rows, x)
        _replace(graph, node, last, new)
        done += 1
    return done


def reciprocal_to_div(model: ir.Model) -> int:
    """Rewrite ``x * Reciprocal(y)`` into ``x / y`` in place; returns how many were rewritten.

    torch writes ``rsqrt`` as Reciprocal(Sqrt(.)); runtimes recognise an RMS norm by the division.
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
    """Give a matrix with the leading dimensions flattened its shape and type."""
    node.outputs[0].shape = ir.Shape([None if -1 in lead else math.prod(lead), width])
    node.outputs[0].type = like.type


def _ints(nodes: list[ir.Node], values: list[int]) -> ir.Value:
    """A Constant node with a vector of integers, appended to ``nodes``."""
    tensor = ir.tensor(values, dtype=ir.DataType.INT64)
    constant = ir.node("Constant", [], attributes={"value": tensor})
    constant.outputs[0].const_value = tensor
    constant.outputs[0].shape = ir.Shape([len(values)])
    constant.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    nodes.append(constant)
    return constant.outputs[0]


def _replace(graph: ir.Graph, first: ir.Node, last: ir.Node, new: list[ir.Node]) -> None:
    """Put ``new`` where ``last`` was; ``first`` (the product) and ``last`` (it, or the bias it got) go."""
    old, fresh = last.outputs[0], new[-1].outputs[0]
    transpose = first.inputs[1].producer()  # type: ignore[union-attr]
    ir.convenience.replace_nodes_and_values(graph, last, [last], new, [old], [fresh])
    if first is not last:
        graph.remove(first, safe=True)
    if transpose is not None and not list(transpose.outputs[0].uses()):
        graph.remove(transpose, safe=True)
