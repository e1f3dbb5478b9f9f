"""One token's attention over the entries of a head as onnxruntime's GroupQueryAttention, for exporters.

The operator rotates query and key, writes key and value behind those that are there (in place, if a program binds input
and output to the same memory), and reads entries in 8 bits without unpacking them first.

Legend: B batch, G heads that share a key/value head, E head width, F rotated pairs, P entries in use before the token,
C entries of the head.
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
    waiting_1: Tensor,
    position_1: Tensor,
    before: int,
    rotary: Rotary,
    scales: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the outputs [B, G, E] of one token, and keys and values with its own.

    Args:
        q_BGE, k_BE: not yet rotated; all channels are rotated.
        bias_BG1C: of all entries; what lies behind the token is not read.
        waiting_1: int32, entries in use beyond ``before``, which is P without them.
        position_1: of the token, in the dtype of ``q_BGE``.
        scales: of keys and values [E] in 8 bits; None for float32.
    """
    batch, group, width = q_BGE.shape
    capacity = keys_B1CE.shape[2]
    used_1, total_1 = waiting_1 + before, waiting_1 + (before + 1)
    zero_1, last_1 = (torch.tensor([i], dtype=torch.int32, device=q_BGE.device) for i in (0, 3))
    # Its last size is known when it runs only; the declared one is taken back by the exporter.
    seen_BG1T = torch.onnx.ops.symbolic(
        "Slice", (bias_BG1C, zero_1, total_1, last_1), dtype=bias_BG1C.dtype, shape=bias_BG1C.shape, version=18
    )
    angle_F = position_1 * torch.tensor(rotary.frequencies, dtype=q_BGE.dtype, device=q_BGE.device)
    # The operator wants as many rows as there are entries; all are those of the token. Powers of two, so that layers
    # share them.
    rows = 1 << (capacity - 1).bit_length()
    cos, sin = ((wave * rotary.gain)[None].expand(rows, -1) for wave in (angle_F.cos(), angle_F.sin()))
    attributes: dict[str, int | float | str] = {
        "num_heads": group,
        "kv_num_heads": 1,
        "do_rotary": 1,
        "scale": rotary.scale,
    }
    if rotary.softcap is not None:
        attributes["softcap"] = rotary.softcap
    place_B1 = torch.zeros(batch, 1, dtype=torch.int64, device=q_BGE.device)
    inputs = [
        q_BGE.reshape(batch, 1, group * width),
        k_BE[:, None],
        v_BE[:, None],
        keys_B1CE,
        values_B1CE,
        used_1,
        total_1,
        cos,
        sin,
        place_B1,
        seen_BG1T,
    ]
    if scales is not None:
        inputs += [None, *scales]  # type: ignore[list-item]
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
