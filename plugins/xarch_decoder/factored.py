"""Tap values kept as factors because the full tensor would not fit in memory.

Legend: B batch, L tokens, H heads, K key/value heads, G B/C heads, E head width, N state size, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class AttentionFactors:
    """Attention matrix softmax(scale q kᵀ) per head, as factors (layout ``attention-factors``).

    ``q_BLHE`` and ``k_BLKE`` are taken after rotary embedding and normalisation, so the matrix is exactly the
    teacher's. Head h uses key head ``h // (H // K)``.
    """

    q_BLHE: Tensor
    k_BLKE: Tensor
    scale: float
    window: int | None = None
    softcap: float | None = None
    segment_ids_BL: Tensor | None = None


@dataclass
class SSDFactors:
    """Scalar-decay state-space mixing matrix per head, as factors (layout ``ssd-factors``).

    M[t, s] = (C_t · B_s) exp(S_t - S_s) + D [t = s] for s <= t, with S the running sum of ``log_a``.
    """

    C_BLGN: Tensor
    B_BLGN: Tensor
    log_a_BLH: Tensor
    D_H: Tensor
    segment_ids_BL: Tensor | None = None


@dataclass
class FactoredLogits:
    """Logits as hidden states and an output projection (layout ``factored-logits``).

    A [B, L, V] float32 tensor is large (vocabulary 49k x 2k tokens = 400 MB), so objectives work in chunks.
    """

    x_BLD: Tensor
    weight_VD: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None

    def of(self, x_TD: Tensor) -> Tensor:
        """Return logits [T, V] of a few hidden states [T, D], in float32."""
        z_TV = F.linear(x_TD, self.weight_VD, self.bias_V).float()
        return z_TV if self.softcap is None else self.softcap * torch.tanh(z_TV / self.softcap)

    def chunks(self, tokens: int = 256) -> Iterator[tuple[slice, Tensor]]:
        """Yield (slice of the flattened B*L tokens, logits [T, V]) for pieces of at most ``tokens`` tokens."""
        flat = self.x_BLD.flatten(0, -2)
        for start in range(0, flat.shape[0], tokens):
            where = slice(start, min(start + tokens, flat.shape[0]))
            yield where, self.of(flat[where])

    def full(self) -> Tensor:
        """Return the whole [B, L, V] tensor, for small inputs."""
        return self.of(self.x_BLD.flatten(0, -2)).unflatten(0, self.x_BLD.shape[:-1])
