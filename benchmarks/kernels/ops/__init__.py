"""The operations that are measured."""

from __future__ import annotations

from benchmarks.kernels.operation import Operation


def operations() -> dict[str, Operation]:
    """By name."""
    from benchmarks.kernels.ops import causal_conv1d, gated_delta, matrix_distance, selective_scan, ssd

    found = [selective_scan, ssd, gated_delta, causal_conv1d, matrix_distance]
    return {module.OPERATION.name: module.OPERATION for module in found}
