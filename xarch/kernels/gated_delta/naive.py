"""The gated delta rule one token at a time: the definition, and the reference for the other backends.

Legend: B batch, L tokens, H query heads, K key/value heads, P value width, N key width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.kernels.dispatch import register
from xarch.kernels.gated_delta.step import gated_delta_step
from xarch.kernels.precision import island_dtype
from xarch.kernels.segments import runs


@register("gated_delta", "naive", priority=0)
def gated_delta_naive(
    q_BLHN: Tensor,
    k_BLKN: Tensor,
    v_BLKP: Tensor,
    log_a_BLK: Tensor,
    beta_BLK: Tensor,
    *,
    initial_state_BKPN: Tensor | None,
    segment_ids_BL: Tensor | None,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor]:
    """Arguments and results of :func:`xarch.kernels.gated_delta`; the state is always returned."""
    batch, length, states, width = v_BLKP.shape
    dtype = island_dtype(q_BLHN, k_BLKN, v_BLKP, log_a_BLK, beta_BLK, initial_state_BKPN)
    if initial_state_BKPN is None:
        state_BKPN = v_BLKP.new_zeros(batch, states, width, k_BLKN.shape[-1], dtype=dtype)
    else:
        state_BKPN = initial_state_BKPN.to(dtype)
    run_BL = None if segment_ids_BL is None else runs(segment_ids_BL)
    ys: list[Tensor] = []
    for t in range(length):
        if run_BL is not None and t > 0:
            state_BKPN = state_BKPN * (run_BL[:, t] == run_BL[:, t - 1])[:, None, None, None]
        token = (q_BLHN[:, t], k_BLKN[:, t], v_BLKP[:, t], log_a_BLK[:, t], beta_BLK[:, t])
        y_BHP, state_BKPN = gated_delta_step(*token, state_BKPN)
        ys.append(y_BHP)
    y_BLHP = torch.stack(ys, 1) if ys else v_BLKP.new_zeros(batch, 0, q_BLHN.shape[2], width)
    return y_BLHP, state_BKPN
