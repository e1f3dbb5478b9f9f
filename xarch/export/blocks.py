"""Weights in 4 or 8 bits with a scale for every block, for products of few rows: those wait for the weights' bytes.

A product by a constant matrix becomes onnxruntime's MatMulNBits, a look-up in a table its GatherBlockQuantized; both
read the same bytes, so a tied embedding is stored once. Everything else stays float32.

With 4 bits a block has a scale and an offset that is any number, but the runtime reads zero points from 0 to 15 only.
What is left of the offsets, a small matrix R, is multiplied with the sums of the blocks of x: the product by W becomes
one by (W R), of x beside its sums. Weights that another tool rounded in this form (Q4_0 and Q4_1 of GGUF) lose almost
nothing (SmolLM2-135M: KL 0.001 nats/token; with whole zero points 0.15, in blocks half as long).

Legend: N output features, K input features, G blocks of a row, S weights of a block, R columns of what is left.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from xarch.export.grids import block_sums, packed4, packed8
from xarch.export.matmul import COLUMNS
from xarch.export.quantise import SINGLE, TABLE, Quantiser, output_axis, products

DOMAIN = "com.microsoft"
BLOCK_OPS = frozenset({f"{DOMAIN}::MatMulNBits", f"{DOMAIN}::GatherBlockQuantized"})
"""The operators of the runtime that read such weights."""

SIZES = {4: (32, 16), 8: (64, 32, 16)}
"""Bits -> weights of a block, the first that divides a row."""

TABLE_BITS = 8
"""Bits of tables that are looked up, and of products by them: a tied embedding loses most."""

INTEGER_INPUTS = 4
"""``accuracy_level`` of MatMulNBits: inputs are rounded to 8 bits in blocks of the same size; sums are of integers."""


def quantise_blocks(model: ir.Model, bits: int, wide: Collection[str] = ()) -> int:
    """Rewrite ``model`` in place; its inputs and outputs stay as they are.

    Args:
        bits: 4 or 8.
        wide: names of weights that have 8 bits in any case, see :func:`plain_name`.

    Returns:
        The number of products with such weights.
    """
    made = _Blocks(model, bits, wide)
    done = sum(made.product(node) for node in products(model))
    for node in list(model.graph):
        if node.op_type == "Gather" and node.domain == "":
            made.look_up(node)
    RemoveUnusedNodesPass()(model)
    model.opset_imports[DOMAIN] = 1
    return done


def narrow_weights(model: ir.Model) -> dict[str, int]:
    """Return the weights that have 4 bits unless they are asked to have 8, by name, with the size of their blocks.

    Only weights that a graph holds with features along rows, or transposed: others have no name in the student.
    """
    tables = {node.inputs[0] for node in model.graph if node.op_type == "Gather" and node.domain == ""}
    found = {}
    for node in products(model):
        weight, turned = node.inputs[1], output_axis(node) == 0
        assert weight is not None
        size = None if node.op_type == "Conv" or _reads_columns(node) else _block(weight, turned, 4)
        if size is not None and weight not in tables and turned != str(weight.name).endswith(COLUMNS):
            found[plain_name(weight)] = size
    return found


def plain_name(weight: ir.Value) -> str:
    """Return the name of a weight in the student, for whatever form of it a graph holds."""
    return str(weight.name).removesuffix(COLUMNS)


class _Blocks:
    def __init__(self, model: ir.Model, bits: int, wide: Collection[str]) -> None:
        self.graph, self.constants = model.graph, Quantiser(model.graph)
        gathers = (node for node in model.graph if node.op_type == "Gather" and node.domain == "")
        self.bits, self.wide, self.tables = bits, wide, {node.inputs[0] for node in gathers}
        self.packed: dict[tuple[ir.Value, bool], list[np.ndarray]] = {}
        self.beside: dict[tuple[ir.Value, int], ir.Value] = {}

    def product(self, node: ir.Node) -> bool:
        """Rewrite a product, with its bias as an addition; return whether its weight is large enough."""
        x, weight = node.inputs[0], node.inputs[1]
        assert x is not None
        assert weight is not None
        assert weight.const_value is not None
        turned = output_axis(node) == 0
        bits = self._bits(weight)
        size = _block(weight, turned, bits)
        if node.op_type == "Conv" or size is None or _reads_columns(node):
            return False
        data, *rest = self._parts(weight, turned, size)
        rows, groups = data.shape[:2]
        name = self._name(weight, turned)
        if bits == 4:
            x = self._beside_sums(node, x, weight.const_value.shape.numpy()[1 if turned else 0], size)
        inputs = [x, self.constants.constant(name, data), *self._scales(name, rest)]
        numbers = {"K": groups * size, "N": rows, "bits": bits, "block_size": size}
        small = ir.node("MatMulNBits", inputs, {**numbers, "accuracy_level": INTEGER_INPUTS}, domain=DOMAIN)
        self._replace(node, small, node.inputs[2] if len(node.inputs) > 2 else None)
        return True

    def look_up(self, node: ir.Node) -> None:
        """Rewrite a look-up of rows in a constant table."""
        table, axis = node.inputs[0], node.attributes.get("axis")
        if table is None or table.const_value is None or table.dtype != SINGLE or (axis is not None and axis.as_int()):
            return
        size = _block(table, True, TABLE_BITS)
        if size is None:
            return
        data, *rest = self._parts(table, True, size)
        name = self._name(table, True)
        rows = self.constants.constant(f"{name}_rows", data.reshape(len(data), -1))
        facts = {"bits": TABLE_BITS, "block_size": size, "gather_axis": 0, "quantize_axis": 1}
        small = ir.node("GatherBlockQuantized", [rows, node.inputs[1], *self._scales(name, rest)], facts, domain=DOMAIN)
        self._replace(node, small, None)

    def _bits(self, weight: ir.Value) -> int:
        return TABLE_BITS if weight in self.tables or plain_name(weight) in self.wide else self.bits

    def _parts(self, weight: ir.Value, turned: bool, size: int) -> list[np.ndarray]:
        if (weight, turned) not in self.packed:
            assert weight.const_value is not None
            numbers = weight.const_value.numpy()
            pack = packed4 if self._bits(weight) == 4 else packed8
            self.packed[weight, turned] = pack(numbers if turned else numbers.T, size)
        return self.packed[weight, turned]

    def _beside_sums(self, node: ir.Node, x: ir.Value, features: int, size: int) -> ir.Value:
        """Return x beside the sums of its blocks, made before its first product."""
        if (x, size) not in self.beside:
            ones = self.constants.constant(f"sums_of_{size}_in_{features}", block_sums(features, size))
            sums = ir.node("MatMul", [x, ones])
            both = ir.node("Concat", [x, sums.outputs[0]], {"axis": -1})
            assert x.shape is not None
            for one, width in ((sums, ones.shape[1]), (both, features + ones.shape[1])):  # type: ignore[index]
                one.outputs[0].shape, one.outputs[0].type = ir.Shape([*x.shape[:-1], width]), x.type
            sums.outputs[0].name, both.outputs[0].name = f"{x.name}_sums", f"{x.name}_beside_sums"
            self.graph.insert_before(node, [sums, both])
            self.beside[x, size] = both.outputs[0]
        return self.beside[x, size]

    def _name(self, weight: ir.Value, turned: bool) -> str:
        return f"{weight.name}_int{self._bits(weight)}" + ("" if turned else COLUMNS)

    def _scales(self, name: str, rest: list[np.ndarray]) -> list[ir.Value]:
        return [self.constants.constant(f"{name}_{part}", n) for part, n in zip(("scale", "zero"), rest, strict=False)]

    def _replace(self, node: ir.Node, small: ir.Node, bias: ir.Value | None) -> None:
        output, nodes = node.outputs[0], [small]
        if bias is not None:
            nodes.append(ir.node("Add", [small.outputs[0], bias]))
        for one in nodes:
            one.outputs[0].shape, one.outputs[0].type = output.shape, output.type
        ir.convenience.replace_nodes_and_values(self.graph, node, [node], nodes, [output], [nodes[-1].outputs[0]])


def _block(weight: ir.Value, turned: bool, bits: int) -> int | None:
    """Return the size of the blocks of a matrix; None if it is no large matrix, or no size divides its rows."""
    assert weight.const_value is not None
    shape = weight.const_value.shape.numpy()
    if len(shape) != 2 or shape[0] * shape[1] < TABLE:
        return None
    return next((size for size in SIZES[bits] if shape[1 if turned else 0] % size == 0), None)


def _reads_columns(node: ir.Node) -> bool:
    """Whether a Gemm transposes its input."""
    return "transA" in node.attributes and node.attributes["transA"].as_int() == 1
