"""Attention as onnxruntime's GroupQueryAttention, for exporters: of tokens to what a cache or a memory holds, and of a
sequence to all of itself.

With a cache the operator writes key and value behind those that are there (in place, if a program binds input and
output to the same memory), reads of every row no more entries than are in use, and those in 8 bits without unpacking
them first.

Legend: R or B rows, L tokens, S tokens that read each other, H heads, K key/value heads, E head width, C entries for
which there is room.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

OPERATOR = "com.microsoft::GroupQueryAttention"


def grouped_query_attention(
    q_RLX: Tensor,
    k_RLY: Tensor,
    v_RLY: Tensor,
    keys_RKCE: Tensor,
    values_RKCE: Tensor,
    last_R: Tensor,
    entries_1: Tensor,
    *,
    scale: float,
    softcap: float | None = None,
    bias_RHLC: Tensor | None = None,
    whole: bool = False,
    grows: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the outputs [R, L, X] of tokens, and keys and values with theirs.

    Args:
        q_RLX, k_RLY: rotated; X = H E, Y = K E. The operator takes several tokens of one row only.
        last_R: int32, place of the last token among the entries of its row; what lies behind it is not read.
        entries_1: int32, entries of the fullest row that ``bias_RHLC`` has values for, those of the tokens included.
        scale, softcap: of scores, see :class:`xarch.kernels.Rotary`.
        bias_RHLC: added to scores.
        whole: keys and values are whole numbers of 8 bits; else float32.
        grows: entries that are returned are as many as were there and the tokens, unless there was room for these.
    """
    length, width = q_RLX.shape[1], keys_RKCE.shape[3]
    attributes: dict[str, Any] = {
        "num_heads": q_RLX.shape[2] // width,
        "kv_num_heads": keys_RKCE.shape[1],
        "scale": scale,
    }
    if softcap is not None:
        attributes["softcap"] = softcap
    inputs: list[Tensor | None] = [q_RLX, k_RLY, v_RLY, keys_RKCE, values_RKCE, last_R, entries_1]
    if bias_RHLC is not None:
        inputs += [None, None, None, bias_RHLC]
    if whole:
        one_Y = torch.tensor([1.0] * k_RLY.shape[2], device=q_RLX.device)
        inputs += [None] * (12 - len(inputs)) + [one_Y, one_Y]
        attributes |= {"kv_cache_bit_width": 8, "k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
    rows, heads, entries = keys_RKCE.shape[:3]
    shape = (rows, heads, entries + length if grows else entries, width)
    out_RLX, keys_RKCE, values_RKCE = torch.onnx.ops.symbolic_multi_out(
        OPERATOR,
        inputs,
        attributes,
        dtypes=(q_RLX.dtype, keys_RKCE.dtype, values_RKCE.dtype),
        shapes=(q_RLX.shape, shape, shape),
        version=1,
    )
    return out_RLX, keys_RKCE, values_RKCE


def attention_to_all(
    q_BSX: Tensor,
    k_BSY: Tensor,
    v_BSY: Tensor,
    bias_B1SS: Tensor,
    *,
    kv_heads: int,
    scale: float,
    softcap: float | None = None,
) -> Tensor:
    """Return the outputs [B, S, X] of tokens that read all tokens of their row.

    Args:
        q_BSX, k_BSY: X = H E, Y = K E.
        bias_B1SS: added to scores; the operator does not spread it.
        scale, softcap: of scores, before the bias.
    """
    rows, length = bias_B1SS.shape[0], bias_B1SS.shape[3]
    attributes: dict[str, Any] = {
        "num_heads": q_BSX.shape[2] * kv_heads // k_BSY.shape[2],
        "kv_num_heads": kv_heads,
        "scale": scale,
        "causal": 0,
    }
    if softcap is not None:
        attributes["softcap"] = softcap
    last_B = torch.full((rows,), length - 1, dtype=torch.int32, device=q_BSX.device)
    entries_1 = torch.full((1,), length, dtype=torch.int32, device=q_BSX.device)
    out_BSX: Tensor = torch.onnx.ops.symbolic(
        OPERATOR,
        [q_BSX, k_BSY, v_BSY, None, None, last_B, entries_1, None, None, None, bias_B1SS],
        attributes,
        dtype=q_BSX.dtype,
        shape=q_BSX.shape,
        version=1,
    )
    return out_BSX
