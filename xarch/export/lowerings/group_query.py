"""GroupQueryAttention, the operator of the runtime that writes a state in place, where a profile asks for it.

torch declares sizes of every value; the biases of the entries in use have one that is known only when they are read.
"""

from __future__ import annotations

import onnx_ir as ir

from xarch.contracts.export import Profile
from xarch.export.lowerings.lowering import Lowering

OPERATOR = "GroupQueryAttention"
BIAS = 10
"""Which input holds biases."""


def without_declared_sizes(model: ir.Model, profile: Profile) -> int:
    """Take back the declared sizes of cut biases in place; return the number of operators that read one."""
    found = [node for node in model.graph if node.op_type == OPERATOR and len(node.inputs) > BIAS]
    for node in found:
        bias = node.inputs[BIAS]
        if bias is not None and bias.producer() is not None:
            bias.shape = None
    return len(found)


LOWERING = Lowering(
    "group-query",
    "states of constant size read and written in place by GroupQueryAttention",
    graph=without_declared_sizes,
)
