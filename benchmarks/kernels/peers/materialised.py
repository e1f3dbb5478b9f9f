"""The published form of the matrix objective: both matrices built, one norm of their difference.

MOHAWK (arXiv 2408.10189, section 3); decays by ``segsum`` of mamba_ssm, attention as eager softmax.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.kernels.contender import Inputs
from benchmarks.kernels.peers import mamba_ssm


def distance(i: Inputs) -> Tensor:
    """‖M − P‖_F per sequence and head."""
    with torch.no_grad():
        P_BHLL = attention(i["q"], i["k"], i["q"].shape[-1] ** -0.5)
    return torch.linalg.matrix_norm(mixing(i["C"], i["B"], i["log_a"], i["D"]) - P_BHLL)


def attention(q_BLHE: Tensor, k_BLKE: Tensor, scale: float) -> Tensor:
    """Causal attention matrix [B, H, L, L]."""
    length, heads = q_BLHE.shape[1:3]
    k_BLHE = k_BLKE.repeat_interleave(heads // k_BLKE.shape[2], 2)
    score_BHLL = q_BLHE.transpose(1, 2) @ k_BLHE.permute(0, 2, 3, 1) * scale
    future_LL = torch.ones(length, length, dtype=torch.bool, device=q_BLHE.device).triu(1)
    return score_BHLL.masked_fill(future_LL, float("-inf")).softmax(-1)


def mixing(C_BLGN: Tensor, B_BLGN: Tensor, log_a_BLH: Tensor, D_H: Tensor) -> Tensor:
    """Mixing matrix of the student [B, H, L, L]."""
    mamba_ssm.importable()
    from mamba_ssm.modules.ssd_minimal import segsum

    heads = log_a_BLH.shape[2]
    C_BLHN, B_BLHN = (t.repeat_interleave(heads // t.shape[2], 2) for t in (C_BLGN, B_BLGN))
    decay_BHLL = segsum(log_a_BLH.transpose(1, 2)).exp()
    M_BHLL = C_BLHN.transpose(1, 2) @ B_BLHN.permute(0, 2, 3, 1) * decay_BHLL
    return M_BHLL + torch.diag_embed(D_H[:, None].expand(-1, M_BHLL.shape[-1]))
