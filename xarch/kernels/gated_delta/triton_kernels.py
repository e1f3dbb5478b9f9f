"""Triton kernels of the gated delta rule: a program takes one state through all chunks, with all its query heads.

The inverse of the triangular system of a chunk is built by blocks, in log2 Q rounds of two products. README.md has the
formulas.

Legend: B batch, L tokens, H query heads, K key/value heads, P value width, N key width, Q tokens of a chunk; BP and BN
are blocks of P and N. States are [P, N] in memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from xarch.kernels.triton_tiles import between, decayed, tile


@triton.jit
def _decays(
    log_a_ptr, run_ptr, start, length, a_l, FLOOR: tl.constexpr, HAS_RUN: tl.constexpr, Q: tl.constexpr
):  # fmt: skip
    """Decays inside the chunk [Q, Q], from the state before it, to the state after it [Q], and through it."""
    t = tl.arange(0, Q)
    keep = t < length - start
    log_a = tl.load(log_a_ptr + t * a_l, mask=keep, other=0.0).to(tl.float32)
    S = tl.cumsum(tl.maximum(log_a, FLOOR, propagate_nan=tl.PropagateNan.ALL), 0)
    total = tl.sum(tl.where(t == Q - 1, S, 0.0), 0)
    inside = tl.where(t[:, None] >= t[None, :], between(S[:, None], S[None, :], FLOOR), 0.0)
    enter, leave, cross = decayed(S, FLOOR), decayed(total - S, FLOOR), decayed(total, FLOOR)
    if HAS_RUN:
        run = tl.load(run_ptr + start + t, mask=keep, other=-1)
        before = tl.load(run_ptr + tl.maximum(start - 1, 0))
        last = tl.load(run_ptr + tl.minimum(start + Q, length) - 1)
        inside = tl.where(run[:, None] == run[None, :], inside, 0.0)
        enter = tl.where(run == before, enter, 0.0)
        leave = tl.where(run == last, leave, 0.0)
        cross = tl.where(before == last, cross, 0.0)
    return inside, enter, leave, cross


@triton.jit
def _inverse(system, Q: tl.constexpr, ROUNDS: tl.constexpr, PRECISION: tl.constexpr):
    """(I + system)⁻¹ for a system that is zero on and above the diagonal."""
    row, column = tl.arange(0, Q)[:, None], tl.arange(0, Q)[None, :]
    inverse = tl.where(row == column, 1.0, 0.0)
    for i in tl.static_range(ROUNDS):
        corner = (row // (2 << i) == column // (2 << i)) & (row // (1 << i) > column // (1 << i))
        left = tl.dot(inverse, tl.where(corner, system, 0.0), input_precision=PRECISION)
        inverse -= tl.dot(left, inverse, input_precision=PRECISION)
    return inverse


@triton.jit
def _state(base, p, n, width, size):
    """A state as [BN, BP]."""
    keep = (n < size)[:, None] & (p < width)[None, :]
    return tl.load(base + p[None, :] * size + n[:, None], mask=keep, other=0.0)


@triton.jit
def _store_state(base, state, p, n, width, size):
    keep = (n < size)[:, None] & (p < width)[None, :]
    tl.store(base + p[None, :] * size + n[:, None], state, mask=keep)


@triton.jit
def _store(base, value, row, column, stride, rows, columns):
    keep = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(base + row[:, None] * stride + column[None, :], value.to(base.dtype.element_ty), mask=keep)


@triton.jit
def forward_kernel(
    q_ptr, k_ptr, v_ptr, log_a_ptr, beta_ptr, run_ptr, initial_ptr, y_ptr, last_ptr, states_ptr,
    length, heads, states, ratio, width, size, chunks,
    q_b, q_l, q_h, k_b, k_l, k_h, v_b, v_l, v_h, a_b, a_l, a_h, e_b, e_l, e_h,
    FLOOR: tl.constexpr, HAS_INITIAL: tl.constexpr, HAS_RUN: tl.constexpr, Q: tl.constexpr, ROUNDS: tl.constexpr,
    BP: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y, the state before each chunk and the state after the last."""
    h, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    t, p, n = tl.arange(0, Q), tl.arange(0, BP), tl.arange(0, BN)
    cells = width * size
    run_ptr += b * length
    state = tl.zeros([BN, BP], tl.float32)
    if HAS_INITIAL:
        state = _state(initial_ptr + (b * states + h) * cells, p, n, width, size)
    for chunk in range(0, chunks):
        start = chunk * Q
        rows = length - start
        _store_state(states_ptr + ((b * states + h) * chunks + chunk) * cells, state, p, n, width, size)
        inside, enter, leave, cross = _decays(
            log_a_ptr + b * a_b + start * a_l + h * a_h, run_ptr, start, length, a_l, FLOOR, HAS_RUN, Q
        )
        k = tile(k_ptr + b * k_b + start * k_l + h * k_h, t, n, k_l, rows, size).to(tl.float32)
        v = tile(v_ptr + b * v_b + start * v_l + h * v_h, t, p, v_l, rows, width).to(tl.float32)
        beta = tl.load(beta_ptr + b * e_b + (start + t) * e_l + h * e_h, mask=t < rows, other=0.0).to(tl.float32)
        below = tl.dot(k, tl.trans(k), input_precision=PRECISION) * inside
        below = tl.where(t[:, None] > t[None, :], below, 0.0)
        inverse = _inverse(beta[:, None] * below, Q, ROUNDS, PRECISION)
        missing = v - tl.dot(k, state, input_precision=PRECISION) * enter[:, None]
        u = tl.dot(inverse, beta[:, None] * missing, input_precision=PRECISION)
        for r in range(0, ratio):
            head = h * ratio + r
            q = tile(q_ptr + b * q_b + start * q_l + head * q_h, t, n, q_l, rows, size).to(tl.float32)
            weight = tl.dot(q, tl.trans(k), input_precision=PRECISION) * inside
            y = tl.dot(q, state, input_precision=PRECISION) * enter[:, None]
            y = tl.dot(weight, u, y, input_precision=PRECISION)
            _store(y_ptr + ((b * length + start) * heads + head) * width, y, t, p, heads * width, rows, width)
        state = tl.dot(tl.trans(k * leave[:, None]), u, state * cross, input_precision=PRECISION)
    _store_state(last_ptr + (b * states + h) * cells, state, p, n, width, size)


@triton.jit
def backward_kernel(
    q_ptr, k_ptr, v_ptr, log_a_ptr, beta_ptr, dy_ptr, run_ptr, dlast_ptr, states_ptr,
    dq_ptr, dk_ptr, dv_ptr, dlog_a_ptr, dbeta_ptr, dinitial_ptr,
    length, heads, states, ratio, width, size, chunks,
    q_b, q_l, q_h, k_b, k_l, k_h, v_b, v_l, v_h, a_b, a_l, a_h, e_b, e_l, e_h, y_b, y_l, y_h,
    FLOOR: tl.constexpr, HAS_LAST: tl.constexpr, HAS_RUN: tl.constexpr, Q: tl.constexpr, ROUNDS: tl.constexpr,
    BP: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All gradients, the last chunk first."""
    h, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    t, p, n = tl.arange(0, Q), tl.arange(0, BP), tl.arange(0, BN)
    strict = t[:, None] > t[None, :]
    cells = width * size
    run_ptr += b * length
    dstate = tl.zeros([BN, BP], tl.float32)
    if HAS_LAST:
        dstate = _state(dlast_ptr + (b * states + h) * cells, p, n, width, size)
    for back in range(0, chunks):
        chunk = chunks - 1 - back
        start = chunk * Q
        rows = length - start
        state = _state(states_ptr + ((b * states + h) * chunks + chunk) * cells, p, n, width, size)
        inside, enter, leave, cross = _decays(
            log_a_ptr + b * a_b + start * a_l + h * a_h, run_ptr, start, length, a_l, FLOOR, HAS_RUN, Q
        )
        k = tile(k_ptr + b * k_b + start * k_l + h * k_h, t, n, k_l, rows, size).to(tl.float32)
        v = tile(v_ptr + b * v_b + start * v_l + h * v_h, t, p, v_l, rows, width).to(tl.float32)
        beta = tl.load(beta_ptr + b * e_b + (start + t) * e_l + h * e_h, mask=t < rows, other=0.0).to(tl.float32)
        below = tl.dot(k, tl.trans(k), input_precision=PRECISION) * inside
        below = tl.where(strict, below, 0.0)
        inverse = _inverse(beta[:, None] * below, Q, ROUNDS, PRECISION)
        read = tl.dot(k, state, input_precision=PRECISION) * enter[:, None]
        u = tl.dot(inverse, beta[:, None] * (v - read), input_precision=PRECISION)

        kept = tl.dot(k, dstate, input_precision=PRECISION) * leave[:, None]
        du, left = kept, tl.sum(kept * u, 1)
        dk = tl.dot(u, tl.trans(dstate), input_precision=PRECISION) * leave[:, None]
        dS, dT = -left, cross * tl.sum(tl.sum(dstate * state, 1), 0) + tl.sum(left, 0)
        dstate = dstate * cross
        through = tl.zeros([Q, Q], tl.float32)
        for r in range(0, ratio):
            head = h * ratio + r
            q = tile(q_ptr + b * q_b + start * q_l + head * q_h, t, n, q_l, rows, size).to(tl.float32)
            dy = tile(dy_ptr + b * y_b + start * y_l + head * y_h, t, p, y_l, rows, width).to(tl.float32)
            weight = tl.dot(q, tl.trans(k), input_precision=PRECISION) * inside
            dweight = tl.dot(dy, tl.trans(u), input_precision=PRECISION)
            through += dweight * weight
            du = tl.dot(tl.trans(weight), dy, du, input_precision=PRECISION)
            dscore = dweight * inside
            dq = tl.dot(dy, tl.trans(state), input_precision=PRECISION) * enter[:, None]
            dS += tl.sum(dq * q, 1)
            dq = tl.dot(dscore, k, dq, input_precision=PRECISION)
            dk = tl.dot(tl.trans(dscore), q, dk, input_precision=PRECISION)
            dstate = tl.dot(tl.trans(q * enter[:, None]), dy, dstate, input_precision=PRECISION)
            _store(dq_ptr + ((b * length + start) * heads + head) * size, dq, t, n, heads * size, rows, size)

        dright = tl.dot(tl.trans(inverse), du, input_precision=PRECISION)
        dv = beta[:, None] * dright
        z = (v - read) - tl.dot(below, u, input_precision=PRECISION)
        dbelow = tl.where(strict, -tl.dot(dv, tl.trans(u), input_precision=PRECISION), 0.0)
        through += dbelow * below
        dscore = dbelow * inside
        dk = tl.dot(dscore, k, dk, input_precision=PRECISION)
        dk = tl.dot(tl.trans(dscore), k, dk, input_precision=PRECISION)
        dread = -dv * enter[:, None]
        dk = tl.dot(dread, tl.trans(state), dk, input_precision=PRECISION)
        dstate = tl.dot(tl.trans(k), dread, dstate, input_precision=PRECISION)
        dS += tl.sum(through, 1) - tl.sum(through, 0) - tl.sum(dv * read, 1)
        dlog_a = tl.sum(dS, 0) - tl.cumsum(dS, 0) + dS + dT

        row = (b * length + start) * states + h
        _store(dk_ptr + row * size, dk, t, n, states * size, rows, size)
        _store(dv_ptr + row * width, dv, t, p, states * width, rows, width)
        tl.store(dlog_a_ptr + row + t * states, dlog_a, mask=t < rows)
        tl.store(dbeta_ptr + row + t * states, tl.sum(dright * z, 1), mask=t < rows)
    _store_state(dinitial_ptr + (b * states + h) * cells, dstate, p, n, width, size)
