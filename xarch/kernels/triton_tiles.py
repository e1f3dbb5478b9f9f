"""Triton functions that kernels in chunks of tokens share: decays, and tiles of row-major matrices."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def decayed(exponent, FLOOR: tl.constexpr):
    return tl.exp(tl.maximum(exponent, FLOOR, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def between(S_t, S_s, FLOOR: tl.constexpr):
    return decayed(tl.minimum(S_t - S_s, 0.0, propagate_nan=tl.PropagateNan.ALL), FLOOR)


@triton.jit
def tile(base, row, column, stride, rows, columns):
    """Elements [row, column] of a row-major matrix, zero outside."""
    keep = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(base + row[:, None] * stride + column[None, :], mask=keep, other=0.0)


@triton.jit
def tile_t(base, row, column, stride, rows, columns):
    """The same elements, transposed: [column, row]."""
    keep = (row < rows)[None, :] & (column < columns)[:, None]
    return tl.load(base + row[None, :] * stride + column[:, None], mask=keep, other=0.0)
