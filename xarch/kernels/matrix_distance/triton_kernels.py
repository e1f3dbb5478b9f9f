"""Triton kernels of the matrix distance: rows of tiles give ΣE², lse and dC, columns of tiles give dB.

Tiles have T query rows and U key columns. Left of the diagonal the decay exp(S_t - S_s) is the product of two vectors,
from s to the first row of the tile and from there to t, so that only the teacher costs an exponential per entry.
README.md has the formulas.

Legend: B batch, L tokens, H heads, K key heads, E head width, G B/C groups, N state size; BE and BN are blocks of E, N.
"""

from __future__ import annotations

import triton
import triton.language as tl

_NEVER = tl.constexpr(-1e30)
_NO_KEY = tl.constexpr(1 << 30)


@triton.jit
def _decay(exponent, FLOOR: tl.constexpr):
    exponent = tl.minimum(exponent, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.exp(tl.maximum(exponent, FLOOR, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def _tile(base, row, column, stride, rows, columns):
    keep = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(base + row.to(tl.int64)[:, None] * stride + column[None, :], mask=keep, other=0.0)


@triton.jit
def _tile_t(base, row, column, stride, rows, columns):
    keep = (row < rows)[None, :] & (column < columns)[:, None]
    return tl.load(base + row.to(tl.int64)[None, :] * stride + column[:, None], mask=keep, other=0.0)


@triton.jit
def _scores(dots, scale, softcap, HAS_CAP: tl.constexpr):
    dots *= scale
    if HAS_CAP:
        dots = softcap * (2.0 * tl.sigmoid(2.0 * dots / softcap) - 1.0)
    return dots


@triton.jit
def _since(S_ptr, t, length, origin):
    """S_t - origin in float32; prefix sums far from the first token need float64."""
    return tl.where(t < length, tl.load(S_ptr + t, mask=t < length, other=0.0) - origin, 0.0).to(tl.float32)


@triton.jit
def _between(S_ptr, t, s, length):
    """S_t - S_s in float32. Subtracted in float64: behind strong decays S is so large within a tile that float32 would
    leave weak ones no digits."""
    S_t = tl.load(S_ptr + t, mask=t < length, other=0.0)
    S_s = tl.load(S_ptr + s, mask=s < length, other=0.0)
    return (S_t[:, None] - S_s[None, :]).to(tl.float32)


@triton.jit
def _first_key(start_ptr, real_ptr, t, length, HAS_DOCUMENTS: tl.constexpr, HAS_MASK: tl.constexpr):
    """First key of the document of each row, beyond every key where the row does not count."""
    first = tl.where(t < length, 0, _NO_KEY)
    if HAS_DOCUMENTS:
        first = tl.load(start_ptr + t, mask=t < length, other=_NO_KEY)
    if HAS_MASK:
        first = tl.where(tl.load(real_ptr + t, mask=t < length, other=0) != 0, first, _NO_KEY)
    return first


@triton.jit
def _keys(real_ptr, s, length, HAS_MASK: tl.constexpr):
    """Which columns count."""
    keys = s < length
    if HAS_MASK:
        keys &= tl.load(real_ptr + s, mask=keys, other=0) != 0
    return keys


@triton.jit
def _attention(
    dots, lse, t, s, keep, scale, window, softcap,
    HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr, FLOOR: tl.constexpr,
):  # fmt: skip
    P = _decay(_scores(dots, scale, softcap, HAS_CAP) - lse, FLOOR)
    if HAS_WINDOW:
        keep &= t - s < window
    return tl.where(keep, P, 0.0)


@triton.jit
def rows_kernel(
    q_ptr, k_ptr, C_ptr, B_ptr, D_ptr, S_ptr, start_ptr, real_ptr, factor_ptr,
    lse_ptr, error_ptr, teacher_ptr, dC_ptr, dS_ptr, dD_ptr,
    length, heads, key_ratio, ratio, count, head_width, size, scale, window, softcap,
    q_b, q_l, q_h, k_b, k_l, k_h, C_b, C_l, C_g, B_b, B_l, B_g,
    FLOOR: tl.constexpr, FORWARD: tl.constexpr, GRADIENT: tl.constexpr, HAS_D: tl.constexpr,
    HAS_DOCUMENTS: tl.constexpr, HAS_MASK: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr,
    T: tl.constexpr, U: tl.constexpr, BE: tl.constexpr, BN: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of rows of ``count`` heads of a group.

    FORWARD finds lse [B, H, L] and one part of ΣE², ΣP² per tile [B, H, tiles]; without it lse is read. GRADIENT finds
    dC [B, L, parts, N], dS [B, H, L] and parts of dD [B, H, tiles], times the factor of each head unless FORWARD.
    """
    i, part, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    e, n = tl.arange(0, BE), tl.arange(0, BN)
    first_head = part * count
    row = i * T
    t = row + tl.arange(0, T)
    C_ptr += b * C_b + (first_head // ratio) * C_g
    B_ptr += b * B_b + (first_head // ratio) * B_g
    start_ptr += b * length
    real_ptr += b * length
    first = _first_key(start_ptr, real_ptr, t, length, HAS_DOCUMENTS, HAS_MASK)
    j_first = 0
    if HAS_DOCUMENTS:
        j_first = tl.load(start_ptr + row) // U
    j_near = j_first
    if HAS_WINDOW:
        j_near = tl.minimum(tl.maximum(j_first, tl.maximum(row - window + 1, 0) // U), row // U)
    j_diagonal, j_stop = row // U, tl.cdiv(tl.minimum(row + T, length), U)
    C_t = _tile(C_ptr, t, n, C_l, length, size).to(DOT)
    dC = tl.zeros([T, BN], tl.float32)
    for h in range(first_head, first_head + count):
        at = b * heads + h
        q_t = _tile(q_ptr + b * q_b + h * q_h, t, e, q_l, length, head_width).to(DOT)
        k_h_ptr = k_ptr + b * k_b + (h // key_ratio) * k_h
        if FORWARD:
            top = tl.full([T], _NEVER, tl.float32)
            total = tl.zeros([T], tl.float32)
            for j in range(j_near, j_stop):
                s = j * U + tl.arange(0, U)
                k_s = _tile_t(k_h_ptr, s, e, k_l, length, head_width).to(DOT)
                score = _scores(tl.dot(q_t, k_s, input_precision=PRECISION), scale, softcap, HAS_CAP)
                keep = (s[None, :] <= t[:, None]) & (s[None, :] >= first[:, None])
                keep &= _keys(real_ptr, s, length, HAS_MASK)[None, :]
                if HAS_WINDOW:
                    keep &= t[:, None] - s[None, :] < window
                score = tl.where(keep, score, _NEVER)
                higher = tl.maximum(top, tl.max(score, 1))
                total = total * tl.exp(top - higher) + tl.sum(tl.exp(score - higher[:, None]), 1)
                top = higher
            lse = top + tl.log(total)
            tl.store(lse_ptr + at * length + t, lse, mask=t < length)
        else:
            lse = tl.load(lse_ptr + at * length + t, mask=t < length, other=0.0)
        S_h = S_ptr + at * length
        origin = tl.load(S_h + row)
        reach = _decay(_since(S_h, t, length, origin), FLOOR)
        D = tl.load(D_ptr + h).to(tl.float32) if HAS_D else 0.0
        factor = 1.0 if FORWARD else tl.load(factor_ptr + at)
        errors = tl.zeros([T], tl.float32)
        teachers = tl.zeros([T], tl.float32)
        dS = tl.zeros([T], tl.float32)
        dD = tl.zeros([T], tl.float32)
        if HAS_WINDOW:
            for j in range(j_first, j_near):
                s = j * U + tl.arange(0, U)
                B_s = _tile(B_ptr, s, n, B_l, length, size).to(DOT)
                keep = (s[None, :] >= first[:, None]) & _keys(real_ptr, s, length, HAS_MASK)[None, :]
                decay = reach[:, None] * _decay(-_since(S_h, s, length, origin), FLOOR)[None, :]
                inner = tl.dot(C_t, tl.trans(B_s), input_precision=PRECISION)
                error = tl.where(keep, inner * decay, 0.0)
                errors += tl.sum(error * error, 1)
                if GRADIENT:
                    weight = error * decay * factor
                    dS += tl.sum(weight * inner, 1)
                    dC = tl.dot(weight.to(DOT), B_s, dC, input_precision=PRECISION)
        for j in range(j_near, j_diagonal):
            s = j * U + tl.arange(0, U)
            B_s = _tile(B_ptr, s, n, B_l, length, size).to(DOT)
            k_s = _tile_t(k_h_ptr, s, e, k_l, length, head_width).to(DOT)
            keep = (s[None, :] >= first[:, None]) & _keys(real_ptr, s, length, HAS_MASK)[None, :]
            dots = tl.dot(q_t, k_s, input_precision=PRECISION)
            P = _attention(
                dots, lse[:, None], t[:, None], s[None, :], keep,
                scale, window, softcap, HAS_WINDOW, HAS_CAP, FLOOR,
            )  # fmt: skip
            decay = reach[:, None] * _decay(-_since(S_h, s, length, origin), FLOOR)[None, :]
            inner = tl.dot(C_t, tl.trans(B_s), input_precision=PRECISION)
            error = tl.where(keep, inner * decay, 0.0) - P
            errors += tl.sum(error * error, 1)
            teachers += tl.sum(P * P, 1)
            if GRADIENT:
                weight = error * decay * factor
                dS += tl.sum(weight * inner, 1)
                dC = tl.dot(weight.to(DOT), B_s, dC, input_precision=PRECISION)
        for j in range(j_diagonal, j_stop):
            s = j * U + tl.arange(0, U)
            B_s = _tile(B_ptr, s, n, B_l, length, size).to(DOT)
            k_s = _tile_t(k_h_ptr, s, e, k_l, length, head_width).to(DOT)
            keep = (s[None, :] <= t[:, None]) & (s[None, :] >= first[:, None])
            keep &= _keys(real_ptr, s, length, HAS_MASK)[None, :]
            dots = tl.dot(q_t, k_s, input_precision=PRECISION)
            P = _attention(
                dots, lse[:, None], t[:, None], s[None, :], keep,
                scale, window, softcap, HAS_WINDOW, HAS_CAP, FLOOR,
            )  # fmt: skip
            decay = tl.where(keep, _decay(_between(S_h, t, s, length), FLOOR), 0.0)
            inner = tl.dot(C_t, tl.trans(B_s), input_precision=PRECISION)
            same = keep & (t[:, None] == s[None, :])
            error = inner * decay + tl.where(same, D, 0.0) - P
            errors += tl.sum(error * error, 1)
            teachers += tl.sum(P * P, 1)
            if GRADIENT:
                dD += tl.sum(tl.where(same, error, 0.0), 1)
                weight = error * decay * factor
                # On the diagonal S_t meets itself: what it gains and loses cancels.
                dS += tl.sum(tl.where(same, 0.0, weight * inner), 1)
                dC = tl.dot(weight.to(DOT), B_s, dC, input_precision=PRECISION)
        if FORWARD:
            tl.store(error_ptr + at * tl.num_programs(0) + i, tl.sum(errors, 0))
            tl.store(teacher_ptr + at * tl.num_programs(0) + i, tl.sum(teachers, 0))
        if GRADIENT:
            tl.store(dS_ptr + at * length + t, dS, mask=t < length)
            tl.store(dD_ptr + at * tl.num_programs(0) + i, tl.sum(dD, 0) * factor)
    if GRADIENT:
        parts = tl.num_programs(1)
        dC_ptr += (b * length * parts + part) * size
        keep_C = (t < length)[:, None] & (n < size)[None, :]
        where = t.to(tl.int64)[:, None] * parts * size + n[None, :]
        tl.store(dC_ptr + where, dC.to(dC_ptr.dtype.element_ty), mask=keep_C)


@triton.jit
def columns_kernel(
    q_ptr, k_ptr, C_ptr, B_ptr, D_ptr, S_ptr, start_ptr, stop_ptr, real_ptr, factor_ptr, lse_ptr, dB_ptr, dS_ptr,
    length, heads, key_ratio, ratio, count, head_width, size, scale, window, softcap,
    q_b, q_l, q_h, k_b, k_l, k_h, C_b, C_l, C_g, B_b, B_l, B_g,
    FLOOR: tl.constexpr, HAS_D: tl.constexpr, HAS_DOCUMENTS: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr,
    T: tl.constexpr, U: tl.constexpr, BE: tl.constexpr, BN: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dB [B, L, parts, N] of one tile of columns, and what S_s loses [B, H, L]."""
    j, part, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    e, n = tl.arange(0, BE), tl.arange(0, BN)
    first_head = part * count
    column = j * U
    s = column + tl.arange(0, U)
    C_ptr += b * C_b + (first_head // ratio) * C_g
    B_ptr += b * B_b + (first_head // ratio) * B_g
    start_ptr += b * length
    real_ptr += b * length
    keys = _keys(real_ptr, s, length, HAS_MASK)[:, None]
    last = tl.minimum(column + U, length) - 1
    stop = length
    if HAS_DOCUMENTS:
        stop = tl.load(stop_ptr + b * length + last)
    i_first, i_stop = column // T, tl.cdiv(stop, T)
    i_below = tl.minimum(tl.cdiv(column + U, T), i_stop)
    i_far = i_stop
    if HAS_WINDOW:
        i_far = tl.maximum(tl.minimum((last + window - 1) // T + 1, i_stop), i_below)
    B_s = _tile(B_ptr, s, n, B_l, length, size).to(DOT)
    dB = tl.zeros([U, BN], tl.float32)
    for h in range(first_head, first_head + count):
        at = b * heads + h
        q_h_ptr = q_ptr + b * q_b + h * q_h
        k_s = _tile(k_ptr + b * k_b + (h // key_ratio) * k_h, s, e, k_l, length, head_width).to(DOT)
        S_h = S_ptr + at * length
        D = tl.load(D_ptr + h).to(tl.float32) if HAS_D else 0.0
        factor = tl.load(factor_ptr + at)
        dS = tl.zeros([U], tl.float32)
        for i in range(i_first, i_below):
            t = i * T + tl.arange(0, T)
            C_t = _tile(C_ptr, t, n, C_l, length, size).to(DOT)
            q_t = _tile_t(q_h_ptr, t, e, q_l, length, head_width).to(DOT)
            first = _first_key(start_ptr, real_ptr, t, length, HAS_DOCUMENTS, HAS_MASK)
            keep = keys & (s[:, None] <= t[None, :]) & (s[:, None] >= first[None, :])
            lse = tl.load(lse_ptr + at * length + t, mask=t < length, other=0.0)
            dots = tl.dot(k_s, q_t, input_precision=PRECISION)
            P = _attention(
                dots, lse[None, :], t[None, :], s[:, None], keep,
                scale, window, softcap, HAS_WINDOW, HAS_CAP, FLOOR,
            )  # fmt: skip
            decay = tl.where(keep, _decay(tl.trans(_between(S_h, t, s, length)), FLOOR), 0.0)
            inner = tl.dot(B_s, tl.trans(C_t), input_precision=PRECISION)
            same = keep & (s[:, None] == t[None, :])
            error = inner * decay + tl.where(same, D, 0.0) - P
            weight = error * decay * factor
            dS += tl.sum(tl.where(same, 0.0, weight * inner), 1)
            dB = tl.dot(weight.to(DOT), C_t, dB, input_precision=PRECISION)
        for i in range(i_below, i_far):
            t = i * T + tl.arange(0, T)
            C_t = _tile(C_ptr, t, n, C_l, length, size).to(DOT)
            q_t = _tile_t(q_h_ptr, t, e, q_l, length, head_width).to(DOT)
            first = _first_key(start_ptr, real_ptr, t, length, HAS_DOCUMENTS, HAS_MASK)
            keep = keys & (s[:, None] >= first[None, :])
            lse = tl.load(lse_ptr + at * length + t, mask=t < length, other=0.0)
            dots = tl.dot(k_s, q_t, input_precision=PRECISION)
            P = _attention(
                dots, lse[None, :], t[None, :], s[:, None], keep,
                scale, window, softcap, HAS_WINDOW, HAS_CAP, FLOOR,
            )  # fmt: skip
            origin = tl.load(S_h + i * T)
            reach = _decay(_since(S_h, t, length, origin), FLOOR)
            decay = reach[None, :] * _decay(-_since(S_h, s, length, origin), FLOOR)[:, None]
            inner = tl.dot(B_s, tl.trans(C_t), input_precision=PRECISION)
            weight = (tl.where(keep, inner * decay, 0.0) - P) * decay * factor
            dS += tl.sum(weight * inner, 1)
            dB = tl.dot(weight.to(DOT), C_t, dB, input_precision=PRECISION)
        if HAS_WINDOW:
            for i in range(i_far, i_stop):
                t = i * T + tl.arange(0, T)
                C_t = _tile(C_ptr, t, n, C_l, length, size).to(DOT)
                first = _first_key(start_ptr, real_ptr, t, length, HAS_DOCUMENTS, HAS_MASK)
                keep = keys & (s[:, None] >= first[None, :])
                origin = tl.load(S_h + i * T)
                reach = _decay(_since(S_h, t, length, origin), FLOOR)
                decay = reach[None, :] * _decay(-_since(S_h, s, length, origin), FLOOR)[:, None]
                inner = tl.dot(B_s, tl.trans(C_t), input_precision=PRECISION)
                weight = tl.where(keep, inner * decay, 0.0) * decay * factor
                dS += tl.sum(weight * inner, 1)
                dB = tl.dot(weight.to(DOT), C_t, dB, input_precision=PRECISION)
        tl.store(dS_ptr + at * length + s, dS, mask=s < length)
    parts = tl.num_programs(1)
    dB_ptr += (b * length * parts + part) * size
    where = s.to(tl.int64)[:, None] * parts * size + n[None, :]
    tl.store(dB_ptr + where, dB.to(dB_ptr.dtype.element_ty), mask=(s < length)[:, None] & (n < size)[None, :])
