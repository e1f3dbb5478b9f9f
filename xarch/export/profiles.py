"""Deployment targets that are tested. A target is data: another one is another :class:`Profile` here or in a plugin."""

from __future__ import annotations

from xarch.contracts.export import Profile

CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
"""Operators that run a sub-graph per step: orders of magnitude slower than the same arithmetic written out, and
absent from most accelerators."""

cpu = Profile(
    name="cpu",
    provider="CPUExecutionProvider",
    # what torch's exporter writes without conversion, and what onnxruntime reads since 1.14
    max_opset=18,
    max_ir=8,
    forbidden_ops=CONTROL_FLOW,
    lowerings=("chunked",),
    summary="onnxruntime on a CPU, float32",
)
