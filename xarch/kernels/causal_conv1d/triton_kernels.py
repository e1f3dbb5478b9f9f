"""Triton kernels of the causal convolution: blocks of tokens and channels, float32 sums, the [B, L, C] layout as it is.

Legend: B batch, L outputs, U inputs (``lead`` of them before the first output), C channels, K taps; BT and BC are
blocks of tokens and channels.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def forward_kernel(
    x_ptr, weight_ptr, bias_ptr, run_ptr, y_ptr, length, channels, lead, x_b, x_u, w_c, w_k,
    HAS_BIAS: tl.constexpr, HAS_RUN: tl.constexpr, TAPS: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """y of one block."""
    b = tl.program_id(2).to(tl.int64)
    t = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    x_ptr += b * x_b
    run_ptr += b * (length + lead)
    inside = (t < length)[:, None] & (c < channels)[None, :]
    run_t = tl.zeros([BT], tl.int32)
    if HAS_RUN:
        run_t = tl.load(run_ptr + t + lead, mask=t < length, other=-1)
    y = tl.zeros([BT, BC], tl.float32)
    if HAS_BIAS:
        y += tl.load(bias_ptr + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    for j in tl.static_range(TAPS):
        u = t + lead - j
        reached = u >= 0
        if HAS_RUN:
            reached &= tl.load(run_ptr + u, mask=reached & (t < length), other=-1) == run_t
        x = tl.load(x_ptr + u[:, None] * x_u + c[None, :], mask=inside & reached[:, None], other=0.0)
        weight = tl.load(weight_ptr + c * w_c + (TAPS - 1 - j) * w_k, mask=c < channels, other=0.0)
        y += x.to(tl.float32) * weight.to(tl.float32)[None, :]
    y_ptr += (b * length + t[:, None]) * channels + c[None, :]
    tl.store(y_ptr, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    dy_ptr, x_ptr, weight_ptr, run_ptr, dx_ptr, sums_ptr, length, channels, lead, dy_b, dy_t, x_b, x_u, w_c, w_k,
    HAS_RUN: tl.constexpr, TAPS: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """dx of one block of inputs, and its parts of dweight and, last, dbias: [B, blocks, TAPS + 1, C]."""
    b = tl.program_id(2).to(tl.int64)
    u = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inputs = length + lead
    dy_ptr += b * dy_b
    run_ptr += b * inputs
    inside = (u < inputs)[:, None] & (c < channels)[None, :]
    x = tl.load(x_ptr + b * x_b + u[:, None] * x_u + c[None, :], mask=inside, other=0.0).to(tl.float32)
    run_u = tl.zeros([BT], tl.int32)
    if HAS_RUN:
        run_u = tl.load(run_ptr + u, mask=u < inputs, other=-1)
    dx = tl.zeros([BT, BC], tl.float32)
    sums_ptr += (b * tl.num_programs(0) + tl.program_id(0)) * (TAPS + 1) * channels + c
    for j in tl.static_range(TAPS):
        t = u - lead + j
        reaches = (t >= 0) & (t < length)
        if HAS_RUN:
            reaches &= tl.load(run_ptr + t + lead, mask=reaches, other=-1) == run_u
        dy = tl.load(dy_ptr + t[:, None] * dy_t + c[None, :], mask=inside & reaches[:, None], other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + c * w_c + (TAPS - 1 - j) * w_k, mask=c < channels, other=0.0)
        dx += dy * weight.to(tl.float32)[None, :]
        tl.store(sums_ptr + (TAPS - 1 - j) * channels, tl.sum(dy * x, 0), mask=c < channels)
        if j == 0:
            tl.store(sums_ptr + TAPS * channels, tl.sum(dy, 0), mask=c < channels)
    dx_ptr += (b * inputs + u[:, None]) * channels + c[None, :]
    tl.store(dx_ptr, dx.to(dx_ptr.dtype.element_ty), mask=inside)
