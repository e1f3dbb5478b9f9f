"""Causal depthwise convolution for one token: what a generating student runs.

Legend: B batch, C channels, K taps, J = K - 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.kernels.precision import island_dtype, without_autocast


def causal_conv1d_step(
    x_BC: Tensor, weight_CK: Tensor, bias_C: Tensor | None, state_BCJ: Tensor
) -> tuple[Tensor, Tensor]:
    """The convolution of one new input with the K - 1 inputs before it.

    Args:
        x_BC: the new input.
        weight_CK: taps, the last one meets ``x_BC``.
        bias_C: bias, or None.
        state_BCJ: the last K - 1 inputs, oldest first.

    Returns:
        y [B, C] in the dtype of ``x_BC``, and the inputs for the next step in the dtype of ``state_BCJ``.
    """
    with without_autocast(x_BC.device):
        dtype = island_dtype(x_BC, weight_CK)
        window_BCK = torch.cat([state_BCJ, x_BC.to(state_BCJ.dtype)[:, :, None]], -1)
        y_BC = (window_BCK.to(dtype) * weight_CK.to(dtype)).sum(-1)
        if bias_C is not None:
            y_BC = y_BC + bias_C.to(dtype)
        return y_BC.to(x_BC.dtype), window_BCK[:, :, 1:]
