"""The attention of tokens over the entries of a head as onnxruntime's GroupQueryAttention, for exporters.

The operator writes key and value behind those that are there (in place, if a program binds input and output to the same
memory), and reads entries in 8 bits without unpacking them first.

Legend: B batch, L tokens, G heads that share a key/value head, E head width, X = G E, C entries of the head, T entries
in use.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xarch.kernels.bounded_attention import Rotary

OPERATOR = "com.microsoft::GroupQueryAttention"


def grouped_query_attention(
    q_BLX: Tensor,
    k_BLE: Tensor,
    v_BLE: Tensor,
    keys_B1CE: Tensor,
    values_B1CE: Tensor,
    bias_BG1C: Tensor,
    last_1: Tensor,
    total_1: Tensor,
    rotary: Rotary,
    scales: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the outputs [B, L, X] of tokens, and keys and values with their own.

    Args:
        q_BLX, k_BLE: rotated; X = G E.
        bias_BG1C: of all entries; what lies behind the tokens is not read.
        last_1, total_1: int32, T - 1 and T with the tokens.
        scales: of keys and values [E] in 8 bits; None for float32.
    """
    length, width = k_BLE.shape[1:]
    begin_1, axis_1 = (torch.tensor([i], dtype=torch.int32, device=q_BLX.device) for i in (0, 3))
    # Its last size is known only when it runs: see the lowering `group-query` of the exporter.
    seen_BG1T = torch.onnx.ops.symbolic(
        "Slice", (bias_BG1C, begin_1, total_1, axis_1), dtype=bias_BG1C.dtype, shape=bias_BG1C.shape, version=13
    )
    if length > 1:
        seen_BG1T = seen_BG1T.expand(-1, -1, length, -1)
    attributes: dict[str, Any] = {
        "num_heads": q_BLX.shape[2] // width,
        "kv_num_heads": 1,
        "scale": rotary.scale,
    }
    if rotary.softcap is not None:
        attributes["softcap"] = rotary.softcap
    inputs: list[Tensor | None] = [q_BLX, k_BLE, v_BLE, keys_B1CE, values_B1CE, last_1, total_1]
    inputs += [None, None, None, seen_BG1T]
    if scales is not None:
        inputs += [None, *scales]
        attributes |= {"kv_cache_bit_width": 8, "k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
    out_BLX, keys_B1CE, values_B1CE = torch.onnx.ops.symbolic_multi_out(
        OPERATOR,
        inputs,
        attributes,
        dtypes=(q_BLX.dtype, keys_B1CE.dtype, values_B1CE.dtype),
        shapes=(q_BLX.shape, keys_B1CE.shape, values_B1CE.shape),
        version=1,
    )
    return out_BLX, keys_B1CE, values_B1CE
