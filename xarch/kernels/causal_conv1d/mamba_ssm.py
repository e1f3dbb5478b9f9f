"""The causal convolution on the CUDA kernel of the ``causal_conv1d`` package, which Mamba's own code uses.

Legend: B batch, L tokens, C channels, K taps, J = K - 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.kernels.causal_conv1d.plain import causal_conv1d_plain
from xarch.kernels.causal_conv1d.triton import check
from xarch.kernels.causal_conv1d.window import final_state
from xarch.kernels.dispatch import register
from xarch.kernels.gpu import why_not_causal_conv1d
from xarch.kernels.precision import island_dtype
from xarch.kernels.segments import runs


@register(
    "causal_conv1d",
    "mamba_ssm",
    priority=40,
    devices=["cuda"],
    dtypes=[torch.float32, torch.bfloat16, torch.float16],
    lacks=["initial_state"],
    available=why_not_causal_conv1d,
    check=lambda device: check(causal_conv1d_mamba_ssm, device),
)
def causal_conv1d_mamba_ssm(
    x_BLC: Tensor,
    weight_CK: Tensor,
    bias_C: Tensor | None,
    *,
    initial_state_BCJ: Tensor | None,
    segment_ids_BL: Tensor | None,
    return_final_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """Arguments and results of :func:`xarch.kernels.causal_conv1d`; the state is None unless asked for.

    What the kernel does not take (fewer than 2 or more than 4 taps, channels that 8 does not divide, float64)
    runs in PyTorch.
    """
    channels, taps = weight_CK.shape
    taken = 2 <= taps <= 4 and channels % 8 == 0 and x_BLC.numel() > 0
    if not taken or island_dtype(x_BLC, weight_CK) == torch.float64:
        return causal_conv1d_plain(
            x_BLC,
            weight_CK,
            bias_C,
            initial_state_BCJ=initial_state_BCJ,
            segment_ids_BL=segment_ids_BL,
            return_final_state=return_final_state,
        )
    from causal_conv1d import causal_conv1d_fn

    run_BL = None if segment_ids_BL is None else runs(segment_ids_BL).int()
    bias_C = None if bias_C is None else bias_C.to(weight_CK.dtype)
    # [B, C, L] with channels side by side in memory is the layout whose kernel knows documents.
    y_BCL = causal_conv1d_fn(x_BLC.contiguous().transpose(1, 2), weight_CK, bias_C, seq_idx=run_BL, activation=None)
    state_BCJ = final_state(x_BLC, None, taps, segment_ids_BL) if return_final_state else None
    return y_BCL.transpose(1, 2), state_BCJ
