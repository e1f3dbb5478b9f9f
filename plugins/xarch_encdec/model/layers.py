"""The layers of encoder and decoder.

Legend: B batch, S source tokens, T decoder tokens, N decoder tokens with those before them, D width, K key/value heads,
E head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.layers import MLP, make_norm
from xarch_decoder.model.rotary import Rotation
from xarch_encdec.facts import EncDecFacts
from xarch_encdec.model.attention import Projections

Cache = tuple[Tensor, Tensor]
"""Keys and values, both [B, K, tokens, E]."""


class EncoderLayer(nn.Module):
    """A layer of the decoder it was made of, that reads the source to both sides.

    Args:
        twin: decoder layer whose weights are also this layer's; None for weights of its own.
    """

    def __init__(self, facts: EncDecFacts, twin: DecoderLayer | None = None) -> None:
        super().__init__()
        self.parallel = facts.layer.block == "parallel"
        if twin is not None:
            self.norm1, self.norm2, self.attention, self.mlp = twin.norm1, twin.norm2, twin.attention, twin.mlp
            self.post1, self.post2 = twin.post1, twin.post2
            return
        layer = facts.encoder_layer
        self.norm1 = make_norm(layer)
        self.norm2 = None if layer.shared_norm else make_norm(layer)
        self.attention = Projections(layer)
        self.mlp = MLP(layer)
        self.post1, self.post2 = _posts(facts, layer, 2)

    def forward(self, x_BSD: Tensor, by: Rotation, bias_B1SS: Tensor) -> Tensor:
        """Return the residual stream [B, S, D] leaving the layer."""
        after_BSD = x_BSD + self.post1(self.attention.attend_within(self.norm1(x_BSD), by, bias_B1SS))
        read_BSD = x_BSD if self.parallel else after_BSD
        norm2 = self.norm1 if self.norm2 is None else self.norm2
        out_BSD: Tensor = after_BSD + self.post2(self.mlp(norm2(read_BSD)))
        return out_BSD


@dataclass
class Reading:
    """What decoder layers know about the tokens of a call.

    Attributes:
        by: rotation at the positions of these tokens.
        bias_B1TS: over source keys.
        bias_B1TN: over self keys, None if all are seen.
        at_11N1: the place of the one token in buffers of N keys and values; None: they grow.
    """

    by: Rotation
    bias_B1TS: Tensor
    bias_B1TN: Tensor | None = None
    at_11N1: Tensor | None = None


class DecoderLayer(nn.Module):
    """A layer of the decoder it was made of, that also reads the source."""

    def __init__(self, facts: EncDecFacts) -> None:
        super().__init__()
        self.parallel = facts.layer.block == "parallel"
        self.merged = facts.cross == "merged"
        self.norm1 = make_norm(facts.layer)
        self.norm2 = None if facts.layer.shared_norm else make_norm(facts.layer)
        self.attention = Projections(facts.layer)
        self.cross = None if self.merged else Projections(facts.layer, facts.encoder_layer.width)
        self.norm_cross = None if self.merged else make_norm(facts.layer)
        self.mlp = MLP(facts.layer)
        self.post1, self.post2 = _posts(facts, facts.layer, 2)
        self.post_cross = nn.Identity() if self.merged else _posts(facts, facts.layer, 1)[0]

    def read_memory(self, memory_BSD: Tensor, by: Rotation, level_BSD: Tensor | None, last: float) -> Cache:
        """Return keys and values of the source; only a merged attention gives it positions.

        Args:
            memory_BSD: the encoder's last output, normed.
            level_BSD: the input of the encoder layer that stands for this one; None if only the last output counts.
            last: share of the last output.
        """
        if level_BSD is not None:
            level_BSD = (self.norm1 if self.norm_cross is None else self.norm_cross)(level_BSD)
            memory_BSD = level_BSD + last * (memory_BSD - level_BSD) if last else level_BSD
        if self.cross is None:
            return self.attention.keys_values(memory_BSD, by)
        return self.cross.keys_values(memory_BSD, None)

    def forward(self, x_BTD: Tensor, reading: Reading, source: Cache, past: Cache | None) -> tuple[Tensor, Cache]:
        """Return the residual stream [B, T, D] leaving the layer, and keys and values of all decoder tokens so far.

        Args:
            source: from :meth:`read_memory`.
            past: keys and values of earlier tokens.
        """
        normed_BTD = self.norm1(x_BTD)
        q_BHTE = self.attention.queries(normed_BTD, reading.by)
        k_BKNE, v_BKNE = self.attention.keys_values(normed_BTD, reading.by)
        if past is not None:
            k_BKNE, v_BKNE = (_kept(*each, reading.at_11N1) for each in zip(past, (k_BKNE, v_BKNE), strict=True))
        own = k_BKNE, v_BKNE
        if self.cross is None or self.norm_cross is None:
            keys, values = torch.cat([source[0], k_BKNE], 2), torch.cat([source[1], v_BKNE], 2)
            mixed_BTD = self.attention.attend(q_BHTE, keys, values, _joined(reading, k_BKNE.shape[2]))
            after_BTD = x_BTD + self.post1(mixed_BTD)
        else:
            after_BTD = x_BTD + self.post1(self.attention.attend(q_BHTE, k_BKNE, v_BKNE, reading.bias_B1TN))
            queries = self.cross.queries(self.norm_cross(x_BTD if self.parallel else after_BTD), None)
            after_BTD = after_BTD + self.post_cross(self.cross.attend(queries, *source, reading.bias_B1TS))
        read_BTD = x_BTD if self.parallel else after_BTD
        norm2 = self.norm1 if self.norm2 is None else self.norm2
        return after_BTD + self.post2(self.mlp(norm2(read_BTD))), own


def _kept(past_BKNE: Tensor, new_BKTE: Tensor, at_11N1: Tensor | None) -> Tensor:
    """Return earlier keys or values with new ones: after them, or in their place of a buffer."""
    return torch.cat([past_BKNE, new_BKTE], 2) if at_11N1 is None else torch.where(at_11N1, new_BKTE, past_BKNE)


def _joined(reading: Reading, tokens: int) -> Tensor:
    """Return the bias over the keys of the source and of the decoder's tokens."""
    source_B1TS, own_B1TN = reading.bias_B1TS, reading.bias_B1TN
    if own_B1TN is None:
        own_B1TN = source_B1TS.new_zeros(1, 1, 1, 1)
    batch, length = source_B1TS.shape[0], max(source_B1TS.shape[2], own_B1TN.shape[2])
    own_B1TN = own_B1TN.expand(batch, 1, length, tokens)
    return torch.cat([source_B1TS.expand(batch, 1, length, source_B1TS.shape[3]), own_B1TN], 3)


def _posts(facts: EncDecFacts, layer: DecoderFacts, count: int) -> list[nn.Module]:
    return [make_norm(layer) if facts.norm == "dual" else nn.Identity() for _ in range(count)]
