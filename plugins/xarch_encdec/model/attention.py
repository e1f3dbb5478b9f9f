"""Attention between any queries and any keys, with a bias per pair; weights as in a causal decoder.

Legend: B batch, T queries, S keys, D width, H heads, K key/value heads, E head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.attention import MASKED
from xarch_decoder.model.layers import RMSNorm
from xarch_decoder.model.rotary import Rotation, rotate


class Projections(nn.Module):
    """Query, key, value and output projections with grouped heads; query head h reads key head ``h // (H // K)``."""

    def __init__(self, facts: DecoderFacts) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = facts.heads, facts.kv_heads, facts.head_dim
        self.scale, self.softcap = facts.scale, facts.softcap
        queries, keys = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
        self.q = nn.Linear(facts.width, queries, bias=facts.qkv_bias)
        self.k = nn.Linear(facts.width, keys, bias=facts.qkv_bias)
        self.v = nn.Linear(facts.width, keys, bias=facts.qkv_bias)
        self.o = nn.Linear(queries, facts.width, bias=facts.out_bias)
        self.q_norm = RMSNorm(facts.head_dim, facts.norm_eps) if facts.qk_norm else None
        self.k_norm = RMSNorm(facts.head_dim, facts.norm_eps) if facts.qk_norm else None

    def queries(self, x_BTD: Tensor, by: Rotation | None) -> Tensor:
        """Return queries [B, H, T, E], rotated if positions count."""
        q_BTHE = self.q(x_BTD).unflatten(-1, (self.heads, self.head_dim))
        q_BTHE = q_BTHE if self.q_norm is None else self.q_norm(q_BTHE)
        return (q_BTHE if by is None else rotate(q_BTHE, by)).transpose(1, 2)

    def keys_values(self, x_BSD: Tensor, by: Rotation | None) -> tuple[Tensor, Tensor]:
        """Return keys, rotated if positions count, and values, both [B, K, S, E]."""
        k_BSKE = self.k(x_BSD).unflatten(-1, (self.kv_heads, self.head_dim))
        k_BSKE = k_BSKE if self.k_norm is None else self.k_norm(k_BSKE)
        k_BSKE = k_BSKE if by is None else rotate(k_BSKE, by)
        v_BSKE = self.v(x_BSD).unflatten(-1, (self.kv_heads, self.head_dim))
        return k_BSKE.transpose(1, 2), v_BSKE.transpose(1, 2)

    def attend(self, q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, bias_B1TS: Tensor | None) -> Tensor:
        """Return what is read [B, T, D], after the output projection."""
        if self.softcap is None and not torch.compiler.is_exporting():
            heads_BHTE = F.scaled_dot_product_attention(
                q_BHTE,
                k_BKSE,
                v_BKSE,
                attn_mask=None if bias_B1TS is None else bias_B1TS.to(q_BHTE.dtype),
                scale=self.scale,
                enable_gqa=self.heads != self.kv_heads,
            )
        else:
            heads_BHTE = self._explicit(q_BHTE, k_BKSE, v_BKSE, bias_B1TS)
        mixed_BTD: Tensor = self.o(heads_BHTE.transpose(1, 2).flatten(2))
        return mixed_BTD

    def _explicit(self, q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, bias_B1TS: Tensor | None) -> Tensor:
        """Attend with explicit scores. Heads that share a key are stacked along T: no key is repeated, and no tensor
        has more than 4 dimensions."""
        batch, heads, length, width = q_BHTE.shape
        stacked = (batch, self.kv_heads, heads // self.kv_heads * length)
        scores = (q_BHTE * self.scale).reshape(*stacked, width) @ k_BKSE.transpose(2, 3)
        scores_BHTS = scores.float().reshape(batch, heads, length, -1)
        if self.softcap is not None:
            scores_BHTS = self.softcap * torch.tanh(scores_BHTS / self.softcap)
        if bias_B1TS is not None:
            scores_BHTS = scores_BHTS + bias_B1TS
        weights = torch.softmax(scores_BHTS, -1).to(v_BKSE.dtype).reshape(*stacked, -1)
        return (weights @ v_BKSE).reshape(batch, heads, length, width)


def bias_of(allowed: Tensor) -> Tensor:
    """Return 0 where a key may be read, and a score that no softmax gives weight to elsewhere, float32."""
    return torch.where(allowed, 0.0, MASKED)
