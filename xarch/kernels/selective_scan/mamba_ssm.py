"""The selective scan on the CUDA kernel of the ``mamba_ssm`` package (Mamba, arXiv 2312.00752).

Legend: B batch, D channels, L tokens, N state size, G B/C groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.kernels.dispatch import register
from xarch.kernels.gpu import same_dtype, why_not_mamba_ssm
from xarch.kernels.precision import island_dtype
from xarch.kernels.selective_scan.plain import selective_scan_plain
from xarch.kernels.selective_scan.triton import check

LARGEST = 256
"""The kernel takes no larger state."""


@register(
    "selective_scan",
    "mamba_ssm",
    priority=60,
    devices=["cuda"],
    dtypes=[torch.float32, torch.bfloat16, torch.float16],
    # The kernel returns the last state, but its backward pass knows no gradient of it.
    lacks=["initial_state", "segment_ids", "final_state"],
    available=why_not_mamba_ssm,
    check=lambda device: check(selective_scan_mamba_ssm, device, plain=True),
)
def selective_scan_mamba_ssm(
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
    """Arguments and results of :func:`xarch.kernels.selective_scan`; the state is always returned, without gradient.

    Calls with a float64 operand, no element, or more than :data:`LARGEST` states per channel run in PyTorch.
    """
    wide = island_dtype(x_BDL, dt_BDL, A_DN, B_BGNL, C_BGNL) == torch.float64
    if wide or x_BDL.numel() == 0 or not 1 <= A_DN.shape[1] <= LARGEST:
        return selective_scan_plain(
            x_BDL,
            dt_BDL,
            A_DN,
            B_BGNL,
            C_BGNL,
            D_D,
            z_BDL,
            dt_bias_D=dt_bias_D,
            dt_softplus=dt_softplus,
            initial_state_BDN=initial_state_BDN,
            segment_ids_BL=segment_ids_BL,
        )
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    sequences = (x_BDL, dt_BDL, B_BGNL, C_BGNL) if z_BDL is None else (x_BDL, dt_BDL, B_BGNL, C_BGNL, z_BDL)
    x, dt, B, C, *gate = same_dtype(*sequences)
    D, bias = (None if t is None else t.float() for t in (D_D, dt_bias_D))
    y_BDL, last_BDN = selective_scan_fn(
        x, dt, A_DN.float(), B, C, D, gate[0] if gate else None, bias, dt_softplus, return_last_state=True
    )
    return y_BDL.to(x_BDL.dtype), last_BDN.float()
