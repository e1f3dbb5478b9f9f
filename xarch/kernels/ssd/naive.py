"""SSD one token at a time: the definition, and the reference for the other backends.

Legend: B batch, L tokens, H heads, G B/C groups, P value width, N state size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.kernels.dispatch import register
from xarch.kernels.precision import island_dtype
from xarch.kernels.segments import runs
from xarch.kernels.ssd.step import ssd_step


@register("ssd", "naive", priority=0)
def ssd_naive(
    x_BLHP: Tensor,
    log_a_BLH: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    D_H: Tensor | None,
    *,
    initial_state_BHPN: Tensor | None,
    segment_ids_BL: Tensor | None,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor]:
    """Arguments and results of :func:`xarch.kernels.ssd`; the state is always returned."""
    batch, length, heads, width = x_BLHP.shape
    dtype = island_dtype(x_BLHP, log_a_BLH, B_BLGN, C_BLGN, initial_state_BHPN)
    if initial_state_BHPN is None:
        state_BHPN = x_BLHP.new_zeros(batch, heads, width, B_BLGN.shape[-1], dtype=dtype)
    else:
        state_BHPN = initial_state_BHPN.to(dtype)
    run_BL = None if segment_ids_BL is None else runs(segment_ids_BL)
    ys: list[Tensor] = []
    for t in range(length):
        if run_BL is not None and t > 0:
            state_BHPN = state_BHPN * (run_BL[:, t] == run_BL[:, t - 1])[:, None, None, None]
        y_BHP, state_BHPN = ssd_step(x_BLHP[:, t], log_a_BLH[:, t], B_BLGN[:, t], C_BLGN[:, t], D_H, state_BHPN)
        ys.append(y_BHP)
    return torch.stack(ys, 1) if ys else torch.zeros_like(x_BLHP), state_BHPN
