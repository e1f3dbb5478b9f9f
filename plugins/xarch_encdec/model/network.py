"""Embedding, encoder, decoder and head.

Parameter names: ``embed.weight``, ``enter.weight`` (of an encoder of another width), ``encoder.3.norm1.weight``,
``encoder_norm.weight``, ``decoder.2.mlp.up.weight``, ``norm.weight``, ``head.weight``; what lies in a layer has the
canonical name of a decoder's.

Legend: B batch, S source tokens, T decoder tokens, N decoder tokens with those before them, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xarch_decoder.factored import FactoredLogits
from xarch_decoder.model.decoder import embedded
from xarch_decoder.model.layers import Head, make_norm
from xarch_decoder.model.rotary import Rotation, rotation
from xarch_encdec.facts import EncDecFacts
from xarch_encdec.model.attention import bias_of
from xarch_encdec.model.layers import Cache, DecoderLayer, EncoderLayer, Reading

Push = Callable[[str, Any], None]
"""Called with (tap name, value)."""

Biases = dict[int | None, Tensor]
"""Sliding window, None for none -> bias over keys."""

Readings = dict[int | None, Reading]
"""Sliding window, None for none -> what decoder layers know."""


@dataclass(frozen=True)
class Opening:
    """How far the encoder is opened, from what equals a causal decoder (0, 0) to an encoder proper (1, 1).

    Attributes:
        future: weight of the tokens after a token in the encoder's attention; 0 causal, 1 both sides alike.
        last: share of the encoder's last output in what decoder layers read; the rest is the input of the encoder layer
            that stands for their own place in the decoder they come from.
    """

    future: float = 1.0
    last: float = 1.0


def nothing(name: str, value: Any) -> None:
    """Push nowhere."""


class EncDecModel(nn.Module):
    """An encoder-decoder.

    Its :class:`Opening` is the buffer ``opening`` [2], which a schedule writes while it trains: it is saved with the
    weights, as statistics of a norm are.
    """

    opening: Tensor

    def __init__(self, facts: EncDecFacts) -> None:
        super().__init__()
        self.facts = facts
        self.embed = nn.Embedding(facts.layer.vocab, facts.layer.width)
        read = facts.encoder_layer.width
        self.enter = None if read == facts.width else nn.Linear(facts.width, read, bias=False)
        decoder = [DecoderLayer(facts) for _ in range(facts.decoder)]
        twins = [None if twin is None else decoder[twin] for twin in facts.twins or (None,) * facts.encoder]
        # Weights of both are named and trained as the encoder's, which comes first.
        self.encoder = nn.ModuleList([EncoderLayer(facts, twin) for twin in twins])
        self.encoder_norm = make_norm(facts.encoder_layer)
        self.decoder = nn.ModuleList(decoder)
        self.norm = make_norm(facts.layer)
        self.head = Head(facts.layer)
        self.register_buffer("opening", torch.ones(2))

    @property
    def head_weight(self) -> Tensor:
        """Return the output projection [V, D]: the embedding if the two are tied."""
        return self.embed.weight if self.head.weight is None else self.head.weight

    def opened(self) -> Opening:
        """Return how far the encoder is opened; fully if the tensor holds no values (on the meta device)."""
        if self.opening.device.type == "meta":
            return Opening()
        future, last = self.opening.tolist()
        return Opening(future, last)

    def keep(self, layers: Sequence[int], facts: EncDecFacts) -> None:
        """Drop every decoder layer but some.

        Args:
            facts: of the model that is left.
        """
        self.facts = facts
        self.decoder = nn.ModuleList([self.decoder[j] for j in layers])

    def layers(self) -> Sequence[DecoderLayer]:
        """Return the decoder layers."""
        return [layer for layer in self.decoder if isinstance(layer, DecoderLayer)]

    def enter_source(self, input_ids_BS: Tensor, mask_BS: Tensor, opening: Opening) -> tuple[Tensor, Rotation, Biases]:
        """Return the residual stream entering the encoder, the rotation at its positions, and the bias over its keys
        [B, 1, S or 1, S] for every sliding window of its layers."""
        layer, place_S = self.facts.layer, torch.arange(input_ids_BS.shape[1], device=input_ids_BS.device)
        by = rotation(place_S[None], layer.inverse_frequencies, layer.rotary_gain)
        windows = dict.fromkeys(self.facts.encoder_windows or (None,))
        biases = {window: _source_bias(place_S, mask_BS, opening.future, window) for window in windows}
        x_BSD = embedded(self.embed, layer.embed_gain, input_ids_BS)
        return x_BSD if self.enter is None else self.enter(x_BSD), by, biases

    def enter_target(
        self, ids_BT: Tensor, mask_BS: Tensor, before: int | Tensor, room: int | None = None
    ) -> tuple[Tensor, Readings]:
        """Return the residual stream entering the decoder, and what its layers know, for every sliding window.

        Args:
            before: decoder tokens before these; [1] with buffers.
            room: tokens that buffers of keys and values hold; None if keys and values grow.
        """
        layer = self.facts.layer
        # A constant tensor rather than arange: it becomes an initializer, not a Range node.
        steps_T = torch.tensor(list(range(ids_BT.shape[1])), device=ids_BT.device)
        place_BT = (steps_T + before)[None]
        if self.facts.cross == "merged":
            place_BT = place_BT + mask_BS.long().sum(1, keepdim=True)
        by = rotation(place_BT, layer.inverse_frequencies, layer.rotary_gain)
        readings = {}
        for window in dict.fromkeys(layer.windows or (None,)):
            bias_B1TS = self._cross_bias(place_BT, mask_BS, window)
            if isinstance(before, Tensor):
                readings[window] = Reading(by, bias_B1TS, *_buffer_bias(before, room or 0, window))
            else:
                readings[window] = Reading(by, bias_B1TS, _self_bias(steps_T, before, window))
        return embedded(self.embed, layer.embed_gain, ids_BT), readings

    def encode(
        self,
        input_ids_BS: Tensor,
        mask_BS: Tensor,
        opening: Opening,
        wanted: Collection[str] = (),
        push: Push = nothing,
    ) -> list[Cache]:
        """Return keys and values of the source for every decoder layer.

        Args:
            input_ids_BS, mask_BS: source tokens, and 1 for those that are not pads. Positions count from the first
                token, so pads belong on the right.
            wanted, push: taps to push as they are computed.
        """
        x_BSD, by, biases = self.enter_source(input_ids_BS, mask_BS, opening)
        levels: dict[int, Tensor] = {}
        kept = self.levels(opening)
        for k, block in enumerate(self.encoder):
            if k in kept:
                levels[k] = x_BSD
            _give(wanted, push, f"encoder.{k}.input", x_BSD)
            x_BSD = block(x_BSD, by, biases[self.facts.encoder_window(k)])
            _give(wanted, push, f"encoder.{k}.output", x_BSD)
        levels[self.facts.encoder] = x_BSD
        memory_BSD = self.encoder_norm(x_BSD)
        _give(wanted, push, "memory", memory_BSD)
        caches = []
        for j, reader in enumerate(self.layers()):
            level_BSD = levels[self.facts.levels[j]] if kept else None
            cache = reader.read_memory(memory_BSD, by, level_BSD, opening.last)
            for what, value in zip(("key", "value"), cache, strict=True):
                _give(wanted, push, f"decoder.{j}.cross_{what}", value)
            caches.append(cache)
        return caches

    def levels(self, opening: Opening) -> set[int]:
        """Return the encoder layers whose inputs decoder layers read; none once they read the last output alone."""
        return set(self.facts.levels) if opening.last < 1 and self.enter is None else set()

    def decode(
        self,
        ids_BT: Tensor,
        mask_BS: Tensor,
        source: Sequence[Cache],
        past: Sequence[Cache] | None = None,
        wanted: Collection[str] = (),
        push: Push = nothing,
        without: Collection[int] = (),
    ) -> tuple[Tensor, list[Cache]]:
        """Return the final hidden states [B, T, D] of decoder tokens, and keys and values of all so far.

        Args:
            mask_BS: of the source.
            source: from :meth:`encode`.
            past: keys and values of earlier tokens; None before the first.
            without: layers left out, as if they added nothing to the residual stream.
        """
        x_BTD, readings = self.enter_target(ids_BT, mask_BS, 0 if past is None else past[0][0].shape[2])
        caches = []
        for j, block in enumerate(self.layers()):
            if j in without:
                continue
            _give(wanted, push, f"decoder.{j}.input", x_BTD)
            reading = readings[self.facts.layer.window(j)]
            x_BTD, cache = block(x_BTD, reading, source[j], None if past is None else past[j])
            _give(wanted, push, f"decoder.{j}.output", x_BTD)
            caches.append(cache)
        final_BTD = self.norm(x_BTD)
        _give(wanted, push, "final", final_BTD)
        return final_BTD, caches

    def logits(self, final_BTD: Tensor) -> FactoredLogits:
        """Return the logits of normed hidden states."""
        return FactoredLogits(final_BTD, self.head_weight, self.head.bias, self.head.softcap)

    def _cross_bias(self, place_BT: Tensor, mask_BS: Tensor, window: int | None) -> Tensor:
        seen_B1S = (mask_BS > 0)[:, None]
        if window is not None and self.facts.cross == "merged":
            place_S = torch.arange(mask_BS.shape[1], device=mask_BS.device)
            seen_B1S = seen_B1S & (place_S > place_BT[:, :, None] - window)
        return bias_of(seen_B1S[:, None])


def _source_bias(place_S: Tensor, mask_BS: Tensor, future: float, window: int | None) -> Tensor:
    """Return the bias of the encoder's attention [B, 1, S or 1, S]."""
    seen_BSS = (mask_BS > 0)[:, None]
    ahead_SS = place_S > place_S[:, None]
    if window is not None:
        seen_BSS = seen_BSS & ((place_S[:, None] - place_S).abs() < window)
    if future == 0:
        seen_BSS = seen_BSS & ~ahead_SS
    bias_B1SS = bias_of(seen_BSS[:, None])
    if 0 < future < 1:
        # A score of log w multiplies the weight of a token by w before the softmax divides.
        bias_B1SS = bias_B1SS + torch.where(ahead_SS, math.log(future), 0.0)
    return bias_B1SS


def _self_bias(steps_T: Tensor, before: int, window: int | None) -> Tensor | None:
    """Return the causal bias [1, 1, T, N] among decoder tokens, None for one token that sees all."""
    if steps_T.shape[0] == 1 and window is None:
        return None
    place_N = torch.arange(before + steps_T.shape[0], device=steps_T.device)
    now_T1 = (steps_T + before)[:, None]
    seen_TN = place_N <= now_T1
    if window is not None:
        seen_TN = seen_TN & (place_N > now_T1 - window)
    return bias_of(seen_TN[None, None])


def _buffer_bias(before_1: Tensor, room: int, window: int | None) -> tuple[Tensor, Tensor]:
    """Return the bias [1, 1, 1, N] of one token over a buffer of N tokens, and where it goes [1, 1, N, 1]."""
    # A constant and floats: accelerators rarely support Range or integer comparison.
    place_N, now_1 = torch.tensor([float(n) for n in range(room)], device=before_1.device), before_1.float()
    seen_N = place_N <= now_1
    if window is not None:
        seen_N = seen_N & (place_N > now_1 - window)
    return bias_of(seen_N[None, None, None]), (place_N == now_1)[None, None, :, None]


def _give(wanted: Collection[str], push: Push, name: str, value: Any) -> None:
    if name in wanted:
        push(name, value)
