"""ONNX graphs of a speech model: ``encoder`` hears a recording once, ``decoder_1`` writes one token.

The encoder gives keys and values of the recording for every decoder layer; the decoder reads them and never gives them
again, and its own may be empty, so the first token needs no graph of its own. Inputs and outputs are named as Optimum
names them. With static shapes, the decoder's own keys and values are buffers in which a token takes its ``position``.

Legend: B batch, S encoder positions, P decoder tokens so far, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import pad

from xarch import Chain, ExportGraph, Link, Options, PlanError, Profile
from xarch_encdec.driving import DECODER, ENCODER, own_names, source_names
from xarch_speech.model import Attention, DecoderLayer, Reading, SpeechModel

EXAMPLE_PAST = 5
"""Tokens in the example inputs. Tracing treats sizes 0 and 1 as constants, so there must be at least 2."""

FEATURES = "input_features"

ROOM = 128
"""Tokens of a transcript in buffers: half a minute of fast speech."""


class SpeechExport(Options):
    """Export options of a speech model, for profiles with static shapes."""

    tokens: int | None = Field(
        None,
        ge=8,
        le=1 << 16,
        description="tokens of a transcript, those it begins with included; default: 128, or all of the model's",
    )


class _Read(nn.Module):
    """Maps the encoder's last output to keys and values of a decoder layer."""

    def __init__(self, cross: Attention) -> None:
        super().__init__()
        self.cross = cross

    def forward(self, memory_BSD: Tensor) -> tuple[Tensor, Tensor]:
        return self.cross.keys_values(memory_BSD)


class _Hear(nn.Module):
    """Maps features to hidden states."""

    def __init__(self, model: SpeechModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, features_BMF: Tensor) -> Tensor:
        return self.model.enter_recording(features_BMF)


class _EnterText(nn.Module):
    """Maps (input_ids [B, 1], a past key, or position [1] with buffers) to hidden states, and with buffers the bias
    over their keys and the token's place in them."""

    def __init__(self, model: SpeechModel, room: int | None) -> None:
        super().__init__()
        self.model, self.room = model, room

    def forward(self, ids_B1: Tensor, past: Tensor) -> Any:
        before = past.shape[2] if self.room is None else past
        x_B1D, reading = self.model.enter_text(ids_B1, before, self.room)
        return x_B1D if self.room is None else (x_B1D, reading.bias_TN, reading.at_11N1)


class _Decode(nn.Module):
    """Maps (hidden states, keys and values of the recording and of earlier tokens, and with buffers bias and place) to
    hidden states and keys and values of all tokens."""

    def __init__(self, layer: DecoderLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self, x_B1D: Tensor, hk: Tensor, hv: Tensor, pk: Tensor, pv: Tensor, *known: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        x_B1D, (k_BHNE, v_BHNE), _, _ = self.layer(x_B1D, Reading(*known), (hk, hv), (pk, pv))
        return x_B1D, k_BHNE, v_BHNE


class _Leave(nn.Module):
    """Maps hidden states to logits [B, 1, V]."""

    def __init__(self, model: SpeechModel) -> None:
        super().__init__()
        self.norm, self.embed = model.norm, model.embed

    def forward(self, x_B1D: Tensor) -> Tensor:
        return torch.nn.functional.linear(self.norm(x_B1D), self.embed.weight)


def speech_graphs(model: SpeechModel, profile: Profile, options: SpeechExport) -> list[ExportGraph]:
    """Build ``encoder`` and ``decoder_1``.

    Raises:
        PlanError: the buffers of a profile with static shapes exceed the model's positions.
    """
    most = model.facts.max_positions
    room = (options.tokens or min(ROOM, most)) if profile.static else None
    if room is not None and room > most:
        raise PlanError(f"export.options.tokens: {room} of at most {most}", f"--set export.options.tokens={most}")
    return [_encoder(model, room), _decoder(model, room)]


def _encoder(model: SpeechModel, room: int | None) -> ExportGraph:
    facts = model.facts
    links = [Link(_Hear(model), [FEATURES], ["hidden.0"])]
    links += [Link(layer, [f"hidden.{k}"], [f"hidden.{k + 1}"]) for k, layer in enumerate(model.encoder)]
    links.append(Link(model.encoder_norm, [f"hidden.{facts.encoder}"], ["memory"]))
    outputs = source_names(facts.decoder, "present")
    for j, layer in enumerate(model.layers()):
        links.append(Link(_Read(layer.cross), ["memory"], outputs[2 * j : 2 * j + 2]))
    taps = [f"decoder.{j}.cross_{what}" for j in range(facts.decoder) for what in ("key", "value")]
    features_BMF = _example(model, 1 if room else 2)
    return ExportGraph(
        name=ENCODER,
        module=Chain(model, links, inputs=[FEATURES], outputs=outputs).eval(),
        inputs={FEATURES: features_BMF},
        outputs=outputs,
        dynamic={FEATURES: {} if room else {0: "batch"}},
        reads={} if room else {FEATURES: FEATURES},
        gives={} if room else dict(zip(outputs, taps, strict=True)),
        metadata={**_facts(model, room), "role": ENCODER},
    )


def _decoder(model: SpeechModel, room: int | None) -> ExportGraph:
    layers = model.facts.decoder
    heard, past = source_names(layers, "past_key_values"), own_names(layers, "past_key_values")
    present = own_names(layers, "present")
    known = [] if room is None else ["bias", "place"]
    before = past[0] if room is None else "position"
    links = [Link(_EnterText(model, room), ["input_ids", before], ["hidden.0", *known])]
    for j, layer in enumerate(model.layers()):
        kept = slice(2 * j, 2 * j + 2)
        reads = [f"hidden.{j}", *heard[kept], *past[kept], *known]
        links.append(Link(_Decode(layer), reads, [f"hidden.{j + 1}", *present[kept]]))
    links.append(Link(_Leave(model), [f"hidden.{layers}"], ["logits"]))
    ids_B1, caches = _example_caches(model, room)
    inputs = {"input_ids": ids_B1, **dict(zip([*heard, *past], caches, strict=True))}
    dynamic: dict[str, dict[int, str]] = {}
    if room is not None:
        inputs["position"] = torch.tensor([EXAMPLE_PAST], device=ids_B1.device)
    else:
        dynamic = {"input_ids": {0: "batch"}, **{name: {0: "batch"} for name in heard}}
        dynamic |= {name: {0: "batch", 2: "past"} for name in past}
    return ExportGraph(
        name=DECODER,
        module=Chain(model, links, inputs=list(inputs), outputs=["logits", *present]).eval(),
        inputs=inputs,
        outputs=["logits", *present],
        dynamic=dynamic,
        weight_only=True,
        # A single token gains nothing from repacked weights; unpacked, they stay memory-mapped and shared.
        metadata={**_facts(model, room), "role": DECODER, "prepack": False},
    )


def _example(model: SpeechModel, rows: int) -> Tensor:
    facts = model.facts
    draw = torch.Generator().manual_seed(0)
    return torch.randn(rows, facts.mels, facts.frames, generator=draw).to(model.embed.weight.device)


def _example_caches(model: SpeechModel, room: int | None) -> tuple[Tensor, list[Tensor]]:
    """Return a token for every row, and keys and values of a recording and of a few decoder tokens."""
    features_BMF = _example(model, 1 if room else 2)
    start = torch.tensor(model.facts.start, device=features_BMF.device)
    ids_BT = start.repeat(EXAMPLE_PAST)[:EXAMPLE_PAST].expand(len(features_BMF), EXAMPLE_PAST)
    with torch.no_grad():
        heard = model.read(model.encode(features_BMF))
        _, own = model.decode(ids_BT, heard)
    if room is not None:
        more = (0, 0, 0, room - EXAMPLE_PAST)
        own = [(pad(k, more), pad(v, more)) for k, v in own]
    return ids_BT[:, :1].clone(), [tensor for caches in (heard, own) for cache in caches for tensor in cache]


def _facts(model: SpeechModel, room: int | None) -> dict[str, Any]:
    facts = model.facts
    return {
        "family": "speech",
        "layers": facts.decoder,
        "vocab": facts.vocab,
        "cache": [facts.heads, facts.head_dim],
        "source": facts.positions,
        **({} if room is None else {"answer": room}),
        "start": list(facts.start),
        "eos": list(facts.eos),
        "sound": {key: getattr(facts, key) for key in ("rate", "fft", "hop", "mels", "frames")},
        "facts": facts.to_json(),
    }
