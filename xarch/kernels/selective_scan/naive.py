"""The selective scan one token at a time: the definition, and the reference for the other backends.

Legend: B batch, D channels, L tokens, N state size, G B/C groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.kernels.dispatch import register
from xarch.kernels.precision import island_dtype
from xarch.kernels.segments import runs
from xarch.kernels.selective_scan.step import selective_scan_step


@register("selective_scan", "naive", priority=0)
def selective_scan_naive(
    x_BDL: Tensor,
    dt_BDL: Tensor,
    A_DN: Tensor,
    B_BGNL: Tensor,
    C_BGNL: Tensor,
    D_D: Tensor | None,
    z_BDL: Tensor | None,
    *,
    dt_bias_D: Tensor | None,
    dt_softplus: bool,
    initial_state_BDN: Tensor | None,
    segment_ids_BL: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Arguments and results of :func:`xarch.kernels.selective_scan`; the state is always returned."""
    batch, channels, length = x_BDL.shape
    dtype = island_dtype(x_BDL, dt_BDL, A_DN, B_BGNL, C_BGNL, initial_state_BDN)
    if initial_state_BDN is None:
        state_BDN = x_BDL.new_zeros(batch, channels, A_DN.shape[1], dtype=dtype)
    else:
        state_BDN = initial_state_BDN.to(dtype)
    run_BL = None if segment_ids_BL is None else runs(segment_ids_BL)
    ys: list[Tensor] = []
    for t in range(length):
        if run_BL is not None and t > 0:
            state_BDN = state_BDN * (run_BL[:, t] == run_BL[:, t - 1])[:, None, None]
        y_BD, state_BDN = selective_scan_step(
            x_BDL[..., t],
            dt_BDL[..., t],
            A_DN,
            B_BGNL[..., t],
            C_BGNL[..., t],
            D_D,
            None if z_BDL is None else z_BDL[..., t],
            state_BDN,
            dt_bias_D=dt_bias_D,
            dt_softplus=dt_softplus,
        )
        ys.append(y_BD)
    return torch.stack(ys, -1) if ys else torch.zeros_like(x_BDL), state_BDN
