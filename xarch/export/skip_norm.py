"""A sum and the root-mean-square norm of it as one operator of onnxruntime, which has none for the norm alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from xarch.export.lowering import replace_value

DOMAIN, OPERATOR = "com.microsoft", "SkipSimplifiedLayerNormalization"
SKIP_NORM = f"{DOMAIN}::{OPERATOR}"


def join_skip_norms(model: ir.Model) -> int:
    """Rewrite ``s = a + b; s / Sqrt(ReduceMean(s²) + eps) · weight`` in place, where s is read elsewhere, too; return
    the number of rewrites."""
    graph, done = model.graph, 0
    for node in list(graph):
        found = _norm(node)
        if found is None:
            continue
        total, weight, epsilon = found
        sum_ = total.producer()
        if sum_ is None or sum_.op_type != "Add" or not _fits(sum_, weight):
            continue
        joined = ir.node(
            OPERATOR, [*sum_.inputs, weight], {"epsilon": epsilon}, domain=DOMAIN, num_outputs=4, version=1
        )
        normed, _, _, after = joined.outputs
        for mine, given in ((normed, node.outputs[0]), (after, total)):
            mine.shape, mine.type = given.shape, given.type
        graph.insert_before(sum_, joined)
        for mine, given in ((normed, node.outputs[0]), (after, total)):
            replace_value(graph, given, mine)
        done += 1
    RemoveUnusedNodesPass()(model)
    if done:
        model.opset_imports[DOMAIN] = 1
    return done


def _norm(node: ir.Node) -> tuple[ir.Value, ir.Value, float] | None:
    """Return what is normed, the weight and the epsilon if ``node`` is the product that ends a norm."""
    if node.op_type != "Mul":
        return None
    for i in (0, 1):
        divided, weight = node.inputs[i], node.inputs[1 - i]
        root = _made_by(_input(_made_by(divided, "Div"), 1), "Sqrt")
        total = _input(_made_by(divided, "Div"), 0)
        added = _made_by(_input(root, 0), "Add")
        mean = _made_by(_input(added, 0), "ReduceMean")
        square = _made_by(_input(mean, 0), "Pow")
        if total is None or weight is None or square is None or mean is None or added is None:
            continue
        power, epsilon, axes = (_number(_input(one, 1)) for one in (square, added, mean))
        if square.inputs[0] is total and power == 2 and epsilon is not None and axes == -1:
            return total, weight, epsilon
    return None


def _fits(sum_: ir.Node, weight: ir.Value) -> bool:
    shapes = [value.shape for value in (*sum_.inputs, sum_.outputs[0]) if value is not None]
    same = all(shape is not None and len(shape) == 3 and list(shape) == list(shapes[-1]) for shape in shapes)  # type: ignore[arg-type]
    single = sum_.outputs[0].dtype == ir.DataType.FLOAT
    return same and single and weight.shape is not None and len(weight.shape) == 1


def _made_by(value: ir.Value | None, operator: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == operator else None


def _input(node: ir.Node | None, place: int) -> ir.Value | None:
    return node.inputs[place] if node is not None and place < len(node.inputs) else None


def _number(value: ir.Value | None) -> float | None:
    """Return the only element of a constant."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return float(np.asarray(tensor.numpy()).reshape(-1)[0]) if tensor is not None and tensor.size == 1 else None
