"""The two [L, L] matrices per head, materialised: for inspection and as the truth in tests.

Legend: B batch, L tokens, t row, s column, H heads, K key heads, E head width, G B/C groups, N state size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.kernels.precision import island_dtype
from xarch.kernels.segments import runs


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


def mixing_matrix(
    C_BLGN: Tensor,
    B_BLGN: Tensor,
    log_a_BLH: Tensor,
    D_H: Tensor | None = None,
    *,
    segment_ids_BL: Tensor | None = None,
    mask_BL: Tensor | None = None,
) -> Tensor:
    """State-space mixing matrix [B, H, L, L]; arguments as in :func:`xarch.kernels.matrix_distance`.

    Sums of ``log_a`` are formed per entry, without a difference of prefix sums (Mamba-2, arXiv 2405.21060, "segsum").
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


def comparable(length: int, segment_ids_BL: Tensor | None, mask_BL: Tensor | None, device: torch.device) -> Tensor:
    """Where an entry can be nonzero [B or 1, L, L]: at or below the diagonal, in one document, not in padding."""
    allowed_BLL = torch.ones(1, length, length, dtype=torch.bool, device=device).tril()
    if segment_ids_BL is not None:
        run_BL = runs(segment_ids_BL)
        allowed_BLL = allowed_BLL & (run_BL[:, :, None] == run_BL[:, None, :])
    if mask_BL is not None:
        real_BL = mask_BL.bool()
        allowed_BLL = allowed_BLL & real_BL[:, :, None] & real_BL[:, None, :]
    return allowed_BLL
