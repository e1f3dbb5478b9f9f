"""Triton kernels of the backward pass of SSD: rows give dC, columns dB and dx, both the gradient of S.

Legend: see :mod:`xarch.kernels.ssd.triton_kernels`. A program takes ``count`` heads of one group, one after another, so
that the sum over them needs no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from xarch.kernels.triton_tiles import between, decayed, tile, tile_t


@triton.jit
def rows_kernel(
    dy_ptr, x_ptr, B_ptr, C_ptr, S_ptr, run_ptr, states_ptr, dC_ptr, dS_ptr,
    length, heads, ratio, count, width, size, padded,
    dy_b, dy_l, dy_h, x_b, x_l, x_h, B_b, B_l, B_g, C_b, C_l, C_g,
    FLOOR: tl.constexpr, HAS_RUN: tl.constexpr, Q: tl.constexpr, T: tl.constexpr,
    BP: tl.constexpr, BN: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dC [B, L, parts, N] summed over the heads of a part, and what S_t gains, of one tile of rows."""
    TILES: tl.constexpr = Q // T
    chunk, i = tl.program_id(0).to(tl.int64) // TILES, tl.program_id(0) % TILES
    part, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    p, n = tl.arange(0, BP), tl.arange(0, BN)
    first_head = part * count
    start = chunk * Q
    rows = tl.minimum(length - start, Q)
    B_ptr += b * B_b + start * B_l + (first_head // ratio) * B_g
    C_ptr += b * C_b + start * C_l + (first_head // ratio) * C_g
    x_ptr += b * x_b + start * x_l
    dy_ptr += b * dy_b + start * dy_l
    run_ptr += b * length + start
    t = i * T + tl.arange(0, T)
    C_t = tile(C_ptr, t, n, C_l, rows, size)
    run_t = tl.zeros([T], tl.int32)
    reached = tl.full([T], 1, tl.int1)
    if HAS_RUN:
        run_t = tl.load(run_ptr + t, mask=t < rows, other=-1)
        reached = run_t == tl.load(run_ptr - tl.where(start > 0, 1, 0))
    dC = tl.zeros([T, BN], tl.float32)
    for h in range(first_head, first_head + count):
        S_h = S_ptr + (b * heads + h) * padded + start
        S_t = tl.load(S_h + t)
        dy_t = tile(dy_ptr + h * dy_h, t, p, dy_l, rows, width).to(DOT)
        state = tile(states_ptr + ((b * (padded // Q) + chunk) * heads + h) * width * size, p, n, size, width, size)
        enter = tl.where(reached, decayed(S_t, FLOOR), 0.0)
        gained = tl.dot(dy_t, state.to(DOT), input_precision=PRECISION) * enter[:, None]
        dC += gained
        dS = tl.sum(C_t.to(tl.float32) * gained, 1)
        for j in range(0, i + 1):
            s = j * T + tl.arange(0, T)
            x_s = tile_t(x_ptr + h * x_h, s, p, x_l, rows, width).to(DOT)
            B_s = tile(B_ptr, s, n, B_l, rows, size).to(DOT)
            keep = t[:, None] >= s[None, :]
            if HAS_RUN:
                keep &= run_t[:, None] == tl.load(run_ptr + s, mask=s < rows, other=-1)[None, :]
            decay = tl.where(keep, between(S_t[:, None], tl.load(S_h + s)[None, :], FLOOR), 0.0)
            dscore = tl.dot(dy_t, x_s, input_precision=PRECISION) * decay
            score = tl.dot(C_t.to(DOT), tl.trans(B_s), input_precision=PRECISION)
            # On the diagonal S_t meets itself: what it gains and loses cancels.
            dS += tl.sum(tl.where(t[:, None] > s[None, :], dscore * score, 0.0), 1)
            dC = tl.dot(dscore.to(DOT), B_s, dC, input_precision=PRECISION)
        tl.store(dS_ptr + (b * heads + h) * padded + start + t, dS)
    parts = tl.num_programs(1)
    dC_ptr += ((b * length + start) * parts + part) * size
    keep = (t < rows)[:, None] & (n < size)[None, :]
    tl.store(dC_ptr + t[:, None] * parts * size + n[None, :], dC.to(dC_ptr.dtype.element_ty), mask=keep)


@triton.jit
def columns_kernel(
    dy_ptr, x_ptr, B_ptr, C_ptr, D_ptr, S_ptr, run_ptr, dstates_ptr, dx_ptr, dB_ptr, dD_ptr, dS_ptr,
    length, heads, ratio, count, width, size, padded,
    dy_b, dy_l, dy_h, x_b, x_l, x_h, B_b, B_l, B_g, C_b, C_l, C_g,
    FLOOR: tl.constexpr, HAS_D: tl.constexpr, HAS_RUN: tl.constexpr, Q: tl.constexpr, T: tl.constexpr,
    BP: tl.constexpr, BN: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dx, dB [B, L, parts, N], the part of dD [B, H, tiles], and what S_s loses, of one tile of columns."""
    TILES: tl.constexpr = Q // T
    chunk, j = tl.program_id(0).to(tl.int64) // TILES, tl.program_id(0) % TILES
    part, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    p, n = tl.arange(0, BP), tl.arange(0, BN)
    first_head = part * count
    start = chunk * Q
    rows = tl.minimum(length - start, Q)
    B_ptr += b * B_b + start * B_l + (first_head // ratio) * B_g
    C_ptr += b * C_b + start * C_l + (first_head // ratio) * C_g
    x_ptr += b * x_b + start * x_l
    dy_ptr += b * dy_b + start * dy_l
    run_ptr += b * length + start
    s = j * T + tl.arange(0, T)
    B_s = tile(B_ptr, s, n, B_l, rows, size)
    run_s = tl.zeros([T], tl.int32)
    leaves = tl.full([T], 1, tl.int1)
    if HAS_RUN:
        run_s = tl.load(run_ptr + s, mask=s < rows, other=-1)
        leaves = run_s == tl.load(run_ptr + rows - 1)
    dB = tl.zeros([T, BN], tl.float32)
    for h in range(first_head, first_head + count):
        S_h = S_ptr + (b * heads + h) * padded + start
        S_s = tl.load(S_h + s)
        x_s = tile(x_ptr + h * x_h, s, p, x_l, rows, width).to(DOT)
        dstate_ptr = dstates_ptr + ((b * (padded // Q) + chunk) * heads + h) * width * size
        dstate = tile(dstate_ptr, p, n, size, width, size).to(DOT)
        leave = tl.where(leaves, decayed(tl.load(S_h + Q - 1) - S_s, FLOOR), 0.0)
        lost = tl.dot(x_s, dstate, input_precision=PRECISION) * leave[:, None]
        dB += lost
        dS = tl.sum(B_s.to(tl.float32) * lost, 1)
        dx = tl.dot(B_s.to(DOT), tl.trans(dstate), input_precision=PRECISION) * leave[:, None]
        for i in range(j, TILES):
            t = i * T + tl.arange(0, T)
            C_t = tile(C_ptr, t, n, C_l, rows, size).to(DOT)
            dy_t = tile(dy_ptr + h * dy_h, t, p, dy_l, rows, width).to(DOT)
            keep = t[None, :] >= s[:, None]
            if HAS_RUN:
                keep &= run_s[:, None] == tl.load(run_ptr + t, mask=t < rows, other=-1)[None, :]
            decay = tl.where(keep, between(tl.load(S_h + t)[None, :], S_s[:, None], FLOOR), 0.0)
            score = tl.dot(B_s.to(DOT), tl.trans(C_t), input_precision=PRECISION)
            dscore = tl.dot(x_s, tl.trans(dy_t), input_precision=PRECISION) * decay
            dS += tl.sum(tl.where(t[None, :] > s[:, None], dscore * score, 0.0), 1)
            dx = tl.dot((score * decay).to(DOT), dy_t, dx, input_precision=PRECISION)
            dB = tl.dot(dscore.to(DOT), C_t, dB, input_precision=PRECISION)
        if HAS_D:
            dy_s = tile(dy_ptr + h * dy_h, s, p, dy_l, rows, width).to(tl.float32)
            dx += tl.load(D_ptr + h).to(tl.float32) * dy_s
            dD = tl.sum(tl.sum(dy_s * tile(x_ptr + h * x_h, s, p, x_l, rows, width).to(tl.float32), 1), 0)
            tl.store(dD_ptr + (b * heads + h) * tl.num_programs(0) + tl.program_id(0), dD)
        dS_h = dS_ptr + (b * heads + h) * padded + start
        tl.store(dS_h + s, tl.load(dS_h + s) - dS)
        dx_h = dx_ptr + ((b * length + start) * heads + h) * width
        keep_x = (s < rows)[:, None] & (p < width)[None, :]
        tl.store(dx_h + s[:, None] * heads * width + p[None, :], dx.to(dx_ptr.dtype.element_ty), mask=keep_x)
    parts = tl.num_programs(1)
    dB_ptr += ((b * length + start) * parts + part) * size
    keep_B = (s < rows)[:, None] & (n < size)[None, :]
    tl.store(dB_ptr + s[:, None] * parts * size + n[None, :], dB.to(dB_ptr.dtype.element_ty), mask=keep_B)


@triton.jit
def log_decay_kernel(
    dS_ptr, dT_ptr, dlog_a_ptr, length, heads, padded, chunks, Q: tl.constexpr, BH: tl.constexpr
):  # fmt: skip
    """dlog a_k = Σ_{t ≥ k} dS_t + dT within each chunk, [B, L, H]."""
    chunk, b = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    h = tl.program_id(1) * BH + tl.arange(0, BH)
    t = chunk * Q + tl.arange(0, Q)
    inside = (h < heads)[:, None]
    dS = tl.load(dS_ptr + (b * heads + h[:, None]) * padded + t[None, :], mask=inside, other=0.0)
    dT = tl.load(dT_ptr + (b * heads + h) * chunks + chunk, mask=h < heads, other=0.0)
    dlog_a = tl.cumsum(dS, 1, reverse=True) + dT[:, None]
    keep = inside & (t < length)[None, :]
    tl.store(dlog_a_ptr + (b * length + t[None, :]) * heads + h[:, None], dlog_a, mask=keep)
