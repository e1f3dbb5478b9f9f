"""Launching the Triton kernels of the matrix distance: block sizes and grids. Importing this imports triton.

Legend: B batch, L tokens, H heads, K key heads, E head width, G B/C groups, N state size.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from xarch.kernels.gpu import dot_mode, heads_per_program, is_half, rows_last
from xarch.kernels.matrix_distance import triton_kernels as kernels
from xarch.kernels.precision import LOG_FLOOR

_EVERY = 1 << 30
"""A window larger than any length."""


class Call:
    """What the forward and the backward pass hand to both kernels."""

    def __init__(
        self,
        q_BLHE: Tensor,
        k_BLKE: Tensor,
        C_BLGN: Tensor,
        B_BLGN: Tensor,
        D_H: Tensor | None,
        S_BHL: Tensor,
        start_BL: Tensor | None,
        stop_BL: Tensor | None,
        real_BL: Tensor | None,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> None:
        self.q, self.k, self.C, self.B = (rows_last(t) for t in (q_BLHE, k_BLKE, C_BLGN, B_BLGN))
        self.batch, self.length, self.heads, head_width = q_BLHE.shape
        self.groups, size = C_BLGN.shape[2:]
        self.D, self.S = S_BHL if D_H is None else D_H, S_BHL
        self.start, self.stop, self.real = (S_BHL if t is None else t for t in (start_BL, stop_BL, real_BL))
        mode = dot_mode(self.q, self.k, self.C, self.B)
        BE, BN = (max(16, triton.next_power_of_2(n)) for n in (head_width, size))
        half, widest = is_half(mode), max(BE, BN)
        if half:
            T, U = (128, 64) if widest <= 128 else (64, 32)
        else:
            T, U = (64, 32) if widest <= 64 else (32, 32) if widest <= 128 else (32, 16)
        largest = max(16, triton.next_power_of_2(self.length))
        self.T, self.U = min(T, largest), min(U, largest)
        self.flags: dict[str, Any] = {
            "FLOOR": LOG_FLOOR,
            "HAS_D": D_H is not None,
            "HAS_DOCUMENTS": start_BL is not None,
            "HAS_MASK": real_BL is not None,
            "HAS_WINDOW": window is not None,
            "HAS_CAP": softcap is not None,
            "BE": BE,
            "BN": BN,
            **mode,
            "num_warps": 8,
            "num_stages": 2 if half else 1,
        }
        self._sizes = (head_width, size, scale, window or _EVERY, softcap or 1.0)
        self._strides = [s for t in (self.q, self.k, self.C, self.B) for s in t.stride()[:3]]

    def rows(self) -> int:
        """Tiles of query rows."""
        return -(-self.length // self.T)

    def sizes(self, count: int) -> list[Any]:
        """Scalar arguments of a kernel whose programs take ``count`` heads."""
        ratios = (self.heads // self.k.shape[2], self.heads // self.groups, count)
        return [self.length, self.heads, *ratios, *self._sizes, *self._strides]

    def count(self, tiles: int) -> int:
        """Heads of a group per program, when the group's gradient is wanted."""
        return heads_per_program(self.batch * tiles * self.heads, self.heads // self.groups)


def forward(call: Call, gradient: bool) -> tuple[Tensor, ...]:
    """Σ(M - P)² and ΣP² [B, H], lse [B, H, L], and with ``gradient`` half the gradient of the first: dC [B, L, H, N],
    dS through the rows [B, H, L] and dD [B, H] (empty without)."""
    batch, length, heads = call.batch, call.length, call.heads
    S, tiles = call.S, call.rows()
    lse = S.new_empty(S.shape, dtype=torch.float32)
    error, teacher = lse.new_empty(2, batch, heads, tiles).unbind()
    dC = lse.new_empty((batch, length, heads, call.C.shape[-1]) if gradient else (0,))
    dS = lse.new_empty(lse.shape if gradient else (0,))
    dD = lse.new_empty((batch, heads, tiles) if gradient else (0,))
    kernels.rows_kernel[(tiles, heads, batch)](
        call.q, call.k, call.C, call.B, call.D, S, call.start, call.real, lse, lse, error, teacher, dC, dS, dD,
        *call.sizes(1), FORWARD=True, GRADIENT=gradient, T=call.T, U=call.U, **call.flags,
    )  # fmt: skip
    return error.sum(-1), teacher.sum(-1), lse, dC, dS, dD.sum(-1) if gradient else dD


def backward_rows(call: Call, lse: Tensor, factor_BH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dC [B, L, G, N], dS through the rows [B, H, L] and dD [B, H], times the factor of each sequence and head."""
    tiles = call.rows()
    count = call.count(tiles)
    parts = call.heads // count
    dC = lse.new_empty(call.batch, call.length, parts, call.C.shape[-1])
    dS, dD = torch.empty_like(lse), lse.new_empty(call.batch, call.heads, tiles)
    kernels.rows_kernel[(tiles, parts, call.batch)](
        call.q, call.k, call.C, call.B, call.D, call.S, call.start, call.real, factor_BH, lse, lse, lse, dC, dS, dD,
        *call.sizes(count), FORWARD=False, GRADIENT=True, T=call.T, U=call.U, **call.flags,
    )  # fmt: skip
    return _by_group(dC, call.groups), dS, dD.sum(-1)


def backward_columns(call: Call, lse: Tensor, factor_BH: Tensor) -> tuple[Tensor, Tensor]:
    """dB [B, L, G, N] and what S loses through the columns [B, H, L], times the factor of each sequence and head."""
    T, U = call.U, call.T
    tiles = -(-call.length // U)
    count = call.count(tiles)
    parts = call.heads // count
    dB, dS = lse.new_empty(call.batch, call.length, parts, call.B.shape[-1]), torch.empty_like(lse)
    kernels.columns_kernel[(tiles, parts, call.batch)](
        call.q, call.k, call.C, call.B, call.D, call.S, call.start, call.stop, call.real, factor_BH, lse, dB, dS,
        *call.sizes(count), T=T, U=U, **call.flags,
    )  # fmt: skip
    return _by_group(dB, call.groups), dS


def _by_group(t_BLpN: Tensor, groups: int) -> Tensor:
    return t_BLpN if t_BLpN.shape[2] == groups else t_BLpN.unflatten(2, (groups, -1)).sum(3)
