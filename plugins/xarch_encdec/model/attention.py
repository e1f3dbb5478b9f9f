"""Attention between any queries and any keys, with a bias per pair; weights as in a causal decoder.

Legend: B batch, T queries, S keys, D width, H heads, K key/value heads, E head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from xarch.kernels import attention_to_all, graph_form
from xarch_decoder.model.heads import MASKED, GroupedHeads
from xarch_decoder.model.rotary import Rotation


class Projections(GroupedHeads):
    """Heads whose queries and keys may come from different sequences."""

    def queries(self, x_BTD: Tensor, by: Rotation | None) -> Tensor:
        """Return queries [B, H, T, E], rotated if positions count."""
        return self._queries(x_BTD, by).transpose(1, 2)

    def keys_values(self, x_BSD: Tensor, by: Rotation | None) -> tuple[Tensor, Tensor]:
        """Return keys, rotated if positions count, and values, both [B, K, S, E]."""
        return self._keys(x_BSD, by).transpose(1, 2), self._values(x_BSD).transpose(1, 2)

    def attend_within(self, x_BSD: Tensor, by: Rotation, bias_B1TS: Tensor) -> Tensor:
        """Return what the tokens of a sequence read of all of it [B, S, D], after the output projection.

        Args:
            bias_B1TS: T is S, or 1 where it is the same for all tokens.
        """
        if graph_form("attention_to_all") != "runtime":
            return self.attend(self.queries(x_BSD, by), *self.keys_values(x_BSD, by), bias_B1TS)
        heads_BSX = attention_to_all(
            self._queries(x_BSD, by).flatten(2),
            self._keys(x_BSD, by).flatten(2),
            self.v(x_BSD),
            spread(bias_B1TS) if bias_B1TS.shape[2] == 1 else bias_B1TS,
            kv_heads=self.kv_heads,
            scale=self.scale,
            softcap=self.softcap,
        )
        mixed_BSD: Tensor = self.o(heads_BSX)
        return mixed_BSD

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
            heads_BHTE = self._explicit(
                q_BHTE,
                k_BKSE,
                v_BKSE,
                None if bias_B1TS is None else lambda scores_BHTS: scores_BHTS + bias_B1TS,
                alike=bias_B1TS is not None and bias_B1TS.shape[2] == 1,
            )
        mixed_BTD: Tensor = self.o(heads_BHTE.transpose(1, 2).flatten(2))
        return mixed_BTD


def bias_of(allowed: Tensor) -> Tensor:
    """Return 0 where a key may be read, and a score that no softmax gives weight to elsewhere, float32."""
    return torch.where(allowed, 0.0, MASKED)


def spread(bias_B1TS: Tensor) -> Tensor:
    """Return the bias with a row for each token [B, 1, S, S], as an operator of the runtime takes it."""
    batch, _, _, length = bias_B1TS.shape
    return bias_B1TS.expand(batch, 1, length, length)
