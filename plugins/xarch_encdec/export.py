"""ONNX graphs of an encoder-decoder: ``encoder`` reads a source once, ``decoder_1`` writes one token.

The encoder gives keys and values of the source for every decoder layer; the decoder reads them and never gives them
again, and its own may be empty, so the first token needs no graph of its own. Inputs and outputs are named as Optimum
names them.

Legend: B batch, S source tokens, P decoder tokens so far, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from xarch import Chain, ExportGraph, Link, Options, PlanError, Profile
from xarch_encdec.model.layers import DecoderLayer, EncoderLayer, Reading
from xarch_encdec.model.network import EncDecModel, Opening
from xarch_encdec.student import EncDecStudent

ENCODER, DECODER = "encoder", "decoder_1"

EXAMPLE_SOURCE, EXAMPLE_PAST = 7, 5
"""Tokens in the example inputs. Tracing treats sizes 0 and 1 as constants, so they must be at least 2."""


class EncDecExport(Options):
    """Export options of an encoder-decoder: none yet."""


class _EnterSource(nn.Module):
    """Maps (input_ids [B, S], attention_mask [B, S]) to (hidden states, cosine, sine, bias of every window)."""

    def __init__(self, model: EncDecModel, opening: Opening) -> None:
        super().__init__()
        self.model, self.opening = model, opening

    def forward(self, input_ids_BS: Tensor, mask_BS: Tensor) -> tuple[Tensor, ...]:
        x_BSD, by, biases = self.model.enter_source(input_ids_BS, mask_BS, self.opening)
        return (x_BSD, *by, *biases.values())


class _Encode(nn.Module):
    """Maps (hidden states, cosine, sine, bias) to hidden states."""

    def __init__(self, layer: EncoderLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x_BSD: Tensor, cos: Tensor, sin: Tensor, bias_B1SS: Tensor) -> Tensor:
        out_BSD: Tensor = self.layer(x_BSD, (cos, sin), bias_B1SS)
        return out_BSD


class _Read(nn.Module):
    """Maps (memory, cosine, sine, and the input of an encoder layer if it counts) to keys and values."""

    def __init__(self, layer: DecoderLayer, last: float) -> None:
        super().__init__()
        self.layer, self.last = layer, last

    def forward(self, memory_BSD: Tensor, cos: Tensor, sin: Tensor, *level: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer.read_memory(memory_BSD, (cos, sin), level[0] if level else None, self.last)


class _EnterTarget(nn.Module):
    """Maps (input_ids [B, 1], encoder_attention_mask [B, S], a past key) to (hidden states, cosine, sine, bias over the
    source and over own keys of every window; the latter where there is one)."""

    def __init__(self, model: EncDecModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_B1: Tensor, mask_BS: Tensor, past_BKPE: Tensor) -> tuple[Tensor, ...]:
        x_B1D, readings = self.model.enter_target(ids_B1, mask_BS, past_BKPE.shape[2])
        by = next(iter(readings.values())).by
        biases = [b for r in readings.values() for b in (r.bias_B1TS, r.bias_B1TN) if b is not None]
        return (x_B1D, *by, *biases)


class _Decode(nn.Module):
    """Maps (hidden states, cosine, sine, keys and values of the source and of earlier tokens, biases) to hidden states
    and keys and values of all tokens."""

    def __init__(self, layer: DecoderLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self, x_B1D: Tensor, cos: Tensor, sin: Tensor, sk: Tensor, sv: Tensor, pk: Tensor, pv: Tensor, *biases: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        reading = Reading((cos, sin), biases[1] if len(biases) > 1 else None, biases[0])
        x_B1D, (k_BKNE, v_BKNE) = self.layer(x_B1D, reading, (sk, sv), (pk, pv))
        return x_B1D, k_BKNE, v_BKNE


class _Leave(nn.Module):
    """Maps hidden states to logits [B, 1, V]."""

    def __init__(self, model: EncDecModel) -> None:
        super().__init__()
        self.norm, self.head = model.norm, model.head
        self.embed = model.embed if model.head.weight is None else None

    def forward(self, x_B1D: Tensor) -> Tensor:
        weight_VD = self.head.weight if self.embed is None else self.embed.weight
        assert weight_VD is not None
        logits_B1V: Tensor = self.head(self.norm(x_B1D), weight_VD)
        return logits_B1V


def source_names(layers: int, stem: str) -> list[str]:
    """Return the names of keys and values of the source: "present" as outputs, "past_key_values" as inputs."""
    return [f"{stem}.{j}.encoder.{what}" for j in range(layers) for what in ("key", "value")]


def own_names(layers: int, stem: str) -> list[str]:
    """Return the names of keys and values of the decoder's tokens."""
    return [f"{stem}.{j}.decoder.{what}" for j in range(layers) for what in ("key", "value")]


def encdec_graphs(student: EncDecStudent, profile: Profile) -> list[ExportGraph]:
    """Build ``encoder`` and ``decoder_1``.

    Raises:
        PlanError: the profile has static shapes.
    """
    if profile.static:
        raise PlanError(
            f"profile {profile.name!r} has static shapes; an encoder-decoder has none with buffers yet",
            "--set 'export.profiles=[cpu]'",
        )
    return [_encoder(student), _decoder(student)]


def _encoder(student: EncDecStudent) -> ExportGraph:
    model, facts = student.module, student.facts
    opening = model.opened()
    windows = list(dict.fromkeys(facts.encoder_windows or (None,)))
    biases = [f"bias.{w}" for w in windows]
    links = [Link(_EnterSource(model, opening), ["input_ids", "attention_mask"], ["hidden.0", "cos", "sin", *biases])]
    for k, layer in enumerate(model.encoder):
        assert isinstance(layer, EncoderLayer)
        bias = f"bias.{facts.encoder_window(k)}"
        links.append(Link(_Encode(layer), [f"hidden.{k}", "cos", "sin", bias], [f"hidden.{k + 1}"]))
    links.append(Link(model.encoder_norm, [f"hidden.{facts.encoder}"], ["memory"]))
    outputs = source_names(facts.decoder, "present")
    for j, reader in enumerate(model.layers()):
        level = [f"hidden.{facts.levels[j]}"] if model.levels(opening) else []
        links.append(Link(_Read(reader, opening.last), ["memory", "cos", "sin", *level], outputs[2 * j : 2 * j + 2]))
    ids_BS = _example_ids(student, EXAMPLE_SOURCE)
    taps = [f"decoder.{j}.cross_{what}" for j in range(facts.decoder) for what in ("key", "value")]
    free = {0: "batch", 1: "source"}
    return ExportGraph(
        name=ENCODER,
        module=Chain(model, links, inputs=["input_ids", "attention_mask"], outputs=outputs).eval(),
        inputs={"input_ids": ids_BS, "attention_mask": torch.ones_like(ids_BS)},
        outputs=outputs,
        dynamic={"input_ids": free, "attention_mask": free},
        reads={"input_ids": "input_ids", "attention_mask": "attention_mask"},
        gives=dict(zip(outputs, taps, strict=True)),
        metadata={**_facts(student), "role": ENCODER},
    )


def _decoder(student: EncDecStudent) -> ExportGraph:
    model, facts = student.module, student.facts
    source, past = (names(facts.decoder, "past_key_values") for names in (source_names, own_names))
    present = own_names(facts.decoder, "present")
    windows = list(dict.fromkeys(facts.layer.windows or (None,)))
    biases = {w: [f"source_bias.{w}", *([f"own_bias.{w}"] if w is not None else [])] for w in windows}
    entered = ["hidden.0", "cos", "sin", *(name for names in biases.values() for name in names)]
    links = [Link(_EnterTarget(model), ["input_ids", "encoder_attention_mask", past[0]], entered)]
    for j, layer in enumerate(model.layers()):
        kept = slice(2 * j, 2 * j + 2)
        reads = [f"hidden.{j}", "cos", "sin", *source[kept], *past[kept], *biases[facts.layer.window(j)]]
        links.append(Link(_Decode(layer), reads, [f"hidden.{j + 1}", *present[kept]]))
    links.append(Link(_Leave(model), [f"hidden.{facts.decoder}"], ["logits"]))
    ids_BS = _example_ids(student, EXAMPLE_SOURCE)
    caches = _example_caches(student, ids_BS)
    inputs = {"input_ids": ids_BS[:, :1], "encoder_attention_mask": torch.ones_like(ids_BS)}
    inputs |= dict(zip([*source, *past], caches, strict=True))
    dynamic: dict[str, dict[int, str]] = {
        "input_ids": {0: "batch"},
        "encoder_attention_mask": {0: "batch", 1: "source"},
    }
    for symbol, names in (("source", source), ("past", past)):
        dynamic |= {name: {0: "batch", 2: symbol} for name in names}
    return ExportGraph(
        name=DECODER,
        module=Chain(model, links, inputs=list(inputs), outputs=["logits", *present]).eval(),
        inputs=inputs,
        outputs=["logits", *present],
        dynamic=dynamic,
        weight_only=True,
        # A single token gains nothing from repacked weights; unpacked, they stay memory-mapped and shared.
        metadata={**_facts(student), "role": DECODER, "prepack": False},
    )


def _example_ids(student: EncDecStudent, tokens: int) -> Tensor:
    device = student.module.embed.weight.device
    return (torch.arange(2 * tokens, device=device) % student.facts.vocab).view(2, tokens)


def _example_caches(student: EncDecStudent, ids_BS: Tensor) -> list[Tensor]:
    """Return keys and values of a source, and of a few decoder tokens."""
    model = student.module
    with torch.no_grad():
        source = model.encode(ids_BS, torch.ones_like(ids_BS), model.opened())
        _, own = model.decode(ids_BS[:, :EXAMPLE_PAST], torch.ones_like(ids_BS), source)
    return [tensor for caches in (source, own) for cache in caches for tensor in cache]


def _facts(student: EncDecStudent) -> dict[str, Any]:
    facts = student.facts
    return {
        "family": "encdec",
        "layers": facts.decoder,
        "vocab": facts.vocab,
        "cache": [facts.layer.kv_heads, facts.layer.head_dim],
        "eos": list(facts.eos),
        "facts": facts.to_json(),
        "start": "the decoder begins with the prompt's last token, which the encoder does not read",
    }
