"""The convolution tap by tap with autograd: the definition, and the reference for the other backends.

Legend: B batch, L tokens, C channels, K taps, J = K - 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.kernels.causal_conv1d.window import final_state, prepend
from xarch.kernels.dispatch import register
from xarch.kernels.precision import island_dtype
from xarch.kernels.segments import runs


@register("causal_conv1d", "naive", priority=0)
def causal_conv1d_naive(
    x_BLC: Tensor,
    weight_CK: Tensor,
    bias_C: Tensor | None,
    *,
    initial_state_BCJ: Tensor | None,
    segment_ids_BL: Tensor | None,
    return_final_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """Arguments and results of :func:`xarch.kernels.causal_conv1d`; the state is None unless asked for."""
    length, taps = x_BLC.shape[1], weight_CK.shape[1]
    dtype = island_dtype(x_BLC, weight_CK)
    run_BL = None if segment_ids_BL is None else runs(segment_ids_BL)
    extended, run_extended = prepend(x_BLC, initial_state_BCJ, taps, run_BL)
    y_BLC = torch.zeros_like(x_BLC, dtype=dtype)
    for k in range(taps):
        reached_BLC = extended[:, k : k + length].to(dtype)
        if run_BL is not None and run_extended is not None:
            reached_BLC = reached_BLC * (run_extended[:, k : k + length] == run_BL)[:, :, None]
        y_BLC = y_BLC + reached_BLC * weight_CK[:, k].to(dtype)
    if bias_C is not None:
        y_BLC = y_BLC + bias_C.to(dtype)
    state_BCJ = final_state(x_BLC, initial_state_BCJ, taps, segment_ids_BL) if return_final_state else None
    return y_BLC.to(x_BLC.dtype), state_BCJ
