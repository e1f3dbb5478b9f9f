"""Triton kernels of the selective scan: a parallel scan over a block of tokens, one after another along the sequence.

Forward and the pass of the state's gradient take one channel per program; the other gradients take one block of tokens
and ``count`` channels of a group per program, so that sums over channels need no atomics.

Legend: B batch, D channels, L tokens, N state size, G B/C groups; BN and BL are blocks of N and L.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _after(a_l, b_l, a_r, b_r):
    """h -> a_r (a_l h + b_l) + b_r."""
    return a_l * a_r, a_r * b_l + b_r


@triton.jit
def _softplus(x):
    """log(1 + e^x) with all digits where e^x is tiny: log1p(u) = 2 artanh(u / (2 + u)) as a series."""
    u = tl.exp(-tl.abs(x))
    s = u / (2.0 + u)
    q = s * s
    series = 1.0 + q * (1.0 / 3 + q * (1.0 / 5 + q * (1.0 / 7 + q * (1.0 / 9 + q * (1.0 / 11 + q * (1.0 / 13))))))
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) + 2.0 * s * series


@triton.jit
def _step(raw, inside, SOFTPLUS: tl.constexpr):
    """Step size; outside the sequence it is zero, which leaves the state as it is."""
    return tl.where(inside, _softplus(raw) if SOFTPLUS else raw, 0.0)


@triton.jit
def _decay(step, A, FLOOR: tl.constexpr):
    """exp(step A) [BN, BL]."""
    return tl.exp(tl.maximum(step[None, :] * A[:, None], FLOOR, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def _row(ptr, t, inside):
    return tl.load(ptr + t, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _rows(ptr, n, t, stride, size, inside):
    mask = (n < size)[:, None] & inside[None, :]
    return tl.load(ptr + n[:, None] * stride + t[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _continues(run_ptr, t, length, HAS_RUN: tl.constexpr):
    """Whether the state before token t reaches it."""
    continues = t > -2
    if HAS_RUN:
        pair = (t > 0) & (t < length)
        now, before = tl.load(run_ptr + t, mask=pair, other=0), tl.load(run_ptr + t - 1, mask=pair, other=0)
        continues = now == before
    return continues


@triton.jit
def forward_kernel(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, initial_ptr, run_ptr, y_ptr, last_ptr, states_ptr,
    length, channels, size, ratio, chunks,
    x_b, x_d, dt_b, dt_d, B_b, B_g, B_n, C_b, C_g, C_n, z_b, z_d,
    FLOOR: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_INITIAL: tl.constexpr, HAS_RUN: tl.constexpr, BN: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """y of one channel, its last state, and its state before each block of tokens [B, D, chunks, N]."""
    d, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    n, i = tl.arange(0, BN), tl.arange(0, BL)
    known = n < size
    x_ptr += b * x_b + d.to(tl.int64) * x_d
    dt_ptr += b * dt_b + d.to(tl.int64) * dt_d
    z_ptr += b * z_b + d.to(tl.int64) * z_d
    B_ptr += b * B_b + (d // ratio) * B_g
    C_ptr += b * C_b + (d // ratio) * C_g
    run_ptr += b * length
    y_ptr += (b * channels + d) * length
    states_ptr += (b * channels + d) * chunks * size
    A = tl.load(A_ptr + d * size + n, mask=known, other=0.0)
    bias = tl.load(bias_ptr + d).to(tl.float32) if HAS_BIAS else 0.0
    state = tl.zeros([BN], tl.float32)
    if HAS_INITIAL:
        state = tl.load(initial_ptr + (b * channels + d) * size + n, mask=known, other=0.0)
    for chunk in range(0, chunks):
        tl.store(states_ptr + chunk * size + n, state, mask=known)
        t = chunk * BL + i
        inside = t < length
        x = _row(x_ptr, t, inside)
        step = _step(_row(dt_ptr, t, inside) + bias, inside, SOFTPLUS)
        decay = tl.where(_continues(run_ptr, t, length, HAS_RUN)[None, :], _decay(step, A, FLOOR), 0.0)
        gain = (step * x)[None, :] * _rows(B_ptr, n, t, B_n, size, inside)
        gain += tl.where((i == 0)[None, :], decay * state[:, None], 0.0)
        _, h = tl.associative_scan((decay, gain), 1, _after)
        y = tl.sum(h * _rows(C_ptr, n, t, C_n, size, inside), 0)
        if HAS_D:
            y += tl.load(D_ptr + d).to(tl.float32) * x
        if HAS_Z:
            z = _row(z_ptr, t, inside)
            y *= z * tl.sigmoid(z)
        tl.store(y_ptr + t, y.to(y_ptr.dtype.element_ty), mask=inside)
        state = tl.sum(tl.where((i == BL - 1)[None, :], h, 0.0), 1)
    tl.store(last_ptr + (b * channels + d) * size + n, state, mask=known)


@triton.jit
def pass_backward_kernel(
    dy_ptr, dt_ptr, A_ptr, C_ptr, z_ptr, bias_ptr, run_ptr, dlast_ptr, dstates_ptr, dinitial_ptr,
    length, channels, size, ratio, chunks,
    dy_b, dy_d, dt_b, dt_d, C_b, C_g, C_n, z_b, z_d,
    FLOOR: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_LAST: tl.constexpr, HAS_RUN: tl.constexpr, BN: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """What the state after each block of tokens gets from the tokens behind it [B, D, chunks, N], and dinitial.

    A block needs no scan for it: the product of decays from its first token on is the exponential of a prefix sum.
    """
    d, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    n, i = tl.arange(0, BN), tl.arange(0, BL)
    known = n < size
    dy_ptr += b * dy_b + d.to(tl.int64) * dy_d
    dt_ptr += b * dt_b + d.to(tl.int64) * dt_d
    z_ptr += b * z_b + d.to(tl.int64) * z_d
    C_ptr += b * C_b + (d // ratio) * C_g
    run_ptr += b * length
    row = (b * channels + d) * size + n
    dstates_ptr += (b * channels + d) * chunks * size
    A = tl.load(A_ptr + d * size + n, mask=known, other=0.0)
    bias = tl.load(bias_ptr + d).to(tl.float32) if HAS_BIAS else 0.0
    dstate = tl.zeros([BN], tl.float32)
    if HAS_LAST:
        dstate = tl.load(dlast_ptr + row, mask=known, other=0.0)
    for back in range(0, chunks):
        chunk = chunks - 1 - back
        tl.store(dstates_ptr + chunk * size + n, dstate, mask=known)
        t = chunk * BL + i
        inside = t < length
        dy = _row(dy_ptr, t, inside)
        if HAS_Z:
            z = _row(z_ptr, t, inside)
            dy *= z * tl.sigmoid(z)
        step = _step(_row(dt_ptr, t, inside) + bias, inside, SOFTPLUS)
        # From the state before the block to token t.
        decay = _decay(tl.cumsum(step, 0), A, FLOOR)
        through = tl.exp(tl.maximum(tl.sum(step, 0) * A, FLOOR, propagate_nan=tl.PropagateNan.ALL))
        if HAS_RUN:
            first = tl.load(run_ptr + tl.maximum(chunk * BL - 1, 0))
            run = tl.load(run_ptr + t, mask=inside, other=-1)
            decay = tl.where((run == first)[None, :], decay, 0.0)
            last = tl.load(run_ptr + tl.minimum(chunk * BL + BL, length) - 1)
            through = tl.where(last == first, through, 0.0)
        gained = tl.sum(decay * _rows(C_ptr, n, t, C_n, size, inside) * dy[None, :], 1)
        dstate = through * dstate + gained
    tl.store(dinitial_ptr + row, dstate, mask=known)


@triton.jit
def backward_kernel(
    dy_ptr, x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, run_ptr, states_ptr, dstates_ptr,
    dx_ptr, ddt_ptr, dz_ptr, dA_ptr, dB_ptr, dC_ptr, dD_ptr, dbias_ptr,
    length, channels, size, ratio, chunks, count,
    dy_b, dy_d, x_b, x_d, dt_b, dt_d, B_b, B_g, B_n, C_b, C_g, C_n, z_b, z_d,
    FLOOR: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RUN: tl.constexpr, BN: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """All other gradients of one block of tokens and ``count`` channels.

    Parts: dA [B, D, chunks, N], dD and dbias [B, D, chunks], dB and dC [B, parts, N, L].
    """
    chunk, part, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    n, i = tl.arange(0, BN), tl.arange(0, BL)
    known = n < size
    t = chunk * BL + i
    inside = t < length
    before, behind = (i > 0) & (t - 1 < length), t + 1 < length
    first_channel = part * count
    B_ptr += b * B_b + (first_channel // ratio) * B_g
    C_ptr += b * C_b + (first_channel // ratio) * C_g
    run_ptr += b * length
    continues = _continues(run_ptr, t, length, HAS_RUN)[None, :]
    continued = _continues(run_ptr, t - 1, length, HAS_RUN)[None, :]
    continuing = _continues(run_ptr, t + 1, length, HAS_RUN)[None, :]
    B_t, C_t = _rows(B_ptr, n, t, B_n, size, inside), _rows(C_ptr, n, t, C_n, size, inside)
    dB, dC = tl.zeros([BN, BL], tl.float32), tl.zeros([BN, BL], tl.float32)
    for d in range(first_channel, first_channel + count):
        at = b * channels + d
        x_d_ptr, dt_d_ptr = x_ptr + b * x_b + d * x_d, dt_ptr + b * dt_b + d * dt_d
        A = tl.load(A_ptr + d * size + n, mask=known, other=0.0)
        bias = tl.load(bias_ptr + d).to(tl.float32) if HAS_BIAS else 0.0
        D = tl.load(D_ptr + d).to(tl.float32) if HAS_D else 0.0
        x, raw = _row(x_d_ptr, t, inside), _row(dt_d_ptr, t, inside) + bias
        step = _step(raw, inside, SOFTPLUS)
        gain = (step * x)[None, :] * B_t
        # The states one token earlier, by a scan over what came one token earlier.
        state = tl.load(states_ptr + (at * chunks + chunk) * size + n, mask=known, other=0.0)
        step_b = _step(_row(dt_d_ptr, t - 1, before) + bias, before, SOFTPLUS)
        gain_b = (step_b * _row(x_d_ptr, t - 1, before))[None, :] * _rows(B_ptr, n, t - 1, B_n, size, before)
        gain_b += tl.where((i == 0)[None, :], state[:, None], 0.0)
        _, h_b = tl.associative_scan((tl.where(continued, _decay(step_b, A, FLOOR), 0.0), gain_b), 1, _after)
        arrives = tl.where(continues, _decay(step, A, FLOOR), 0.0) * h_b
        h = arrives + gain
        dy = _row(dy_ptr + b * dy_b + d * dy_d, t, inside)
        if HAS_Z:
            z = _row(z_ptr + b * z_b + d * z_d, t, inside)
            gate = tl.sigmoid(z)
            dz = dy * (tl.sum(h * C_t, 0) + D * x) * gate * (1.0 + z * (1.0 - gate))
            tl.store(dz_ptr + at * length + t, dz.to(dz_ptr.dtype.element_ty), mask=inside)
            dy *= z * gate
        dstate = tl.load(dstates_ptr + (at * chunks + chunk) * size + n, mask=known, other=0.0)
        step_a = _step(_row(dt_d_ptr, t + 1, behind) + bias, behind, SOFTPLUS)
        arriving = C_t * dy[None, :] + tl.where((i == BL - 1)[None, :], dstate[:, None], 0.0)
        decay_a = tl.where(continuing, _decay(step_a, A, FLOOR), 0.0)
        _, g = tl.associative_scan((decay_a, arriving), 1, _after, reverse=True)
        dB += g * (step * x)[None, :]
        dC += h * dy[None, :]
        through_B = tl.sum(g * B_t, 0)
        through_decay = g * arrives
        dx = step * through_B + D * dy
        ddt = tl.sum(through_decay * A[:, None], 0) + through_B * x
        if SOFTPLUS:
            ddt *= tl.sigmoid(raw)
        ddt = tl.where(inside, ddt, 0.0)
        tl.store(dx_ptr + at * length + t, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        tl.store(ddt_ptr + at * length + t, ddt.to(ddt_ptr.dtype.element_ty), mask=inside)
        dA = tl.sum(through_decay * step[None, :], 1)
        tl.store(dA_ptr + (at * chunks + chunk) * size + n, dA, mask=known)
        if HAS_D:
            tl.store(dD_ptr + at * chunks + chunk, tl.sum(dy * x, 0))
        if HAS_BIAS:
            tl.store(dbias_ptr + at * chunks + chunk, tl.sum(ddt, 0))
    where = ((b * tl.num_programs(1) + part) * size + n[:, None]) * length + t[None, :]
    keep = known[:, None] & inside[None, :]
    tl.store(dB_ptr + where, dB, mask=keep)
    tl.store(dC_ptr + where, dC, mask=keep)
