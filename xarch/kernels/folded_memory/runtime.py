"""The attention of a token over the entries of heads as onnxruntime's GroupQueryAttention, for exporters.

The operator writes key and value behind those that are there (in place, if a program binds input and output to the same
memory), reads of every row no more entries than are in use, and those in 8 bits without unpacking them first.

Legend: R rows, G heads that share a key/value head, E head width, X = G E, C entries of a row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xarch.kernels.bounded_attention import Rotary

OPERATOR = "com.microsoft::GroupQueryAttention"


def grouped_query_attention(
    q_R1X: Tensor,
    k_R1E: Tensor,
    v_R1E: Tensor,
    keys_R1CE: Tensor,
    values_R1CE: Tensor,
    bias_RG1C: Tensor,
    last_R: Tensor,
    entries_1: Tensor,
    rotary: Rotary,
    *,
    scaled: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the outputs [R, 1, X] of a token of each row, and keys and values with its own.

    Args:
        q_R1X, k_R1E: rotated.
        bias_RG1C: of all entries; what lies behind the token is not read.
        last_R: int32, place of the token among the entries of its row.
        entries_1: int32, C.
        scaled: keys and values are whole numbers of 8 bits, with the scale 1; else float32.
    """
    width = k_R1E.shape[2]
    attributes: dict[str, Any] = {
        "num_heads": q_R1X.shape[2] // width,
        "kv_num_heads": 1,
        "scale": rotary.scale,
    }
    if rotary.softcap is not None:
        attributes["softcap"] = rotary.softcap
    inputs: list[Tensor | None] = [q_R1X, k_R1E, v_R1E, keys_R1CE, values_R1CE, last_R, entries_1]
    inputs += [None, None, None, bias_RG1C]
    if scaled:
        one_E = torch.tensor([1.0] * width, device=q_R1X.device)
        inputs += [None, one_E, one_E]
        attributes |= {"kv_cache_bit_width": 8, "k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
    out_R1X, keys_R1CE, values_R1CE = torch.onnx.ops.symbolic_multi_out(
        OPERATOR,
        inputs,
        attributes,
        dtypes=(q_R1X.dtype, keys_R1CE.dtype, values_R1CE.dtype),
        shapes=(q_R1X.shape, keys_R1CE.shape, values_R1CE.shape),
        version=1,
    )
    return out_R1X, keys_R1CE, values_R1CE
