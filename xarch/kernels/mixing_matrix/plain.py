"""The mixing matrix from prefix sums of the log-decay, one [L, L] product per group.

Legend: B batch, L tokens, t row, s column, H heads, G B/C groups, R heads per group, N state size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.kernels.dispatch import register
from xarch.kernels.mixing_matrix.support import comparable
from xarch.kernels.precision import LOG_FLOOR, island_dtype, product


@register("mixing_matrix", "torch", priority=10)
def mixing_matrix_plain(
    C_BLGN: Tensor,
    B_BLGN: Tensor,
    log_a_BLH: Tensor,
    D_H: Tensor | None,
    *,
    segment_ids_BL: Tensor | None,
    mask_BL: Tensor | None,
) -> Tensor:
    """Arguments and result of :func:`xarch.kernels.mixing_matrix`; decays below e^-60 are raised to it."""
    dtype = island_dtype(C_BLGN, B_BLGN, log_a_BLH)
    length, groups = C_BLGN.shape[1:3]
    # In float32 differences of prefix sums far from the first token would lose the digits of single steps.
    wide = torch.float32 if log_a_BLH.device.type == "mps" else torch.float64
    S_BHL = log_a_BLH.to(wide).clamp(min=LOG_FLOOR).cumsum(1).transpose(1, 2)
    decay_BHLL = (S_BHL[:, :, :, None] - S_BHL[:, :, None, :]).clamp(LOG_FLOOR, 0.0).to(dtype).exp()
    inner_BGLL = product(C_BLGN.to(dtype).transpose(1, 2), B_BLGN.to(dtype).permute(0, 2, 3, 1))
    M_BHLL = (decay_BHLL.unflatten(1, (groups, -1)) * inner_BGLL[:, :, None]).flatten(1, 2)
    if D_H is not None:
        M_BHLL = M_BHLL + torch.diag_embed(D_H.to(dtype)[:, None].expand(-1, length))
    return M_BHLL * comparable(length, segment_ids_BL, mask_BL, C_BLGN.device)[:, None]
