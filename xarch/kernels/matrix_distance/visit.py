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
            self.dC_BLGN = torch.zeros_like(operands.C_BLGN, dtype=operands.dtype)
            self.dB_BLGN = torch.zeros_like(operands.B_BLGN, dtype=operands.dtype)
            self.dS_BLH = new(batch, length, heads, dtype=torch.float64)
            self.dD_BH = new(batch, heads, dtype=operands.dtype)

    def dlog_a_BLH(self) -> Tensor:
        """A step adds to all later prefix sums."""
        return self.dS_BLH.flip(1).cumsum(1).flip(1)


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
    error_n, teacher_n = (torch.zeros(n, dtype=torch.float64, device=slab.device) for _ in range(2))
    dD_n = torch.zeros(n, dtype=slab.dtype, device=slab.device)
    for rows in slab.rows():
        q_uTE, C_mTN = slab.queries(rows), slab.C(rows)
        lse_nT = slab.lse(q_uTE, rows) if lse_nL is None else lse_nL[:, rows]
        sums.lse_BHL[B, H, rows] = lse_nT.unflatten(0, (slab.batch, -1))
        dC_mTN = torch.zeros_like(C_mTN)
        dS_nT = torch.zeros_like(lse_nT)
        for columns in slab.columns(rows):
            B_mUN = slab.B(columns)
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
            weight_mTU = weight_mRTU.sum(1) if slab.ratio > 1 else weight_mRTU[:, 0]
            dC_mTN.baddbmm_(weight_mTU, B_mUN)
            dB_mUN = weight_mTU.mT @ C_mTN
            sums.dB_BLGN[B, columns, G].add_(slab.tokens_first(dB_mUN))
            if slab.ratio > 1:
                through_nTU = (weight_mRTU * inner_m1TU).flatten(0, 1)
                dS_nT += through_nTU.sum(-1)
                sums.dS_BLH[B, columns, H].sub_(slab.tokens_first(through_nTU.sum(-2)))
            else:
                # Column sums of W ∘ (C Bᵀ) are B · dB, row sums C · dC.
                sums.dS_BLH[B, columns, H].sub_(slab.tokens_first((B_mUN * dB_mUN).sum(-1)))
        if gradient:
            if slab.ratio == 1:
                dS_nT = (C_mTN * dC_mTN).sum(-1)
            sums.dS_BLH[B, rows, H].add_(slab.tokens_first(dS_nT))
            sums.dC_BLGN[B, rows, G] = slab.tokens_first(dC_mTN)
    sums.error_BH[B, H] = error_n.view(slab.batch, -1)
    sums.teacher_BH[B, H] = teacher_n.view(slab.batch, -1)
    if gradient:
        sums.dD_BH[B, H] = dD_n.view(slab.batch, -1)
