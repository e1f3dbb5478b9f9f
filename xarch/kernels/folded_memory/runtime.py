"""One token's attention over the entries of a head as onnxruntime's GroupQueryAttention, for exporters.

The operator writes key and value behind those that are there (in place, if a program binds input and output to the same
memory), and reads entries in 8 bits without unpacking them first.

Legend: B batch, G heads that share a key/value head, E head width, C entries of the head, T entries in use.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.kernels.slot_memory.step import Rotary

OPERATOR = "com.microsoft::GroupQueryAttention"


def grouped_query_attention(
    q_BGE: Tensor,
    k_BE: Tensor,
    v_BE: Tensor,
    keys_B1CE: Tensor,
    values_B1CE: Tensor,
    bias_BG1C: Tensor,
    before_1: Tensor,
    rotary: Rotary,
    scales: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the outputs [B, G, E] of one token, and keys and values with its own.

    Args:
        q_BGE, k_BE: rotated.
        bias_BG1C: of all entries; what lies behind the token is not read.
        before_1: int32, T without the token.
        scales: of keys and values [E] in 8 bits; None for float32.
    """
    batch, group, width = q_BGE.shape
    total_1 = before_1 + 1
    begin_1, axis_1 = (torch.tensor([i], dtype=torch.int32, device=q_BGE.device) for i in (0, 3))
    # Its last size is known only when it runs: see `without_declared_sizes` of the exporter.
    seen_BG1T = torch.onnx.ops.symbolic(
        "Slice", (bias_BG1C, begin_1, total_1, axis_1), dtype=bias_BG1C.dtype, shape=bias_BG1C.shape, version=18
    )
    attributes: dict[str, int | float | str] = {"num_heads": group, "kv_num_heads": 1, "scale": rotary.scale}
    if rotary.softcap is not None:
        attributes["softcap"] = rotary.softcap
    operands = [q_BGE.reshape(batch, 1, group * width), k_BE[:, None], v_BE[:, None], keys_B1CE, values_B1CE]
    inputs: list[Tensor | None] = [*operands, before_1, total_1, None, None, None, seen_BG1T]
    if scales is not None:
        inputs += [None, *scales]
        attributes |= {"kv_cache_bit_width": 8, "k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
    out_B1X, keys_B1CE, values_B1CE = torch.onnx.ops.symbolic_multi_out(
        OPERATOR,
        inputs,
        attributes,
        dtypes=(q_BGE.dtype, keys_B1CE.dtype, values_B1CE.dtype),
        shapes=((batch, 1, group * width), keys_B1CE.shape, values_B1CE.shape),
        version=1,
    )
    return out_B1X.reshape(batch, group, width), keys_B1CE, values_B1CE
