"""The selective scan as exporters record it: no loop over tokens, no prefix-sum operator, rank at most 4.

h_t = a_t h_{t-1} + b_t is associative in the pairs (a, b); in each round every token takes in the pair of the token
1, 2, 4, ... before it (Hillis and Steele, "Data parallel algorithms", 1986). The number of tokens is static.

Legend: B batch, D channels, L tokens, N state size, G B/C groups.
"""

from __future__ import annotations

import torch
from torch import Tensor


def scan_traced(
    x_BDL: Tensor,
    dt_BDL: Tensor,
    A_DN: Tensor,
    B_BGNL: Tensor,
    C_BGNL: Tensor,
    state_BDN: Tensor,
    keep_BL: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """h C [B, D, L] and the state after the last token [B, D, N]."""
    length = x_BDL.shape[2]
    a_BDLN = torch.exp(dt_BDL[..., None] * A_DN[:, None, :])
    if keep_BL is not None:
        a_BDLN = a_BDLN * keep_BL[:, None, :, None]
    b_BDLN = (dt_BDL * x_BDL)[..., None] * _per_channel(B_BGNL, x_BDL.shape[1])
    first_BD1N = b_BDLN[:, :, :1] + a_BDLN[:, :, :1] * state_BDN[:, :, None]
    b_BDLN = torch.cat([first_BD1N, b_BDLN[:, :, 1:]], 2)
    reach = 1
    while reach < length:
        # The first `reach` tokens have all before them already.
        a_late, b_late = a_BDLN[:, :, reach:], b_BDLN[:, :, reach:]
        b_late = b_late + a_late * b_BDLN[:, :, :-reach]
        a_late = a_late * a_BDLN[:, :, :-reach]
        a_BDLN = torch.cat([a_BDLN[:, :, :reach], a_late], 2)
        b_BDLN = torch.cat([b_BDLN[:, :, :reach], b_late], 2)
        reach *= 2
    y_BDL = (b_BDLN * _per_channel(C_BGNL, x_BDL.shape[1])).sum(-1)
    return y_BDL, b_BDLN[:, :, -1]


def _per_channel(t_BGNL: Tensor, channels: int) -> Tensor:
    """[B, D, L, N], or [B, 1, L, N] for one group."""
    t_BGLN = t_BGNL.transpose(2, 3)
    batch, groups, length, size = t_BGLN.shape
    if groups == 1:
        return t_BGLN
    return torch.cat([t_BGLN] * (channels // groups), 2).reshape(batch, channels, length, size)
