"""The Triton kernels compile to PTX for sm_80 and sm_90 without a GPU; the interpreter tests what they compute."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from triton_aot import compile_launches

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted")

SHARED_BYTES = {80: 166_912, 90: 232_448}
"""Shared memory that one program can have on A100 and H100."""


def ssd(dtype: torch.dtype, arch: int) -> Callable[[], Any]:
    """Mamba-2's common shape with one group in bfloat16, Discrete-Mamba-2's in float32."""
    groups, size = (1, 128) if dtype == torch.bfloat16 else (4, 64)
    chunk = 128 if arch == 80 else 256

    def call() -> None:
        x = torch.zeros(1, 512, 4, 64, dtype=dtype)
        B, C = torch.zeros(2, 1, 512, groups, size, dtype=dtype).unbind()
        run, D = torch.zeros(1, 512, dtype=torch.int32), torch.zeros(4)
        operands = (x, torch.zeros(1, 512, 4), B, C, D, torch.zeros(1, 4, 64, size), run, chunk)
        _, last, S, states = torch.ops.xarch.ssd_triton_forward(*operands)
        torch.ops.xarch.ssd_triton_backward(x, last, x, B, C, D, run, last, S, states, chunk)

    return call


def gated_delta(dtype: torch.dtype, arch: int) -> Callable[[], Any]:
    """Three query heads a state, with documents for one of the two targets."""

    def call() -> None:
        q, k = torch.zeros(1, 96, 6, 64, dtype=dtype), torch.zeros(1, 96, 2, 64, dtype=dtype)
        gates, state = torch.zeros(1, 96, 2), torch.zeros(1, 2, 64, 64)
        run = torch.zeros(1, 96, dtype=torch.int32) if arch == 90 else None
        operands = (q, k, k, gates, gates)
        _, last, kept = torch.ops.xarch.gated_delta_triton_forward(*operands, state, run, 32)
        torch.ops.xarch.gated_delta_triton_backward(q, last, *operands, run, kept, 32)

    return call


def matrix_distance(dtype: torch.dtype, arch: int) -> Callable[[], Any]:
    """Grouped keys; one B/C group per head in bfloat16, shared ones in float32."""
    groups = 4 if dtype == torch.bfloat16 else 2

    def call() -> None:
        q, k = torch.zeros(1, 256, 4, 64, dtype=dtype), torch.zeros(1, 256, 2, 64, dtype=dtype)
        C, B = torch.zeros(2, 1, 256, groups, 64, dtype=dtype).unbind()
        border = torch.zeros(1, 256, dtype=torch.int32)
        real, window = torch.ones(1, 256, dtype=torch.uint8), 100 if arch == 90 else None
        operands = (C, B, torch.zeros(1, 256, 4), torch.zeros(4), q, k, border, border, real, 0.1, window, None)
        _, _, lse, *half = torch.ops.xarch.matrix_distance_triton_forward(*operands, groups == 4)
        half = half if groups == 4 else [None] * 3
        torch.ops.xarch.matrix_distance_triton_backward(torch.zeros(1, 4), *operands, lse, *half)

    return call


def selective_scan(dtype: torch.dtype, arch: int) -> Callable[[], Any]:
    """Mamba's 16 states with everything a call can have; 64 without a gate for one of the two targets."""
    size = 16 if arch == 90 else 64

    def call() -> None:
        x, B = torch.zeros(1, 64, 256, dtype=dtype), torch.zeros(1, 1, size, 256, dtype=dtype)
        D, z, run = torch.zeros(64), x if arch == 90 else None, torch.zeros(1, 256, dtype=torch.int32)
        operands = (x, x, torch.zeros(64, size), B, B, D, z, D)
        _, last, states = torch.ops.xarch.selective_scan_triton_forward(*operands, torch.zeros(1, 64, size), run, True)
        torch.ops.xarch.selective_scan_triton_backward(x, last, *operands, run, states, True)

    return call


def causal_conv1d(dtype: torch.dtype, arch: int) -> Callable[[], Any]:
    """Four taps over a slice of a wider projection, with documents for one of the two targets."""

    def call() -> None:
        x = torch.zeros(1, 256, 512, dtype=dtype)[..., 128:]
        weight, run = torch.zeros(384, 4), torch.zeros(1, 256, dtype=torch.int32) if arch == 90 else None
        torch.ops.xarch.causal_conv1d_triton_forward(x, weight, torch.zeros(384), run, 0)
        torch.ops.xarch.causal_conv1d_triton_backward(x, x, weight, run, 0)

    return call


def prefix_mlp(dtype: torch.dtype, arch: int) -> Callable[[], Any]:
    """A gated perceptron with biases for one of the two targets, one layer without for the other."""

    def call() -> None:
        x, count = torch.zeros(256, 192, dtype=dtype), torch.zeros(256, dtype=torch.int64)
        into, out = torch.zeros(768, 192, dtype=dtype), torch.zeros(192, 768, dtype=dtype)
        biases = torch.zeros(768), torch.zeros(192)
        gated = (
            (into, biases[0], into, biases[0], out, biases[1]) if arch == 90 else (into, None, None, None, out, None)
        )
        torch.ops.xarch.prefix_mlp_triton_forward(x, count, *gated, [0, 192, 768], "gelu")

    return call


@pytest.mark.parametrize(
    ("call", "kernels", "dtype", "arch"),
    [
        pytest.param(
            call, kernels, dtype, arch,
            # These take seconds; test_triton_interpreter.py runs their kernels.
            marks=()
            if (dtype, arch) == (torch.bfloat16, 90) and call not in (matrix_distance, gated_delta, ssd, prefix_mlp)
            else pytest.mark.slow,
            id=f"{call.__name__}-{dtype}-{arch}",
        )
        for call, kernels in [(ssd, 8), (gated_delta, 2), (matrix_distance, 2), (causal_conv1d, 2), (selective_scan, 3),
                              (prefix_mlp, 2)]
        for dtype in (torch.bfloat16, torch.float32)
        for arch in (80, 90)
        if call is not prefix_mlp or (dtype, arch) in ((torch.bfloat16, 90), (torch.float32, 80))
    ],
)  # fmt: skip
def test_kernels_compile_and_fit(call, kernels, dtype, arch, tmp_path, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled = compile_launches(call(dtype, arch), arch)
    assert len({kernel.name for kernel in compiled}) == kernels
    for kernel in compiled:
        assert f".target sm_{arch}" in kernel.ptx
        assert f".entry {kernel.name}" in kernel.ptx
        assert kernel.shared_bytes <= SHARED_BYTES[arch], kernel.name
    # Products must reach the tensor cores.
    assert call in (causal_conv1d, selective_scan) or any("mma" in kernel.ptx for kernel in compiled)
