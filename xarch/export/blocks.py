"""Weights in 4 or 8 bits with a scale for every block, for products of few rows: those wait for the weights' bytes.

A product by a constant matrix becomes onnxruntime's MatMulNBits, a look-up in a table its GatherBlockQuantized; both
read the same bytes, so a tied embedding is stored once. Everything else stays float32.

Legend: N output features, K input features, G blocks of a row, S weights of a block.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from xarch.export.quantise import SINGLE, TABLE, Quantiser, output_axis, products

DOMAIN = "com.microsoft"
BLOCK_OPS = frozenset({f"{DOMAIN}::MatMulNBits", f"{DOMAIN}::GatherBlockQuantized"})
"""The operators of the runtime that read such weights."""

SIZES = (32, 16)
"""Weights of a block, the first that divides a row; the runtime has no smaller ones."""

INTEGER_INPUTS = 4
"""``accuracy_level`` of MatMulNBits: inputs are rounded to 8 bits in blocks of the same size; sums are of integers."""


def quantise_blocks(model: ir.Model, bits: int) -> int:
    """Rewrite ``model`` in place; its inputs and outputs stay as they are.

    Args:
        bits: 4 (with a zero point for every block) or 8.

    Returns:
        The number of products with such weights.
    """
    made = _Blocks(model, bits)
    done = sum(made.product(node) for node in products(model))
    for node in list(model.graph):
        if node.op_type == "Gather" and node.domain == "":
            made.look_up(node)
    RemoveUnusedNodesPass()(model)
    model.opset_imports[DOMAIN] = 1
    return done


class _Blocks:
    def __init__(self, model: ir.Model, bits: int) -> None:
        self.graph, self.bits, self.constants = model.graph, bits, Quantiser(model.graph)
        self.packed: dict[tuple[ir.Value, bool], list[np.ndarray]] = {}

    def product(self, node: ir.Node) -> bool:
        """Rewrite a product, with its bias as an addition; return whether its weight is large enough."""
        x, weight = node.inputs[0], node.inputs[1]
        assert x is not None
        assert weight is not None
        assert weight.const_value is not None
        turned = output_axis(node) == 0
        size = _block(weight, turned)
        if node.op_type == "Conv" or size is None or _reads_columns(node):
            return False
        data, *rest = self._parts(weight, turned, size)
        rows, groups = data.shape[:2]
        name = self._name(weight, turned)
        inputs = [x, self.constants.constant(name, data), *self._scales(name, rest)]
        numbers = {"K": groups * size, "N": rows, "bits": self.bits, "block_size": size}
        small = ir.node("MatMulNBits", inputs, {**numbers, "accuracy_level": INTEGER_INPUTS}, domain=DOMAIN)
        self._replace(node, small, node.inputs[2] if len(node.inputs) > 2 else None)
        return True

    def look_up(self, node: ir.Node) -> None:
        """Rewrite a look-up of rows in a constant table."""
        table, axis = node.inputs[0], node.attributes.get("axis")
        if table is None or table.const_value is None or table.dtype != SINGLE or (axis is not None and axis.as_int()):
            return
        size = _block(table, True)
        if size is None:
            return
        data, *rest = self._parts(table, True, size)
        name = self._name(table, True)
        rows = self.constants.constant(f"{name}_rows", data.reshape(len(data), -1))
        facts = {"bits": self.bits, "block_size": size, "gather_axis": 0, "quantize_axis": 1}
        small = ir.node("GatherBlockQuantized", [rows, node.inputs[1], *self._scales(name, rest)], facts, domain=DOMAIN)
        self._replace(node, small, None)

    def _parts(self, weight: ir.Value, turned: bool, size: int) -> list[np.ndarray]:
        if (weight, turned) not in self.packed:
            assert weight.const_value is not None
            numbers = weight.const_value.numpy()
            self.packed[weight, turned] = packed(numbers if turned else numbers.T, self.bits, size)
        return self.packed[weight, turned]

    def _name(self, weight: ir.Value, turned: bool) -> str:
        return f"{weight.name}_int{self.bits}" + ("" if turned else "_columns")

    def _scales(self, name: str, rest: list[np.ndarray]) -> list[ir.Value]:
        return [self.constants.constant(f"{name}_{part}", n) for part, n in zip(("scale", "zero"), rest, strict=False)]

    def _replace(self, node: ir.Node, small: ir.Node, bias: ir.Value | None) -> None:
        output, nodes = node.outputs[0], [small]
        if bias is not None:
            nodes.append(ir.node("Add", [small.outputs[0], bias]))
        for one in nodes:
            one.outputs[0].shape, one.outputs[0].type = output.shape, output.type
        ir.convenience.replace_nodes_and_values(self.graph, node, [node], nodes, [output], [nodes[-1].outputs[0]])


def _block(weight: ir.Value, turned: bool) -> int | None:
    """Return the size of the blocks of a matrix; None if it is no large matrix, or no size divides its rows."""
    assert weight.const_value is not None
    shape = weight.const_value.shape.numpy()
    if len(shape) != 2 or shape[0] * shape[1] < TABLE:
        return None
    return next((size for size in SIZES if shape[1 if turned else 0] % size == 0), None)


def _reads_columns(node: ir.Node) -> bool:
    """Whether a Gemm transposes its input."""
    return "transA" in node.attributes and node.attributes["transA"].as_int() == 1


def packed(weight_NK: np.ndarray, bits: int, size: int) -> list[np.ndarray]:
    """Return the integers [N, G, S * bits / 8], the scales [N, G], and with 4 bits the zero points [N, (G + 1) // 2].

    With 8 bits the zero point is 128. Of 4-bit numbers two share a byte, the first in its low half.
    """
    w_NGS = np.ascontiguousarray(weight_NK, np.float32).reshape(len(weight_NK), -1, size)
    if bits == 8:
        scale_NG = np.maximum(np.abs(w_NGS).max(-1), 1e-12).astype(np.float32) / np.float32(127)
        q_NGS = np.rint(w_NGS / scale_NG[..., None]) + 128
        return [q_NGS.clip(0, 255).astype(np.uint8), scale_NG]
    low_NG, high_NG = np.minimum(w_NGS.min(-1), 0), np.maximum(w_NGS.max(-1), 0)
    scale_NG = np.maximum(high_NG - low_NG, 1e-12) / np.float32(15)
    zero_NG = np.rint(-low_NG / scale_NG).clip(0, 15)
    q_NGS = _rounded(w_NGS, scale_NG, zero_NG)
    # The scale that fits the chosen integers best, and the integers that fit that scale.
    steps_NGS = q_NGS - zero_NG[..., None]
    fitted_NG = (w_NGS * steps_NGS).sum(-1) / np.maximum(np.square(steps_NGS).sum(-1), 1)
    scale_NG = np.where(fitted_NG > 0, fitted_NG, scale_NG).astype(np.float32)
    q_NGS = _rounded(w_NGS, scale_NG, zero_NG)
    if zero_NG.shape[1] % 2:
        zero_NG = np.pad(zero_NG, ((0, 0), (0, 1)))
    return [_pairs(q_NGS), scale_NG, _pairs(zero_NG)]


def _rounded(w_NGS: np.ndarray, scale_NG: np.ndarray, zero_NG: np.ndarray) -> np.ndarray:
    found: np.ndarray = (np.rint(w_NGS / scale_NG[..., None]) + zero_NG[..., None]).clip(0, 15)
    return found


def _pairs(numbers: np.ndarray) -> np.ndarray:
    small = numbers.astype(np.uint8)
    return np.ascontiguousarray(small[..., 0::2] | small[..., 1::2] << 4)
