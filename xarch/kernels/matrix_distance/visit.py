"""One visit of all tiles of the two matrices: the squared distance and, if wanted, its gradient.

For one tile with P = exp(score - lse), dec = exp(S_t - S_s), E = (C Bᵀ) ∘ dec + D [t = s] - P:
the squared distance gains ΣE², and with W = E ∘ dec its half gradient gains dC += W B, dB += Wᵀ C, dD += ΣE[t = t],
and S_t, S_s gain and lose the row and column sums of W ∘ (C Bᵀ). See README.md.

Legend: B batch, L tokens, H heads, K key heads, E head width, G B/C groups, R heads per group, N state size, T query
rows of a tile, U key columns of a tile, m = B·G, n = B·H.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from xarch.kernels.matrix_distance.slab import Slab, Teacher
from xarch.kernels.precision import island_dtype

_CACHE_ELEMENTS = 1 << 18
"""On a CPU heads are taken together only while one [n, T, U] tile has at most so many elements."""


@dataclass(frozen=True, slots=True)
class Operands:
    """The factors of both matrices, as they were given."""

    q_BLHE: Tensor
    k_BLKE: Tensor
    C_BLGN: Tensor
    B_BLGN: Tensor
    log_a_BLH: Tensor
    D_H: Tensor | None
    run_BL: Tensor | None
    real_BL: Tensor | None
    teacher: Teacher
    tile: tuple[int, int]

    @property
    def dtype(self) -> torch.dtype:
        return island_dtype(self.q_BLHE, self.C_BLGN, self.B_BLGN, self.log_a_BLH)

    def slabs(self) -> Iterator[tuple[slice, slice, slice, Slab]]:
        """Parts of the work whose tiles fit the cache: their sequences, heads and groups, and their factors."""
        batch, length, heads = self.q_BLHE.shape[:3]
        per_key, per_group = heads // self.k_BLKE.shape[2], heads // self.C_BLGN.shape[2]
        rows, step = batch, heads
        if self.q_BLHE.device.type == "cpu":
            fit = max(1, _CACHE_ELEMENTS // (min(self.tile[0], length) * min(self.tile[1], length)))
            together = math.lcm(per_key, per_group)
            rows = max(1, min(batch, fit // heads))
            step = min(heads, max(1, fit // together) * together)
        for b in range(0, batch, rows):
            for h in range(0, heads, step):
                B, H = slice(b, b + rows), slice(h, min(h + step, heads))
                K = slice(H.start // per_key, H.stop // per_key)
                G = slice(H.start // per_group, H.stop // per_group)
                slab = Slab(
                    self.q_BLHE[B, :, H],
                    self.k_BLKE[B, :, K],
                    self.C_BLGN[B, :, G],
                    self.B_BLGN[B, :, G],
                    self.log_a_BLH[B, :, H],
                    None if self.D_H is None else self.D_H[H],
                    None if self.run_BL is None else self.run_BL[B],
                    None if self.real_BL is None else self.real_BL[B],
                    self.teacher,
                    self.tile,
                    self.dtype,
                )
                yield B, H, G, slab


class Sums:
    """What a visit of all tiles adds up; gradients are those of half the squared distance times a factor."""

    def __init__(self, operands: Operands, gradient: bool) -> None:
        batch, length, heads = operands.q_BLHE.shape[:3]
        new = operands.C_BLGN.new_zeros
        self.error_BH = new(batch, heads, dtype=torch.float64)
        self.teacher_BH = new(batch, heads, dtype=torch.float64)
        self.lse_BHL = new(batch, heads, length, dtype=operands.dtype)
        if gradient:
            self.dC_BLGN = torch.empty_like(operands.C_BLGN, dtype=operands.dtype)
            self.dB_BLGN = torch.empty_like(operands.B_BLGN, dtype=operands.dtype)
            self.dlog_a_BLH = torch.empty_like(operands.log_a_BLH, dtype=operands.dtype)
            self.dD_BH = new(batch, heads, dtype=operands.dtype)


def visit(
    operands: Operands, *, gradient: bool, factor_BH: Tensor | None = None, lse_BHL: Tensor | None = None
) -> Sums:
    sums = Sums(operands, gradient)
    if operands.q_BLHE.numel() == 0:
        return sums
    for B, H, G, slab in operands.slabs():
        factor_n = None if factor_BH is None else factor_BH[B, H].flatten().to(operands.dtype)
        lse_nL = None if lse_BHL is None else lse_BHL[B, H].flatten(0, 1)
        _visit_slab(slab, sums, (B, H, G), gradient, factor_n, lse_nL)
    return sums


def _visit_slab(
    slab: Slab,
    sums: Sums,
    place: tuple[slice, slice, slice],
    gradient: bool,
    factor_n: Tensor | None,
    lse_nL: Tensor | None,
) -> None:
    B, H, G = place
    n = slab.batch * slab.heads
    error_n, teacher_n = (torch.zeros(n, dtype=torch.float64, device=slab.C_mLN.device) for _ in range(2))
    found_nL = slab.C_mLN.new_empty(n, slab.length)
    dD_n = slab.C_mLN.new_zeros(n)
    if gradient:
        dC_mLN, dB_mLN = torch.zeros_like(slab.C_mLN), torch.zeros_like(slab.B_mLN)
        dS_nL = slab.C_mLN.new_zeros(n, slab.length)
    for rows in slab.rows():
        q_uTE = slab.queries(rows)
        lse_nT = slab.lse(q_uTE, rows) if lse_nL is None else lse_nL[:, rows]
        found_nL[:, rows] = lse_nT
        C_mTN = slab.C_mLN[:, rows]
        for columns in slab.columns(rows):
            B_mUN = slab.B_mLN[:, columns]
            decay_nTU = slab.decay(rows, columns)
            inner_m1TU = (C_mTN @ B_mUN.mT)[:, None]
            error_nTU = (slab.grouped(decay_nTU) * inner_m1TU).flatten(0, 1)
            diagonal_nX = slab.diagonal(error_nTU, rows, columns)
            if diagonal_nX is not None and slab.D_n is not None:
                skip_nX = slab.D_n[:, None].expand(-1, diagonal_nX.shape[1])
                real_B1X = slab.real(rows, columns)
                if real_B1X is not None:
                    skip_nX = (skip_nX.unflatten(0, (slab.batch, -1)) * real_B1X).flatten(0, 1)
                diagonal_nX += skip_nX
            if slab.attended(rows, columns):
                P_nTU = slab.attention(q_uTE, lse_nT, rows, columns)
                teacher_n += torch.linalg.vector_norm(P_nTU, dim=(1, 2)).double().square_()
                error_nTU -= P_nTU
            error_n += torch.linalg.vector_norm(error_nTU, dim=(1, 2)).double().square_()
            if not gradient:
                continue
            if factor_n is not None:
                error_nTU *= factor_n[:, None, None]
            if diagonal_nX is not None:
                dD_n += diagonal_nX.sum(-1)
            weight_mRTU = slab.grouped(decay_nTU.mul_(error_nTU))
            weight_mTU = weight_mRTU[:, 0]
            if slab.ratio > 1:
                weight_mTU = weight_mRTU.sum(1)
                through_nTU = (weight_mRTU * inner_m1TU).flatten(0, 1)
                dS_nL[:, rows] += through_nTU.sum(-1)
                dS_nL[:, columns] -= through_nTU.sum(-2)
            dC_mLN[:, rows].baddbmm_(weight_mTU, B_mUN)
            dB_mLN[:, columns].baddbmm_(weight_mTU.mT, C_mTN)
    sums.error_BH[B, H] = error_n.view(slab.batch, -1)
    sums.teacher_BH[B, H] = teacher_n.view(slab.batch, -1)
    sums.lse_BHL[B, H] = found_nL.view(slab.batch, -1, slab.length)
    if gradient:
        if slab.ratio == 1:
            # Row sums of W ∘ (C Bᵀ) are C · dC, column sums B · dB.
            dS_nL = (slab.C_mLN * dC_mLN).sum(-1) - (slab.B_mLN * dB_mLN).sum(-1)
        dlog_a_nL = dS_nL.double().flip(1).cumsum(1).flip(1)
        sums.dC_BLGN[B, :, G] = dC_mLN.unflatten(0, (slab.batch, -1)).transpose(1, 2)
        sums.dB_BLGN[B, :, G] = dB_mLN.unflatten(0, (slab.batch, -1)).transpose(1, 2)
        sums.dlog_a_BLH[B, :, H] = dlog_a_nL.unflatten(0, (slab.batch, -1)).transpose(1, 2)
        sums.dD_BH[B, H] = dD_n.view(slab.batch, -1)
