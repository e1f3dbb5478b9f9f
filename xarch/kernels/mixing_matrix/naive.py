"""The mixing matrix with the sum of log-decays formed for every entry: the reference for the other form.

Legend: B batch, L tokens, t row, s column, H heads, G B/C groups, N state size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.kernels.dispatch import register
from xarch.kernels.mixing_matrix.support import comparable
from xarch.kernels.precision import island_dtype


@register("mixing_matrix", "naive", priority=0)
def mixing_matrix_naive(
    C_BLGN: Tensor,
    B_BLGN: Tensor,
    log_a_BLH: Tensor,
    D_H: Tensor | None,
    *,
    segment_ids_BL: Tensor | None,
    mask_BL: Tensor | None,
) -> Tensor:
    """Arguments and result of :func:`xarch.kernels.mixing_matrix`.

    No difference of prefix sums is taken (Mamba-2, arXiv 2405.21060, "segsum").
    """
    dtype = island_dtype(C_BLGN, B_BLGN, log_a_BLH)
    length, heads = log_a_BLH.shape[1:]
    C_BLHN = C_BLGN.to(dtype).repeat_interleave(heads // C_BLGN.shape[2], 2)
    B_BLHN = B_BLGN.to(dtype).repeat_interleave(heads // B_BLGN.shape[2], 2)
    steps_BHLL = log_a_BLH.to(dtype).transpose(1, 2)[:, :, :, None].expand(-1, -1, -1, length)
    sums_BHLL = steps_BHLL.tril(-1).cumsum(-2)
    M_BHLL = torch.einsum("bthn,bshn->bhts", C_BLHN, B_BLHN) * sums_BHLL.exp()
    if D_H is not None:
        M_BHLL = M_BHLL + D_H.to(dtype)[:, None, None] * torch.eye(length, dtype=dtype, device=D_H.device)
    return M_BHLL * comparable(length, segment_ids_BL, mask_BL, C_BLGN.device)[:, None]
