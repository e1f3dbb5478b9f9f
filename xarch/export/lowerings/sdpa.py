"""Scaled dot-product attention as two products and a Softmax, for profiles that lack the exporter's operators.

The exporter guards rows without any key (IsNaN, Where) and builds causal masks by comparison; here a mask is added
to the scores.

Legend: L queries, S keys, E head width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from xarch.export.lowerings.lowering import Lowering

HIDDEN = -1e9
"""Score of a masked key: its exp is 0 in float32, and no infinities can cancel."""


def sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Replace ``torch.nn.functional.scaled_dot_product_attention`` in eval mode, for rows with at least one key."""
    if enable_gqa:
        repeat = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(repeat, -3), value.repeat_interleave(repeat, -3)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * factor) @ key.transpose(-2, -1)
    if is_causal:
        hidden_LS = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).triu(1)
        scores = scores + hidden_LS.to(query.dtype) * HIDDEN
    if attn_mask is not None:
        added = (1 - attn_mask.to(query.dtype)) * HIDDEN if attn_mask.dtype == torch.bool else attn_mask
        scores = scores + added
    return torch.softmax(scores, -1) @ value


LOWERING = Lowering(
    "sdpa",
    "F.scaled_dot_product_attention as MatMul, Add and Softmax",
    replaces=("IsNaN",),
    functions={F.scaled_dot_product_attention: sdpa},
)
