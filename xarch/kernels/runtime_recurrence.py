"""Recurrences as operators of onnxruntime, for exporters: one for all tokens of a call, in the place of a dozen
standard operators and, for several tokens, of products over chunks.

Legend: B batch, L tokens, H query heads, K key/value heads, N key width, P value width, C channels, T taps, J = T - 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

RECURRENCE, CONVOLUTION = "com.microsoft::LinearAttention", "com.microsoft::CausalConvWithState"


def linear_attention(
    q_BLHN: Tensor,
    k_BLKN: Tensor,
    v_BLKP: Tensor,
    log_a_BLK: Tensor,
    state_BKNP: Tensor,
    beta_BLK: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the outputs [B, L, H, P] of S = a S + k vᵀ, y = Sᵀ q, and the state after the last token.

    Args:
        q_BLHN: head h reads the state ``h // (H // K)``.
        beta_BLK: the gated delta rule instead, S = a S + beta k (v - a Sᵀ k)ᵀ (arXiv 2412.06464).
    """
    heads, states, width = q_BLHN.shape[2], k_BLKN.shape[2], v_BLKP.shape[3]
    attributes: dict[str, Any] = {
        "q_num_heads": heads,
        "kv_num_heads": states,
        "scale": 1.0,
        "update_rule": "gated" if beta_BLK is None else "gated_delta",
    }
    inputs = [*(t.flatten(2) for t in (q_BLHN, k_BLKN, v_BLKP)), state_BKNP, log_a_BLK]
    out_BLX, state_BKNP = torch.onnx.ops.symbolic_multi_out(
        RECURRENCE,
        inputs if beta_BLK is None else [*inputs, beta_BLK],
        attributes,
        dtypes=(v_BLKP.dtype, state_BKNP.dtype),
        shapes=((*q_BLHN.shape[:2], heads * width), state_BKNP.shape),
        version=1,
    )
    return out_BLX.unflatten(2, (heads, width)), state_BKNP


def causal_conv_with_state(
    x_BLC: Tensor, weight_CT: Tensor, bias_C: Tensor | None, state_BCJ: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the causal depthwise convolution [B, L, C] of tokens and of the J inputs before them, and the last J."""
    batch, length, channels = x_BLC.shape
    x_BCL = x_BLC.reshape(batch, channels, 1) if length == 1 else x_BLC.transpose(1, 2)
    y_BCL, state_BCJ = torch.onnx.ops.symbolic_multi_out(
        CONVOLUTION,
        [x_BCL, weight_CT[:, None], bias_C, state_BCJ],
        {},
        dtypes=(x_BLC.dtype, state_BCJ.dtype),
        shapes=(x_BCL.shape, state_BCJ.shape),
        version=1,
    )
    return y_BCL.reshape(x_BLC.shape) if length == 1 else y_BCL.transpose(1, 2), state_BCJ
