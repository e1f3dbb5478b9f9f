"""Triton kernels of the perceptron: one makes hidden values, the other reads those that a tile of positions has.

Positions are sorted, most units first: the first of a tile says how far its products go, so what lies behind is neither
computed nor read.

Legend: T positions, D width of the input, F hidden units, O width of the output; BT, BF, BD and BO are blocks of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from xarch.kernels.triton_tiles import tile_t


@triton.jit
def _activated(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == 1:
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == 2:
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == 3:
        x = x * tl.sigmoid(1.5957691216057308 * x * (1.0 + 0.044715 * x * x))
    elif ACTIVATION == 4:
        x = x * tl.sigmoid(x)
    return x


@triton.jit
def _read(
    x_ptr, weight_ptr, bias_ptr, place, here, f, width, units, x_t, w_f,
    HAS_BIAS: tl.constexpr, BT: tl.constexpr, BF: tl.constexpr, BD: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What a layer gives for positions ``place`` and units ``f`` [BT, BF]."""
    made = tl.zeros([BT, BF], tl.float32)
    for start in range(0, width, BD):
        d = start + tl.arange(0, BD)
        keep = here[:, None] & (d < width)[None, :]
        x = tl.load(x_ptr + place[:, None] * x_t + d[None, :], mask=keep, other=0.0)
        weight = tile_t(weight_ptr, f, d, w_f, units, width)
        made = tl.dot(x.to(DOT), weight.to(DOT), made, input_precision=PRECISION)
    if HAS_BIAS:
        made += tl.load(bias_ptr + f, mask=f < units, other=0.0).to(tl.float32)[None, :]
    return made


@triton.jit
def hidden_kernel(
    x_ptr, order_ptr, most_ptr, first_ptr, first_bias_ptr, second_ptr, second_bias_ptr, hidden_ptr,
    positions, width, units, x_t, first_f, second_f,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, HAS_FIRST: tl.constexpr, HAS_SECOND: tl.constexpr,
    BT: tl.constexpr, BF: tl.constexpr, BD: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Hidden values [T, F] of sorted positions, zero where a position does not have the unit, up to the most of a
    tile."""
    t, f = tl.program_id(0) * BT + tl.arange(0, BT), tl.program_id(1) * BF + tl.arange(0, BF)
    most = tl.load(most_ptr + tl.program_id(0) * BT)
    if tl.program_id(1) * BF < most:
        here = t < positions
        place = tl.load(order_ptr + t, mask=here, other=0)
        own = tl.load(most_ptr + t, mask=here, other=0)
        made = _read(
            x_ptr, first_ptr, first_bias_ptr, place, here, f, width, units, x_t, first_f,
            HAS_FIRST, BT, BF, BD, DOT, PRECISION,
        )  # fmt: skip
        made = _activated(made, ACTIVATION)
        if GATED:
            made *= _read(
                x_ptr, second_ptr, second_bias_ptr, place, here, f, width, units, x_t, second_f,
                HAS_SECOND, BT, BF, BD, DOT, PRECISION,
            )  # fmt: skip
        made = tl.where(f[None, :] < own[:, None], made, 0.0)
        at = hidden_ptr + t.to(tl.int64)[:, None] * units + f[None, :]
        tl.store(at, made.to(hidden_ptr.dtype.element_ty), mask=here[:, None] & (f < units)[None, :])


@triton.jit
def output_kernel(
    hidden_ptr, order_ptr, most_ptr, weight_ptr, bias_ptr, y_ptr,
    positions, units, outputs, w_o,
    HAS_BIAS: tl.constexpr,
    BT: tl.constexpr, BF: tl.constexpr, BO: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Outputs [T, O], each where its position is."""
    t, o = tl.program_id(0) * BT + tl.arange(0, BT), tl.program_id(1) * BO + tl.arange(0, BO)
    here = t < positions
    most = tl.load(most_ptr + tl.program_id(0) * BT)
    made = tl.zeros([BT, BO], tl.float32)
    for start in range(0, most, BF):
        f = start + tl.arange(0, BF)
        at = hidden_ptr + t.to(tl.int64)[:, None] * units + f[None, :]
        hidden = tl.load(at, mask=here[:, None] & (f < most)[None, :], other=0.0)
        weight = tile_t(weight_ptr, o, f, w_o, outputs, most)
        made = tl.dot(hidden.to(DOT), weight.to(DOT), made, input_precision=PRECISION)
    if HAS_BIAS:
        made += tl.load(bias_ptr + o, mask=o < outputs, other=0.0).to(tl.float32)[None, :]
    place = tl.load(order_ptr + t, mask=here, other=0)
    keep = here[:, None] & (o < outputs)[None, :]
    tl.store(y_ptr + place[:, None] * outputs + o[None, :], made.to(y_ptr.dtype.element_ty), mask=keep)
