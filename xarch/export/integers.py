"""Index arithmetic in 32-bit integers, for accelerators without 64-bit integers.

torch indexes with 64-bit integers. Shapes, axes and slice bounds passed to an operator are 64-bit by ONNX's
definition and stay constants; everything computed at run time becomes 32-bit.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from xarch.errors import PlanError
from xarch.export.lowering import lift_constants

PLACES = ("ArgMax", "ArgMin", "TopK")
"""Operators that give places, as 64-bit integers only; compilers of accelerators fold the cast behind them."""

WIDE, NARROW = ir.DataType.INT64, ir.DataType.INT32


def narrow_integers(model: ir.Model) -> int:
    """Rewrite ``model`` in place and return the number of computed values that became 32-bit.

    Graph inputs keep their type and are cast before arithmetic. An operator that accepts only 64-bit integers
    keeps them; the profile check then reports it.

    Raises:
        PlanError: a constant of the arithmetic does not fit into 32 bits.
    """
    lift_constants(model)
    return _Narrower(model).run()


class _Narrower:
    def __init__(self, model: ir.Model) -> None:
        self.graph, self.opset = model.graph, model.opset_imports[""]
        self.copies: dict[ir.Value, ir.Value] = {}
        """32-bit versions of graph inputs and constants."""

    def run(self) -> int:
        return sum(self._narrow(node) for node in list(self.graph) if node.domain == "")

    def _narrow(self, node: ir.Node) -> int:
        """Return the outputs of ``node`` that become 32-bit because one of its inputs is, or because it is a cast."""
        if node.op_type == "Cast":
            if node.attributes["to"].as_int() != WIDE:
                return 0
            node.attributes["to"] = ir.AttrInt64("to", int(NARROW))
            return _retype(node.outputs[0])
        schema = onnx.defs.get_schema(node.op_type, self.opset, "")
        inputs = _kinds([p.type_str for p in schema.inputs], len(node.inputs))
        outputs = _kinds([p.type_str for p in schema.outputs], len(node.outputs))
        allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
        for i, value in enumerate(node.inputs):
            given = value is not None and value.is_graph_input() and value.dtype == WIDE
            if value is not None and given and "tensor(int32)" in allowed.get(inputs[i], ()):
                node.replace_input_with(i, self._copy(value))
        small = {inputs[i] for i, v in enumerate(node.inputs) if v is not None and v.dtype == NARROW}
        small |= {kind for kind in {*outputs} - small if self._chooses(node, inputs, kind, allowed)}
        for i, value in enumerate(node.inputs):
            if value is not None and value.dtype == WIDE and value.const_value is not None and inputs[i] in small:
                node.replace_input_with(i, self._copy(value))
        for i, value in enumerate(node.inputs):
            if value is not None and value.dtype == NARROW and inputs[i] == "tensor(int64)":
                node.replace_input_with(i, self._cast(value, WIDE, node))
        if node.op_type in PLACES:
            self._cast_behind(node)
        wide = [v for kind, v in zip(outputs, node.outputs, strict=True) if kind in small and v.dtype == WIDE]
        return sum(_retype(value) for value in wide)

    def _chooses(self, node: ir.Node, inputs: list[str], kind: str, allowed: dict[str, set[str]]) -> bool:
        """Whether a node picks from constants of a kind at run time."""
        given = [v for k, v in zip(inputs, node.inputs, strict=True) if v is not None and k == kind]
        constant = all(v.dtype == WIDE and v.const_value is not None for v in given)
        computed = any(v is not None and v.const_value is None for v in node.inputs)
        return bool(given) and constant and computed and "tensor(int32)" in allowed.get(kind, ())

    def _cast_behind(self, node: ir.Node) -> None:
        """Let all that reads the places of a node read them in 32 bits."""
        for value in node.outputs:
            if value.dtype == WIDE and not value.is_graph_output() and list(value.uses()):
                cast = ir.node("Cast", [value], attributes={"to": int(NARROW)})
                made = cast.outputs[0]
                made.name, made.shape, made.type = f"{value.name}_int32", value.shape, ir.TensorType(NARROW)
                readers = [(use.node, use.idx) for use in value.uses() if use.node is not cast]
                self.graph.insert_after(node, cast)
                for reader, i in readers:
                    reader.replace_input_with(i, made)

    def _copy(self, value: ir.Value) -> ir.Value:
        if value not in self.copies:
            self.copies[value] = (
                self._cast(value, NARROW, self.graph[0]) if value.const_value is None else self._constant(value)
            )
        return self.copies[value]

    def _cast(self, value: ir.Value, to: ir.DataType, before: ir.Node) -> ir.Value:
        node = ir.node("Cast", [value], attributes={"to": int(to)})
        made = node.outputs[0]
        made.name, made.shape, made.type = f"{value.name}_{to.name.lower()}", value.shape, ir.TensorType(to)
        self.graph.insert_before(before, node)
        return made

    def _constant(self, value: ir.Value) -> ir.Value:
        assert value.const_value is not None
        numbers, name = value.const_value.numpy(), f"{value.name}_int32"
        if numbers.size and (numbers.min() < -(2**31) or numbers.max() >= 2**31):
            raise PlanError(
                f"the constant {value.name} of an index computation reaches {np.abs(numbers).max()}, more than 32 bits",
                "choose an export profile that computes with 64-bit integers; `xarch list profiles` shows them",
            )
        tensor = ir.tensor(numbers.astype(np.int32), name=name)
        made = ir.Value(name=name, shape=ir.Shape(numbers.shape), type=ir.TensorType(NARROW), const_value=tensor)
        self.graph.register_initializer(made)
        return made


def _kinds(names: list[str], count: int) -> list[str]:
    """Return the type variables of ``count`` parameters; a variadic last one repeats."""
    return [names[min(i, len(names) - 1)] for i in range(count)]


def _retype(value: ir.Value) -> int:
    if value.is_graph_output():
        return 0
    value.type = ir.TensorType(NARROW)
    return 1
