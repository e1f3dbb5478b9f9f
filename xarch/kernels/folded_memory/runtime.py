"""The attention of tokens over the entries of heads as onnxruntime's GroupQueryAttention, for exporters.

The operator writes key and value behind those that are there (in place, if a program binds input and output to the same
memory), reads of every row no more entries than are in use, and those in 8 bits without unpacking them first.

Legend: R rows, L tokens, G heads that share a key/value head, E head width, X = G E, C entries of a row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xarch.kernels.bounded_attention import Rotary

OPERATOR = "com.microsoft::GroupQueryAttention"


def grouped_query_attention(
    q_RLX: Tensor,
    k_RLE: Tensor,
    v_RLE: Tensor,
    keys_R1CE: Tensor,
    values_R1CE: Tensor,
    bias_RG1C: Tensor,
    last_R: Tensor,
    entries_1: Tensor,
    rotary: Rotary,
    *,
    scaled: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the outputs [R, L, X] of tokens, and keys and values with their own.

    Args:
        q_RLX, k_RLE: rotated; X = G E. The operator takes several tokens of one row only.
        bias_RG1C: of all entries; what lies behind the tokens is not read.
        last_R: int32, place of the last token among the entries of its row.
        entries_1: int32, C.
        scaled: keys and values are whole numbers of 8 bits, with the scale 1; else float32.
    """
    length, width = k_RLE.shape[1:]
    bias_RGLC = bias_RG1C if length == 1 else bias_RG1C.expand(-1, -1, length, -1)
    attributes: dict[str, Any] = {
        "num_heads": q_RLX.shape[2] // width,
        "kv_num_heads": 1,
        "scale": rotary.scale,
    }
    if rotary.softcap is not None:
        attributes["softcap"] = rotary.softcap
    inputs: list[Tensor | None] = [q_RLX, k_RLE, v_RLE, keys_R1CE, values_R1CE, last_R, entries_1]
    inputs += [None, None, None, bias_RGLC]
    if scaled:
        one_E = torch.tensor([1.0] * width, device=q_RLX.device)
        inputs += [None, one_E, one_E]
        attributes |= {"kv_cache_bit_width": 8, "k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
    out_RLX, keys_R1CE, values_R1CE = torch.onnx.ops.symbolic_multi_out(
        OPERATOR,
        inputs,
        attributes,
        dtypes=(q_RLX.dtype, keys_R1CE.dtype, values_R1CE.dtype),
        shapes=(q_RLX.shape, keys_R1CE.shape, values_R1CE.shape),
        version=1,
    )
    return out_RLX, keys_R1CE, values_R1CE
