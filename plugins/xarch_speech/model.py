"""Whisper's network: convolutions over a log-mel spectrogram, encoder, decoder, and a head that is the embedding.

Parameter names: ``hear1.weight``, ``hear2.weight``, ``encoder_places``, ``encoder.3.attention.q.weight``,
``encoder_norm.weight``, ``embed.weight``, ``places``, ``decoder.2.cross.k.weight``, ``decoder.2.mlp.up.weight``,
``norm.weight``.

Legend: B batch, M bands, F frames, S encoder positions, T decoder tokens, N decoder tokens with those before them,
D width, H heads, E head width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xarch_decoder.factored import FactoredLogits
from xarch_decoder.model.heads import attended
from xarch_encdec.model.attention import bias_of
from xarch_speech.facts import STRIDE, SpeechFacts

Push = Callable[[str, Any], None]
"""Called with (tap name, value)."""

Cache = tuple[Tensor, Tensor]
"""Keys and values, both [B, H, tokens, E]."""


def nothing(name: str, value: Any) -> None:
    """Push nowhere."""


class Attention(nn.Module):
    """Multi-head attention; keys have no bias, for a softmax ignores it."""

    def __init__(self, facts: SpeechFacts) -> None:
        super().__init__()
        d, self.heads = facts.width, facts.heads
        self.q, self.k, self.v = nn.Linear(d, d), nn.Linear(d, d, bias=False), nn.Linear(d, d)
        self.o = nn.Linear(d, d)
        self.scale = facts.head_dim**-0.5

    def keys_values(self, x_BSD: Tensor) -> Cache:
        """Return keys and values [B, H, S, E]."""
        return self._split(self.k(x_BSD)), self._split(self.v(x_BSD))

    def forward(self, x_BTD: Tensor, keys: Cache, bias_TN: Tensor | None = None) -> Tensor:
        """Return what is read [B, T, D].

        Args:
            keys: from :meth:`keys_values`.
            bias_TN: over keys; None if all are seen.
        """
        q_BHTE = self._split(self.q(x_BTD))
        if torch.compiler.is_exporting():
            scores_BHTN = (q_BHTE * self.scale) @ keys[0].transpose(2, 3)
            scores_BHTN = scores_BHTN if bias_TN is None else scores_BHTN + bias_TN
            read_BHTE = attended(scores_BHTN) @ keys[1]
        else:
            bias_TN = None if bias_TN is None else bias_TN.to(q_BHTE.dtype)
            read_BHTE = F.scaled_dot_product_attention(q_BHTE, *keys, attn_mask=bias_TN, scale=self.scale)
        mixed_BTD: Tensor = self.o(read_BHTE.transpose(1, 2).flatten(2))
        return mixed_BTD

    def _split(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(2, (self.heads, -1)).transpose(1, 2)


class MLP(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        out_BTD: Tensor = self.down(F.gelu(self.up(x_BTD)))
        return out_BTD


class EncoderLayer(nn.Module):
    """Self-attention to both sides, and an MLP."""

    def __init__(self, facts: SpeechFacts) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(facts.width), Attention(facts)
        self.norm2, self.mlp = nn.LayerNorm(facts.width), MLP(facts.width, facts.encoder_mlp)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Return the residual stream leaving the layer."""
        normed_BSD = self.norm1(x_BSD)
        x_BSD = x_BSD + self.attention(normed_BSD, self.attention.keys_values(normed_BSD))
        out_BSD: Tensor = x_BSD + self.mlp(self.norm2(x_BSD))
        return out_BSD


@dataclass
class Reading:
    """What decoder layers know about the tokens of a call.

    Attributes:
        bias_TN: over own keys; None if all are seen.
        at_11N1: the place of the one token in buffers of N keys and values; None: they grow.
    """

    bias_TN: Tensor | None = None
    at_11N1: Tensor | None = None


class DecoderLayer(nn.Module):
    """Self-attention to what was written, cross-attention to what was heard, and an MLP."""

    def __init__(self, facts: SpeechFacts) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(facts.width), Attention(facts)
        self.norm_cross, self.cross = nn.LayerNorm(facts.width), Attention(facts)
        self.norm2, self.mlp = nn.LayerNorm(facts.width), MLP(facts.width, facts.decoder_mlp)

    def forward(
        self, x_BTD: Tensor, reading: Reading, heard: Cache, past: Cache | None
    ) -> tuple[Tensor, Cache, Tensor, Tensor]:
        """Return the residual stream leaving the layer, keys and values of all tokens so far, and what self- and
        cross-attention added.

        Args:
            heard: keys and values of the recording.
            past: keys and values of earlier tokens.
        """
        normed_BTD = self.norm1(x_BTD)
        own = self.attention.keys_values(normed_BTD)
        if past is not None:
            own = _kept(past[0], own[0], reading.at_11N1), _kept(past[1], own[1], reading.at_11N1)
        mixed_BTD = self.attention(normed_BTD, own, reading.bias_TN)
        x_BTD = x_BTD + mixed_BTD
        heard_BTD = self.cross(self.norm_cross(x_BTD), heard)
        x_BTD = x_BTD + heard_BTD
        return x_BTD + self.mlp(self.norm2(x_BTD)), own, mixed_BTD, heard_BTD


def _kept(past_BHNE: Tensor, new_BHTE: Tensor, at_11N1: Tensor | None) -> Tensor:
    """Return earlier keys or values with new ones: after them, or in their place of a buffer."""
    return torch.cat([past_BHNE, new_BHTE], 2) if at_11N1 is None else torch.where(at_11N1, new_BHTE, past_BHNE)


class SpeechModel(nn.Module):
    """An encoder-decoder that hears speech and writes text."""

    def __init__(self, facts: SpeechFacts) -> None:
        super().__init__()
        self.facts, d = facts, facts.width
        self.hear1 = nn.Conv1d(facts.mels, d, 3, padding=1)
        self.hear2 = nn.Conv1d(d, d, 3, stride=STRIDE, padding=1)
        self.encoder_places = nn.Parameter(_waves(facts.positions, d))
        self.encoder = nn.ModuleList([EncoderLayer(facts) for _ in range(facts.encoder)])
        self.encoder_norm = nn.LayerNorm(d)
        self.embed = nn.Embedding(facts.vocab, d)
        self.places = nn.Parameter(torch.randn(facts.max_positions, d) * 0.02)
        self.decoder = nn.ModuleList([DecoderLayer(facts) for _ in range(facts.decoder)])
        self.norm = nn.LayerNorm(d)

    def layers(self) -> Sequence[DecoderLayer]:
        """Return the decoder layers."""
        return [layer for layer in self.decoder if isinstance(layer, DecoderLayer)]

    def enter_recording(self, features_BMF: Tensor) -> Tensor:
        """Return the residual stream entering the encoder [B, S, D]."""
        x_BDS = F.gelu(self.hear2(F.gelu(self.hear1(features_BMF))))
        return x_BDS.transpose(1, 2) + self.encoder_places

    def enter_text(self, ids_BT: Tensor, before: int | Tensor, room: int | None = None) -> tuple[Tensor, Reading]:
        """Return the residual stream entering the decoder, and what its layers know.

        Args:
            before: decoder tokens before these; [1] with buffers.
            room: tokens that buffers of keys and values hold; None if keys and values grow.
        """
        # A constant tensor rather than arange: it becomes an initializer, not a Range node.
        steps_T = torch.tensor(list(range(ids_BT.shape[1])), device=ids_BT.device)
        x_BTD = self.embed(ids_BT) + F.embedding(steps_T + before, self.places)
        if isinstance(before, Tensor):
            # Floats: accelerators rarely support integer comparison.
            place_N, now_1 = torch.tensor([float(n) for n in range(room or 0)], device=before.device), before.float()
            return x_BTD, Reading(bias_of(place_N <= now_1)[None], (place_N == now_1)[None, None, :, None])
        if ids_BT.shape[1] == 1:
            return x_BTD, Reading()
        place_N = torch.arange(before + ids_BT.shape[1], device=ids_BT.device)
        return x_BTD, Reading(bias_of(place_N <= (steps_T + before)[:, None]))

    def encode(self, features_BMF: Tensor, wanted: Collection[str] = (), push: Push = nothing) -> Tensor:
        """Return the encoder's last output after its norm [B, S, D].

        Args:
            wanted, push: taps to push as they are computed.
        """
        x_BSD = self.enter_recording(features_BMF)
        for k, layer in enumerate(self.encoder):
            _give(wanted, push, f"encoder.{k}.input", x_BSD)
            x_BSD = layer(x_BSD)
            _give(wanted, push, f"encoder.{k}.output", x_BSD)
        memory_BSD: Tensor = self.encoder_norm(x_BSD)
        return memory_BSD

    def read(self, memory_BSD: Tensor, wanted: Collection[str] = (), push: Push = nothing) -> list[Cache]:
        """Return keys and values of the recording for every decoder layer."""
        caches = []
        for j, layer in enumerate(self.layers()):
            cache = layer.cross.keys_values(memory_BSD)
            for what, value in zip(("key", "value"), cache, strict=True):
                _give(wanted, push, f"decoder.{j}.cross_{what}", value)
            caches.append(cache)
        return caches

    def decode(
        self,
        ids_BT: Tensor,
        heard: Sequence[Cache],
        past: Sequence[Cache] | None = None,
        wanted: Collection[str] = (),
        push: Push = nothing,
    ) -> tuple[Tensor, list[Cache]]:
        """Return the final hidden states [B, T, D] of decoder tokens, and keys and values of all so far.

        Args:
            heard: from :meth:`read`.
            past: keys and values of earlier tokens; None before the first.
        """
        x_BTD, reading = self.enter_text(ids_BT, 0 if past is None else past[0][0].shape[2])
        caches = []
        for j, layer in enumerate(self.layers()):
            _give(wanted, push, f"decoder.{j}.input", x_BTD)
            x_BTD, cache, own_BTD, heard_BTD = layer(x_BTD, reading, heard[j], None if past is None else past[j])
            for leaf, value in (("own", own_BTD), ("heard", heard_BTD), ("output", x_BTD)):
                _give(wanted, push, f"decoder.{j}.{leaf}", value)
            caches.append(cache)
        final_BTD = self.norm(x_BTD)
        _give(wanted, push, "final", final_BTD)
        return final_BTD, caches

    @property
    def head_weight(self) -> Tensor:
        """Return the output projection [V, D], the embedding."""
        return self.embed.weight

    def logits(self, final_BTD: Tensor) -> FactoredLogits:
        """Return the logits of normed hidden states."""
        return FactoredLogits(final_BTD, self.head_weight)


def _waves(positions: int, width: int) -> Tensor:
    """Return sinusoids [positions, width] of wavelengths from 2π to 10,000·2π, sines first."""
    half = width // 2
    rates_H = torch.exp(-torch.arange(half) * (torch.log(torch.tensor(10000.0)) / max(half - 1, 1)))
    angles_SH = torch.arange(positions)[:, None] * rates_H
    return F.pad(torch.cat([angles_SH.sin(), angles_SH.cos()], 1), (0, width - 2 * half))


def _give(wanted: Collection[str], push: Push, name: str, value: Any) -> None:
    if name in wanted:
        push(name, value)
