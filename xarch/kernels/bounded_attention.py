"""What attentions over memories of constant size share: rotation and scores, and checks of their operands.

Legend: B batch, L tokens, H heads, K key/value heads, E head width, F rotated pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xarch.errors import UsageError

MASKED = -30000.0
"""Score of an entry that is not there: finite in half precision, and exp(MASKED - max) is exactly zero."""


@dataclass(frozen=True, slots=True)
class Rotary:
    """The scores of an attention.

    Attributes:
        frequencies: inverse frequency of each rotated pair; halves (x1, x2) of the first 2 F channels become
            (x1 cos - x2 sin, x2 cos + x1 sin), times ``gain``.
        gain: factor on cosine and sine.
        scale: factor on q · k.
        softcap: c in c tanh(score / c), or None.
    """

    frequencies: tuple[float, ...]
    gain: float = 1.0
    scale: float = 1.0
    softcap: float | None = None

    def turn(self, x: Tensor, positions: Tensor, *, back: bool = False) -> Tensor:
        """Rotate x [..., E] by positions [...]; ``back`` undoes it."""
        pairs = len(self.frequencies)
        if pairs == 0:
            return x
        sign = -1.0 if back else 1.0
        frequencies = torch.tensor([sign * f for f in self.frequencies], dtype=x.dtype, device=x.device)
        angle = cast(positions, x.dtype)[..., None] * frequencies
        gain = 1.0 / self.gain if back else self.gain
        cos, sin = angle.cos(), angle.sin()
        if gain != 1.0:
            cos, sin = cos * gain, sin * gain
        plain = x.shape[-1] - 2 * pairs
        first, second, *rest = x.split([pairs, pairs, plain] if plain else pairs, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin, *rest], -1)

    def scores(self, products: Tensor) -> Tensor:
        """Scores of products q · k."""
        scores = products * self.scale
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)


def cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    """``t`` in a dtype. A conversion to its own dtype would be recorded by exporters, too."""
    return t if t.dtype == dtype else t.to(dtype)


def check_operands(
    op: str, q_BLHE: Tensor, k_BLKE: Tensor, v_BLKE: Tensor, positions_BL: Tensor, heads: int | None, rotary: Rotary
) -> None:
    """Check that the operands of an operation fit together.

    Args:
        heads: key/value heads of a layout; None: it fits any number.

    Raises:
        UsageError: they do not.
    """
    q, k, v = q_BLHE, k_BLKE, v_BLKE
    if q.dim() != 4 or k.shape != v.shape or k.dim() != 4 or k.shape[:2] != q.shape[:2] or k.shape[3] != q.shape[3]:
        raise UsageError(
            f"{op}: want q [B, L, H, E] and k, v [B, L, K, E], got {list(q.shape)}, {list(k.shape)} and {list(v.shape)}"
        )
    if q.shape[2] % k.shape[2]:
        raise UsageError(f"{op}: {q.shape[2]} heads cannot share {k.shape[2]} key/value heads")
    if heads not in (None, k.shape[2]):
        raise UsageError(f"{op}: {k.shape[2]} key/value heads for a layout of {heads}")
    if tuple(positions_BL.shape) != tuple(q.shape[:2]):
        raise UsageError(f"{op}: positions have shape {list(positions_BL.shape)}, want {list(q.shape[:2])}")
    if 2 * len(rotary.frequencies) > q.shape[3]:
        raise UsageError(f"{op}: {len(rotary.frequencies)} rotated pairs do not fit a head of {q.shape[3]}")
