"""Triton kernels of SSD in chunks: prefix sums, one sum per chunk, the pass over chunks, and the chunks themselves.

Chunks of Q tokens are visited in tiles of T. S is the running sum of log a from the start of its chunk, padded to whole
chunks [B, H, ceil(L / Q)·Q]. README.md has the formulas.

Legend: B batch, L tokens, H heads, G B/C groups, P value width, N state size; BP, BN and BH are blocks of P, N and H.
"""

from __future__ import annotations

import triton
import triton.language as tl

from xarch.kernels.triton_tiles import between, decayed, tile, tile_t


@triton.jit
def prefix_kernel(
    log_a_ptr, S_ptr, length, heads, padded, a_b, a_l, a_h, FLOOR: tl.constexpr, Q: tl.constexpr, BH: tl.constexpr
):
    """S from log a, one chunk of BH heads."""
    chunk, b = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    h = tl.program_id(1) * BH + tl.arange(0, BH)
    t = chunk * Q + tl.arange(0, Q)
    keep = (h < heads)[:, None] & (t < length)[None, :]
    log_a = tl.load(log_a_ptr + b * a_b + h[:, None] * a_h + t[None, :] * a_l, mask=keep, other=0.0).to(tl.float32)
    S = tl.cumsum(tl.maximum(log_a, FLOOR, propagate_nan=tl.PropagateNan.ALL), 1)
    tl.store(S_ptr + (b * heads + h[:, None]) * padded + t[None, :], S, mask=(h < heads)[:, None])


@triton.jit
def chunk_sums_kernel(
    u_ptr, v_ptr, S_ptr, run_ptr, out_ptr, length, heads, ratio, width, size, padded,
    u_b, u_l, u_h, v_b, v_l, v_g,
    FLOOR: tl.constexpr, ENTER: tl.constexpr, HAS_RUN: tl.constexpr, Q: tl.constexpr, T: tl.constexpr,
    BP: tl.constexpr, BN: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Σ_t w_t u_t v_tᵀ of a chunk [P, N], w_t the decay from t to the chunk's end, or to t from before (ENTER)."""
    chunk, b = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    blocks = tl.cdiv(width, BP)
    h = tl.program_id(1) // blocks
    p, n = (tl.program_id(1) % blocks) * BP + tl.arange(0, BP), tl.arange(0, BN)
    start = chunk * Q
    S_ptr += (b * heads + h) * padded + start
    u_ptr += b * u_b + start * u_l + h * u_h
    v_ptr += b * v_b + start * v_l + (h // ratio) * v_g
    rows = tl.minimum(length - start, Q)
    total = tl.load(S_ptr + Q - 1)
    border = 0
    if HAS_RUN:
        run_ptr += b * length
        border = tl.load(run_ptr + (tl.maximum(start - 1, 0) if ENTER else start + rows - 1))
        run_ptr += start
    out = tl.zeros([BP, BN], tl.float32)
    for first in range(0, Q, T):
        t = first + tl.arange(0, T)
        S = tl.load(S_ptr + t)
        weight = decayed(S if ENTER else total - S, FLOOR)
        if HAS_RUN:
            weight = tl.where(tl.load(run_ptr + t, mask=t < rows, other=-1) == border, weight, 0.0)
        u = tile_t(u_ptr, t, p, u_l, rows, width).to(tl.float32) * weight[None, :]
        v = tile(v_ptr, t, n, v_l, rows, size)
        out = tl.dot(u.to(DOT), v.to(DOT), out, input_precision=PRECISION)
    out_ptr += ((b * tl.num_programs(0) + chunk) * heads + h) * width * size
    keep = (p < width)[:, None] & (n < size)[None, :]
    tl.store(out_ptr + p[:, None] * size + n[None, :], out, mask=keep)


@triton.jit
def _cross(S_ptr, run_ptr, chunk, length, FLOOR: tl.constexpr, HAS_RUN: tl.constexpr, Q: tl.constexpr):
    """Decay from the state before a chunk to the state after it."""
    cross = decayed(tl.load(S_ptr + chunk * Q + Q - 1), FLOOR)
    if HAS_RUN:
        before = tl.load(run_ptr + tl.maximum(chunk * Q - 1, 0))
        last = tl.load(run_ptr + tl.minimum(chunk * Q + Q, length) - 1)
        cross = tl.where(before == last, cross, 0.0)
    return cross


@triton.jit
def pass_kernel(
    states_ptr, initial_ptr, last_ptr, S_ptr, run_ptr, length, heads, cells, padded, chunks,
    FLOOR: tl.constexpr, HAS_INITIAL: tl.constexpr, HAS_RUN: tl.constexpr, Q: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Turn the sum of each chunk, in place, into the state before it; write the last state."""
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    keep = cell < cells
    h, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = b * heads + h
    S_ptr += row * padded
    run_ptr += b * length
    state = tl.zeros([BLOCK], tl.float32)
    if HAS_INITIAL:
        state = tl.load(initial_ptr + row * cells + cell, mask=keep, other=0.0)
    for chunk in range(0, chunks):
        where = states_ptr + ((b * chunks + chunk) * heads + h) * cells + cell
        gained = tl.load(where, mask=keep, other=0.0)
        tl.store(where, state, mask=keep)
        state = _cross(S_ptr, run_ptr, chunk, length, FLOOR, HAS_RUN, Q) * state + gained
    tl.store(last_ptr + row * cells + cell, state, mask=keep)


@triton.jit
def pass_backward_kernel(
    dstates_ptr, dlast_ptr, states_ptr, last_ptr, dinitial_ptr, dT_ptr, S_ptr, run_ptr,
    length, heads, cells, padded, chunks,
    FLOOR: tl.constexpr, HAS_LAST: tl.constexpr, HAS_RUN: tl.constexpr, Q: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Turn what each chunk gives the state before it, in place, into the gradient of the state after it.

    Also dT = ⟨gradient, state⟩ after each chunk, one part per block of cells [B, H, chunks, blocks].
    """
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    keep = cell < cells
    h, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = b * heads + h
    S_ptr += row * padded
    run_ptr += b * length
    dstate = tl.zeros([BLOCK], tl.float32)
    if HAS_LAST:
        dstate = tl.load(dlast_ptr + row * cells + cell, mask=keep, other=0.0)
    after = tl.load(last_ptr + row * cells + cell, mask=keep, other=0.0)
    for back in range(0, chunks):
        chunk = chunks - 1 - back
        where = ((b * chunks + chunk) * heads + h) * cells + cell
        gained = tl.load(dstates_ptr + where, mask=keep, other=0.0)
        tl.store(dstates_ptr + where, dstate, mask=keep)
        tl.store(dT_ptr + (row * chunks + chunk) * tl.num_programs(0) + tl.program_id(0), tl.sum(dstate * after, 0))
        dstate = _cross(S_ptr, run_ptr, chunk, length, FLOOR, HAS_RUN, Q) * dstate + gained
        after = tl.load(states_ptr + where, mask=keep, other=0.0)
    tl.store(dinitial_ptr + row * cells + cell, dstate, mask=keep)


@triton.jit
def scan_kernel(
    x_ptr, B_ptr, C_ptr, D_ptr, S_ptr, run_ptr, states_ptr, y_ptr, length, heads, ratio, width, size, padded,
    x_b, x_l, x_h, B_b, B_l, B_g, C_b, C_l, C_g,
    FLOOR: tl.constexpr, HAS_D: tl.constexpr, HAS_RUN: tl.constexpr, Q: tl.constexpr, T: tl.constexpr,
    BP: tl.constexpr, BN: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y of one tile of rows and one block of P: from the state before the chunk and from the tiles up to its own."""
    TILES: tl.constexpr = Q // T
    chunk, i = tl.program_id(0).to(tl.int64) // TILES, tl.program_id(0) % TILES
    b = tl.program_id(2).to(tl.int64)
    blocks = tl.cdiv(width, BP)
    h = tl.program_id(1) // blocks
    p, n = (tl.program_id(1) % blocks) * BP + tl.arange(0, BP), tl.arange(0, BN)
    start = chunk * Q
    rows = tl.minimum(length - start, Q)
    S_ptr += (b * heads + h) * padded + start
    x_ptr += b * x_b + start * x_l + h * x_h
    B_ptr += b * B_b + start * B_l + (h // ratio) * B_g
    C_ptr += b * C_b + start * C_l + (h // ratio) * C_g
    run_ptr += b * length + start
    states_ptr += ((b * (padded // Q) + chunk) * heads + h) * width * size
    t = i * T + tl.arange(0, T)
    S_t = tl.load(S_ptr + t)
    C_t = tile(C_ptr, t, n, C_l, rows, size).to(DOT)
    state = tile_t(states_ptr, p, n, size, width, size).to(DOT)
    enter = decayed(S_t, FLOOR)
    run_t = tl.zeros([T], tl.int32)
    if HAS_RUN:
        run_t = tl.load(run_ptr + t, mask=t < rows, other=-1)
        enter = tl.where(run_t == tl.load(run_ptr - tl.where(start > 0, 1, 0)), enter, 0.0)
    y = tl.dot(C_t, state, input_precision=PRECISION) * enter[:, None]
    for j in range(0, i + 1):
        s = j * T + tl.arange(0, T)
        score = tl.dot(C_t, tile_t(B_ptr, s, n, B_l, rows, size).to(DOT), input_precision=PRECISION)
        keep = t[:, None] >= s[None, :]
        if HAS_RUN:
            keep &= run_t[:, None] == tl.load(run_ptr + s, mask=s < rows, other=-1)[None, :]
        score = tl.where(keep, score * between(S_t[:, None], tl.load(S_ptr + s)[None, :], FLOOR), 0.0)
        x_s = tile(x_ptr, s, p, x_l, rows, width).to(DOT)
        y = tl.dot(score.to(DOT), x_s, y, input_precision=PRECISION)
    if HAS_D:
        y += tl.load(D_ptr + h).to(tl.float32) * tile(x_ptr, t, p, x_l, rows, width).to(tl.float32)
    y_ptr += ((b * length + start) * heads + h) * width
    keep = (t < rows)[:, None] & (p < width)[None, :]
    tl.store(y_ptr + t[:, None] * heads * width + p[None, :], y.to(y_ptr.dtype.element_ty), mask=keep)
