"""Grouped heads of an attention: projections, and explicit scores; which keys a query sees is up to subclasses.

Legend: B batch, T queries, S keys, D width, H heads, K key/value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.layers import RMSNorm
from xarch_decoder.model.rotary import Rotation, rotate

MASKED = -30000.0
"""Score of a masked key: finite in half precision, and exp(MASKED - max) is exactly zero."""


class GroupedHeads(nn.Module):
    """Query, key, value and output projections; query head h reads key head ``h // (H // K)``.

    Args:
        read: width of what keys and values are made of, by default that of the queries' input.
    """

    def __init__(self, facts: DecoderFacts, read: int | None = None) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = facts.heads, facts.kv_heads, facts.head_dim
        self.scale, self.softcap = facts.scale, facts.softcap
        queries, keys = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
        self.q = nn.Linear(facts.width, queries, bias=facts.qkv_bias)
        self.k = nn.Linear(read or facts.width, keys, bias=facts.qkv_bias)
        self.v = nn.Linear(read or facts.width, keys, bias=facts.qkv_bias)
        self.o = nn.Linear(queries, facts.width, bias=facts.out_bias)
        self.q_norm = RMSNorm(facts.head_dim, facts.norm_eps) if facts.qk_norm else None
        self.k_norm = RMSNorm(facts.head_dim, facts.norm_eps) if facts.qk_norm else None

    def _queries(self, x_BTD: Tensor, by: Rotation | None) -> Tensor:
        """Return queries [B, T, H, E], rotated if positions count."""
        q_BTHE = self.q(x_BTD).unflatten(-1, (self.heads, self.head_dim))
        return _placed(q_BTHE, self.q_norm, by)

    def _keys(self, x_BSD: Tensor, by: Rotation | None) -> Tensor:
        """Return keys [B, S, K, E], rotated if positions count."""
        k_BSKE = self.k(x_BSD).unflatten(-1, (self.kv_heads, self.head_dim))
        return _placed(k_BSKE, self.k_norm, by)

    def _values(self, x_BSD: Tensor) -> Tensor:
        """Return values [B, S, K, E]."""
        return self.v(x_BSD).unflatten(-1, (self.kv_heads, self.head_dim))

    def _explicit(
        self,
        q_BHTE: Tensor,
        k_BKSE: Tensor,
        v_BKSE: Tensor,
        seen: Callable[[Tensor], Tensor] | None,
        *,
        alike: bool = False,
    ) -> Tensor:
        """Attend with explicit scores; return [B, H, T, E].

        Heads that share a key are stacked along T, which avoids repeated keys and tensors of more than 4 dimensions.

        Args:
            seen: from scores [B, H, T, S] to those whose masked keys get no weight; None if all keys are seen.
            alike: ``seen`` does the same to the scores of all queries, so it may get them stacked.
        """
        batch, heads, length, width = q_BHTE.shape
        stacked = (batch, self.kv_heads, heads // self.kv_heads * length)
        scores = ((q_BHTE * self.scale).reshape(*stacked, width) @ k_BKSE.transpose(2, 3)).float()
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        if seen is not None and alike:
            scores = seen(scores)
        elif seen is not None:
            scores = seen(scores.reshape(batch, heads, length, -1)).reshape(*stacked, -1)
        weights = attended(scores).to(v_BKSE.dtype)
        return (weights @ v_BKSE).reshape(batch, heads, length, width)


def attended(scores_BHTS: Tensor) -> Tensor:
    """Return the softmax of scores over keys, in a form that every runtime of an export computes.

    OpenVINO 2026.4 joins two products and the softmax between them to one kernel, which is wrong from 8 keys on where
    their number is free and their vectors have 8 numbers; it does not find them with a view between.
    """
    if not torch.compiler.is_exporting():
        return torch.softmax(scores_BHTS, -1)
    return torch.softmax(scores_BHTS.flatten(1, 2), -1).unflatten(1, scores_BHTS.shape[1:3])


def _placed(x_BTHE: Tensor, norm: nn.Module | None, by: Rotation | None) -> Tensor:
    x_BTHE = x_BTHE if norm is None else norm(x_BTHE)
    return x_BTHE if by is None else rotate(x_BTHE, by)
