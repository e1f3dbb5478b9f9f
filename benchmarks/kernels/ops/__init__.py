"""The operations that are measured."""

from __future__ import annotations

from benchmarks.kernels.operation import Operation


def operations() -> dict[str, Operation]:
    """By name."""
    from benchmarks.kernels.ops import causal_conv1d, matrix_distance, selective_scan, ssd

    found = [selective_scan.OPERATION, ssd.OPERATION, causal_conv1d.OPERATION, matrix_distance.OPERATION]
    return {o.name: o for o in found}
