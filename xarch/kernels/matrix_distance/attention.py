"""The teacher's [L, L] matrix per head, materialised: for inspection and as a reference in tests.

Legend: B batch, L tokens, t row, s column, H heads, K key heads, E head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.kernels.mixing_matrix.support import comparable
from xarch.kernels.precision import island_dtype


def attention_matrix(
    q_BLHE: Tensor,
    k_BLKE: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    segment_ids_BL: Tensor | None = None,
    mask_BL: Tensor | None = None,
) -> Tensor:
    """Causal softmax attention [B, H, L, L]; arguments as in :func:`xarch.kernels.matrix_distance`.

    Rows and columns of padding are zero.
    """
    dtype = island_dtype(q_BLHE, k_BLKE)
    length, heads = q_BLHE.shape[1:3]
    k_BLHE = k_BLKE.repeat_interleave(heads // k_BLKE.shape[2], 2)
    score_BHLL = torch.einsum("bthe,bshe->bhts", q_BLHE.to(dtype), k_BLHE.to(dtype)) * scale
    if softcap is not None:
        score_BHLL = softcap * torch.tanh(score_BHLL / softcap)
    allowed_BLL = comparable(length, segment_ids_BL, mask_BL, q_BLHE.device)
    if window is not None:
        allowed_BLL = allowed_BLL & ~torch.ones_like(allowed_BLL).tril(-window)
    score_BHLL = score_BHLL.masked_fill(~allowed_BLL[:, None], torch.finfo(dtype).min)
    return score_BHLL.softmax(-1) * allowed_BLL[:, None]
