"""Rotary position embedding on the first part of each head, rotated as halves (RoFormer, arXiv 2104.09864).

Legend: B batch, L tokens, H heads, E head width, F rotated pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]
"""Cosine and sine, both [B, L, 1, F] in float32."""


def rotation(positions_BL: Tensor, inverse_frequencies: Sequence[float], gain: float = 1.0) -> Rotation:
    """Rotation of every position.

    The frequencies are written into the graph as a constant: as a buffer they would be lost when a module built on the
    meta device gets its storage.
    """
    frequencies_F = torch.tensor(inverse_frequencies, dtype=torch.float32, device=positions_BL.device)
    angle_BL1F = positions_BL.float()[:, :, None, None] * frequencies_F
    cos_BL1F, sin_BL1F = angle_BL1F.cos(), angle_BL1F.sin()
    return (cos_BL1F, sin_BL1F) if gain == 1.0 else (cos_BL1F * gain, sin_BL1F * gain)


def rotate(x_BLHE: Tensor, by: Rotation) -> Tensor:
    """Rotate the first 2F channels: halves (x1, x2) become (x1 cos - x2 sin, x2 cos + x1 sin)."""
    cos_BL1F, sin_BL1F = by
    pairs = cos_BL1F.shape[-1]
    if pairs == 0:
        return x_BLHE
    first, second = x_BLHE[..., :pairs], x_BLHE[..., pairs : 2 * pairs]
    parts = [first * cos_BL1F - second * sin_BL1F, second * cos_BL1F + first * sin_BL1F]
    if 2 * pairs < x_BLHE.shape[-1]:
        parts.append(x_BLHE[..., 2 * pairs :])
    return torch.cat([p.to(x_BLHE.dtype) for p in parts], -1)
