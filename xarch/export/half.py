"""Half precision where it is safe: weights are stored and matrix products are computed in float16.

Computations before a product (positions, angles) and after it (exponentials, normalisations, sums along a ray or a
row) stay in float32: half precision has 11 bits, too few for a position times 512 or a sum of many terms.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from xarch.errors import PlanError
from xarch.export.lowering import fold_layout

PRODUCTS = ("Gemm", "MatMul", "Conv", "ConvTranspose")
BETWEEN = frozenset({
    "Relu", "LeakyRelu", "PRelu", "HardSwish", "Neg", "Add", "Sub", "Mul", "Max", "Min", "Concat", "Split", "Slice",
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "MaxPool",
})  # fmt: skip
"""Operators that stay in half precision if all of their inputs do."""
LARGEST = float(np.finfo(np.float16).max)
TABLE = 1024
"""Number of elements from which a constant read by float32 arithmetic is nevertheless stored as float16."""

SINGLE, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def halve(model: ir.Model) -> int:
    """Rewrite ``model`` in place; its inputs and outputs stay float32.

    Returns:
        The number of products computed in float16.

    Raises:
        PlanError: a weight is too large for float16.
    """
    fold_layout(model)
    graph, halves, done = model.graph, set[ir.Value](), 0
    converter = _Converter(graph)
    for node in list(graph):
        product = node.op_type in PRODUCTS and all(v is None or v.dtype == SINGLE for v in node.inputs)
        if not product and not (node.op_type in BETWEEN and _reads_only(node, halves)):
            continue
        done += product
        for i, value in enumerate(node.inputs):
            if value is not None and value.dtype == SINGLE:
                node.replace_input_with(i, converter.half(value, node))
        for value in node.outputs:
            if value.dtype == SINGLE:
                halves.add(value)
                converter.widen_uses(value, node)
    for value in list(graph.initializers.values()):
        if value.dtype == SINGLE and value.const_value is not None and value.const_value.size >= TABLE:
            converter.store(value)
    RemoveUnusedNodesPass()(model)
    return done


def _reads_only(node: ir.Node, halves: set[ir.Value]) -> bool:
    """Whether every float input of a node is half precision or a constant, and at least one is half precision."""
    floats = [v for v in node.inputs if v is not None and (v.dtype in (SINGLE, HALF))]
    sources = [_before_widening(v) for v in floats]
    computed = [v for v in sources if v.const_value is None]
    return bool(computed) and all(v in halves for v in computed)


def _before_widening(value: ir.Value) -> ir.Value:
    producer = value.producer()
    if producer is not None and producer.op_type == "Cast" and producer.inputs[0] is not None:
        source = producer.inputs[0]
        return source if source.dtype == HALF else value
    return value


class _Converter:
    """Half-precision versions of values, each created once."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.made: dict[ir.Value, ir.Value] = {}

    def half(self, value: ir.Value, reader: ir.Node) -> ir.Value:
        """Return the float16 version of a float32 value read by ``reader``."""
        source = _before_widening(value)
        if source.dtype == HALF:
            return source
        if value not in self.made:
            if value.const_value is not None:
                self.made[value] = self._constant(value)
            else:
                self.made[value] = self._cast(value, HALF, before=reader)
        return self.made[value]

    def widen_uses(self, value: ir.Value, node: ir.Node) -> None:
        """Make ``value`` float16; its readers get a float32 copy until they are converted."""
        uses, output = list(value.uses()), value.is_graph_output()
        value.type = ir.TensorType(HALF)
        wide = self._cast(value, SINGLE, after=node)
        for use in uses:
            use.node.replace_input_with(use.idx, wide)
        if output:
            name = value.name
            self.graph.outputs[list(self.graph.outputs).index(value)] = wide
            value.name, wide.name = f"{name}_float16", name

    def store(self, value: ir.Value) -> None:
        """Store a table in float16 and keep its readers in float32; rows are widened after they are gathered."""
        small = self.made.get(value) or self._constant(value)
        for use in list(value.uses()):
            if use.node.op_type == "Gather" and use.idx == 0:
                use.node.replace_input_with(0, small)
                self.widen_uses(use.node.outputs[0], use.node)
            else:
                use.node.replace_input_with(use.idx, self._cast(small, SINGLE, before=use.node))

    def _constant(self, value: ir.Value) -> ir.Value:
        assert value.const_value is not None
        numbers = value.const_value.numpy()
        if numbers.size and float(np.abs(numbers).max()) > LARGEST:
            raise PlanError(
                f"weight {value.name} reaches {float(np.abs(numbers).max()):.3g}, float16 ends at {LARGEST:.0f}",
                "export to a float32 target",
            )
        name = f"{value.name}_float16"
        tensor = ir.tensor(numbers.astype(np.float16), name=name)
        made = ir.Value(name=name, shape=ir.Shape(numbers.shape), type=ir.TensorType(HALF), const_value=tensor)
        self.graph.register_initializer(made)
        return made

    def _cast(
        self, value: ir.Value, to: ir.DataType, *, before: ir.Node | None = None, after: ir.Node | None = None
    ) -> ir.Value:
        node = ir.node("Cast", [value], attributes={"to": int(to)})
        made = node.outputs[0]
        made.shape, made.type = value.shape, ir.TensorType(to)
        made.name = f"{value.name}_to_{to.name.lower()}_{len(self.graph)}"
        if before is not None:
            self.graph.insert_before(before, node)
        else:
            assert after is not None
            self.graph.insert_after(after, node)
        return made
