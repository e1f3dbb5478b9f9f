"""Layer normalisation as means and a square root, for profiles without LayerNormalization (opset 17)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from xarch.export.lowerings.lowering import Lowering


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Replace ``torch.nn.functional.layer_norm``; same arguments and result."""
    axes = tuple(range(-len(normalized_shape), 0))
    centred = input - input.mean(axes, keepdim=True)
    scaled = centred / torch.sqrt((centred * centred).mean(axes, keepdim=True) + eps)
    scaled = scaled if weight is None else scaled * weight
    return scaled if bias is None else scaled + bias


LOWERING = Lowering(
    "layer-norm",
    "F.layer_norm and nn.LayerNorm as ReduceMean, Sqrt and Div",
    replaces=("LayerNormalization",),
    functions={F.layer_norm: layer_norm},
)
