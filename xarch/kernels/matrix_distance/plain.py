"""The distance tile by tile: memory linear in L, never an [L, L] tensor.

Legend: B batch, L tokens, H heads, K key heads, E head width, G B/C groups, N state size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xarch.kernels.dispatch import register
from xarch.kernels.matrix_distance.result import MatrixDistance
from xarch.kernels.matrix_distance.slab import Teacher
from xarch.kernels.matrix_distance.visit import Operands, visit
from xarch.kernels.precision import without_autocast
from xarch.kernels.segments import runs


@register("matrix_distance", "torch", priority=10)
def matrix_distance_plain(
    q_BLHE: Tensor,
    k_BLKE: Tensor,
    C_BLGN: Tensor,
    B_BLGN: Tensor,
    log_a_BLH: Tensor,
    D_H: Tensor | None,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    segment_ids_BL: Tensor | None,
    mask_BL: Tensor | None,
    tile: tuple[int, int],
) -> MatrixDistance:
    """Arguments and results of :func:`xarch.kernels.matrix_distance`."""
    run_BL = None if segment_ids_BL is None else runs(segment_ids_BL)
    real_BL = None if mask_BL is None else mask_BL.bool()
    teacher = Teacher(scale, window, softcap)
    found = _Distance.apply(C_BLGN, B_BLGN, log_a_BLH, D_H, q_BLHE, k_BLKE, run_BL, real_BL, teacher, tile)
    return MatrixDistance(*found)


class _Distance(torch.autograd.Function):
    """One visit of the tiles or two.

    With one B/C group per head the gradient is known up to one factor per sequence and head, so it is formed when a
    tile is visited in the forward pass, and the backward pass only scales it. Heads that share a group mix their
    factors: then the backward pass visits the tiles again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        C_BLGN: Tensor,
        B_BLGN: Tensor,
        log_a_BLH: Tensor,
        D_H: Tensor | None,
        q_BLHE: Tensor,
        k_BLKE: Tensor,
        run_BL: Tensor | None,
        real_BL: Tensor | None,
        teacher: Teacher,
        tile: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        operands = Operands(q_BLHE, k_BLKE, C_BLGN, B_BLGN, log_a_BLH, D_H, run_BL, real_BL, teacher, tile)
        wanted = any(ctx.needs_input_grad)
        ctx.at_once = wanted and C_BLGN.shape[2] == log_a_BLH.shape[2]
        sums = visit(operands, gradient=ctx.at_once)
        distance_BH, teacher_norm_BH = sums.error_BH.sqrt(), sums.teacher_BH.sqrt()
        ctx.dtypes = C_BLGN.dtype, B_BLGN.dtype, log_a_BLH.dtype, None if D_H is None else D_H.dtype
        if ctx.at_once:
            ctx.save_for_backward(distance_BH, sums.dC_BLGN, sums.dB_BLGN, sums.dlog_a_BLH(), sums.dD_BH)
        elif wanted:
            ctx.save_for_backward(
                distance_BH, sums.lse_BHL, q_BLHE, k_BLKE, C_BLGN, B_BLGN, log_a_BLH, D_H, run_BL, real_BL
            )
            ctx.teacher, ctx.tile = teacher, tile
        dtype = operands.dtype
        distance, teacher_norm = distance_BH.to(dtype), teacher_norm_BH.to(dtype)
        ctx.mark_non_differentiable(teacher_norm)
        return distance, teacher_norm

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        distance_BH, *saved = ctx.saved_tensors
        # At distance zero every E is zero, and so is the gradient.
        factor_BH = torch.where(distance_BH > 0, grads[0] / distance_BH, 0)
        if ctx.at_once:
            dC_BLGN, dB_BLGN, dlog_a_BLH, dD_BH = saved
            dC = _scaled(dC_BLGN, factor_BH, ctx.dtypes[0])
            dB = _scaled(dB_BLGN, factor_BH, ctx.dtypes[1])
            dlog_a = (dlog_a_BLH * factor_BH[:, None]).to(ctx.dtypes[2])
            dD_BH = dD_BH * factor_BH
        else:
            lse_BHL, q, k, C, B, log_a, D, run, real = saved
            operands = Operands(q, k, C, B, log_a, D, run, real, ctx.teacher, ctx.tile)
            with without_autocast(lse_BHL.device):
                sums = visit(operands, gradient=True, factor_BH=factor_BH, lse_BHL=lse_BHL)
            dC, dB = sums.dC_BLGN.to(ctx.dtypes[0]), sums.dB_BLGN.to(ctx.dtypes[1])
            dlog_a, dD_BH = sums.dlog_a_BLH().to(ctx.dtypes[2]), sums.dD_BH
        dD = None if ctx.dtypes[3] is None else dD_BH.sum(0).to(ctx.dtypes[3])
        return dC, dB, dlog_a, dD, None, None, None, None, None, None


def _scaled(t_BLHN: Tensor, factor_BH: Tensor, dtype: torch.dtype) -> Tensor:
    """A gradient times a factor per sequence and head in another dtype, without a copy in the dtype it had."""
    factor_B1H1 = factor_BH.to(t_BLHN.dtype)[:, None, :, None]
    if t_BLHN.dtype == dtype:
        return t_BLHN * factor_B1H1
    scaled_BLHN = torch.empty_like(t_BLHN, dtype=dtype)
    for part, source in zip(scaled_BLHN.split(1024, 1), t_BLHN.split(1024, 1), strict=True):
        part.copy_(source * factor_B1H1)
    return scaled_BLHN
