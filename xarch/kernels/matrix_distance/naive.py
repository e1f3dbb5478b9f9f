"""The distance by building both matrices: the definition, and the reference for the other backends."""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.kernels.dispatch import register
from xarch.kernels.matrix_distance.attention import attention_matrix
from xarch.kernels.matrix_distance.result import MatrixDistance
from xarch.kernels.mixing_matrix.naive import mixing_matrix_naive


@register("matrix_distance", "naive", priority=0)
def matrix_distance_naive(
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
    with torch.no_grad():
        P_BHLL = attention_matrix(
            q_BLHE,
            k_BLKE,
            scale=scale,
            window=window,
            softcap=softcap,
            segment_ids_BL=segment_ids_BL,
            mask_BL=mask_BL,
        )
    M_BHLL = mixing_matrix_naive(C_BLGN, B_BLGN, log_a_BLH, D_H, segment_ids_BL=segment_ids_BL, mask_BL=mask_BL)
    return MatrixDistance(torch.linalg.matrix_norm(M_BHLL - P_BHLL), torch.linalg.matrix_norm(P_BHLL))
