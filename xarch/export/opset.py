"""Conversion of graphs to an older opset than torch's exporter writes.

Most operators are the same in both; the differences are read from ONNX's schemas. An operator that changed is either
rewritten here or rejected, never just relabelled.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx_ir as ir

from xarch.errors import PlanError
from xarch.export.lowering import lift_constants


def lower_opset(model: ir.Model, opset: int) -> None:
    """Rewrite ``model`` in place for ``opset``.

    Raises:
        PlanError: an operator does not exist in that opset, or its older form cannot express the node.
    """
    lift_constants(model)
    now = model.opset_imports[""]
    for node in list(model.graph.all_nodes()):
        if node.domain != "" or _since(node.op_type, now) == _since(node.op_type, opset):
            continue
        rewrite = _OLDER.get(node.op_type) if _since(node.op_type, opset) else None
        if rewrite is None or not rewrite(node):
            raise PlanError(
                f"operator {node.op_type} of {node.outputs[0].name} has no form in opset {opset}",
                "choose an export profile with a newer opset; `xarch list profiles` shows them",
            )
    model.opset_imports[""] = opset


def _since(op: str, opset: int) -> int | None:
    """Return the opset that introduced the form an operator has in ``opset``; None if it does not exist yet."""
    try:
        return int(onnx.defs.get_schema(op, opset, "").since_version)
    except onnx.defs.SchemaError:
        return None


def _axes_as_attribute(node: ir.Node) -> bool:
    """Undo opset 18's move of the axes of reductions (except ReduceSum) from an attribute to an input."""
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if axes is not None:
        known = axes.const_value
        if known is None:
            return False
        node.attributes["axes"] = ir.AttrInt64s("axes", [int(a) for a in known.numpy().reshape(-1)])
        node.resize_inputs(1)
    keep_all = node.attributes.pop("noop_with_empty_axes", None)
    return keep_all is None or keep_all.as_int() == 0 or axes is not None


def _split_without_count(node: ir.Node) -> bool:
    """Remove the number of outputs, added in opset 18; without it and without sizes, parts are equal."""
    count = node.attributes.pop("num_outputs", None)
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    axis = node.attributes.get("axis")
    if count is None or (len(node.inputs) > 1 and node.inputs[1] is not None):
        return True
    size = None if shape is None else shape[0 if axis is None else axis.as_int()]
    return isinstance(size, int) and size % count.as_int() == 0


def _pad_without_axes(node: ir.Node) -> bool:
    return len(node.inputs) < 4 or node.inputs[3] is None


def _scatter_without_extrema(node: ir.Node) -> bool:
    reduction = node.attributes.get("reduction")
    return reduction is None or reduction.as_string() in ("none", "add", "mul")


_REDUCTIONS = ("Max", "Min", "Mean", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
_OLDER: dict[str, Callable[[ir.Node], bool]] = {
    **{f"Reduce{name}": _axes_as_attribute for name in _REDUCTIONS},
    "Split": _split_without_count,
    "Pad": _pad_without_axes,
    "ScatterND": _scatter_without_extrema,
    "ScatterElements": _scatter_without_extrema,
}
"""Operator -> its rewrite from opset 18 to the older form; returns False if that form cannot express the node."""
