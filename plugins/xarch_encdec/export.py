"""ONNX graphs of an encoder-decoder: ``encoder`` reads a source once, ``decoder_1`` writes one token.

The encoder gives keys and values of the source for every decoder layer; the decoder reads them and never gives them
again, and its own may be empty, so the first token needs no graph of its own. Inputs and outputs are named as Optimum
names them. With static shapes, sources are padded to a fixed length, and the decoder's keys and values are buffers in
which a token takes its ``position``.

Legend: B batch, S source tokens, P decoder tokens so far, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import pad

from xarch import Chain, ExportGraph, Link, Options, PlanError, Profile
from xarch.kernels import in_runtime
from xarch_encdec.driving import DECODER, ENCODER, own_names, source_names
from xarch_encdec.model.attention import spread
from xarch_encdec.model.layers import DecoderLayer, EncoderLayer, Reading
from xarch_encdec.model.network import EncDecModel, Opening
from xarch_encdec.student import EncDecStudent

EXAMPLE_SOURCE, EXAMPLE_PAST = 7, 5
"""Tokens in the example inputs. Tracing treats sizes 0 and 1 as constants, so they must be at least 2."""


LEAST = 2
"""Tokens of the shortest buffer."""


class EncDecExport(Options):
    """Export options of an encoder-decoder, for profiles with static shapes."""

    source: int | None = Field(
        None, ge=LEAST, le=1 << 20, description="tokens of a source, pads included; default: `student.options.prompt`"
    )
    answer: int | None = Field(
        None, ge=LEAST, le=1 << 20, description="tokens of an answer; default: `student.options.answer`"
    )


@dataclass(frozen=True)
class _Sizes:
    """Tokens of the buffers of graphs with static shapes; None: shapes are free."""

    source: int | None = None
    answer: int | None = None


class _EnterSource(nn.Module):
    """Maps (input_ids [B, S], attention_mask [B, S]) to (hidden states, cosine, sine, bias of every window).

    Args:
        wide: biases have a row for each token, which layers would otherwise each make.
    """

    def __init__(self, model: EncDecModel, opening: Opening, *, wide: bool) -> None:
        super().__init__()
        self.model, self.opening, self.wide = model, opening, wide

    def forward(self, input_ids_BS: Tensor, mask_BS: Tensor) -> tuple[Tensor, ...]:
        x_BSD, by, biases = self.model.enter_source(input_ids_BS, mask_BS, self.opening)
        return (x_BSD, *by, *(spread(b) if self.wide else b for b in biases.values()))


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
    """Maps (input_ids [B, 1], encoder_attention_mask [B, S], a past key, or position [1] with buffers) to (hidden
    states, cosine, sine, and for every window what :func:`_known` lists)."""

    def __init__(self, model: EncDecModel, room: int | None) -> None:
        super().__init__()
        self.model, self.room = model, room

    def forward(self, ids_B1: Tensor, mask_BS: Tensor, past: Tensor) -> tuple[Tensor, ...]:
        before = past.shape[2] if self.room is None else past
        x_B1D, readings = self.model.enter_target(ids_B1, mask_BS, before, self.room)
        by = next(iter(readings.values())).by
        known = [t for r in readings.values() for t in (r.bias_B1TS, r.bias_B1TN, r.at_11N1) if t is not None]
        return (x_B1D, *by, *known)


def _known(window: int | None, room: int | None) -> list[str]:
    """Return the names of what a decoder layer reads besides its token: the bias over the source, the one over own keys
    if they are not all seen, and the token's place in a buffer."""
    own = [f"own_bias.{window}"] if window is not None or room is not None else []
    return [f"source_bias.{window}", *own, *([f"place.{window}"] if room is not None else [])]


class _Decode(nn.Module):
    """Maps (hidden states, cosine, sine, keys and values of the source and of earlier tokens, what :func:`_known`
    lists) to hidden states and keys and values of all tokens."""

    def __init__(self, layer: DecoderLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self, x_B1D: Tensor, cos: Tensor, sin: Tensor, sk: Tensor, sv: Tensor, pk: Tensor, pv: Tensor, *known: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        x_B1D, (k_BKNE, v_BKNE) = self.layer(x_B1D, Reading((cos, sin), *known), (sk, sv), (pk, pv))
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


def encdec_graphs(student: EncDecStudent, profile: Profile, options: EncDecExport) -> list[ExportGraph]:
    """Build ``encoder`` and ``decoder_1``.

    Raises:
        PlanError: the buffers of a profile with static shapes exceed the model's context.
    """
    sizes = _Sizes()
    if profile.static:
        room = student.facts.max_positions
        answer = options.answer or min(student.lengths["target"], room // 2)
        if answer > room - LEAST:
            raise PlanError(
                f"export.options.answer: {answer} tokens of the model's {room} leave none for a source",
                f"--set export.options.answer={room // 2}",
            )
        source = options.source or min(student.lengths["source"], room - answer)
        sizes = _Sizes(source, answer)
        if source + answer > room:
            raise PlanError(
                f"export.options.source: {source} tokens and an answer of {answer} exceed the model's {room}",
                f"--set export.options.source={room - answer}",
            )
    wide = "runtime" in profile.lowerings and in_runtime("attention_to_all")
    return [_encoder(student, sizes, wide=wide), _decoder(student, sizes)]


def _encoder(student: EncDecStudent, sizes: _Sizes, *, wide: bool) -> ExportGraph:
    model, facts = student.module, student.facts
    opening = model.opened()
    windows = list(dict.fromkeys(facts.encoder_windows or (None,)))
    biases = [f"bias.{w}" for w in windows]
    enter = _EnterSource(model, opening, wide=wide)
    links = [Link(enter, ["input_ids", "attention_mask"], ["hidden.0", "cos", "sin", *biases])]
    for k, layer in enumerate(model.encoder):
        assert isinstance(layer, EncoderLayer)
        bias = f"bias.{facts.encoder_window(k)}"
        links.append(Link(_Encode(layer), [f"hidden.{k}", "cos", "sin", bias], [f"hidden.{k + 1}"]))
    links.append(Link(model.encoder_norm, [f"hidden.{facts.encoder}"], ["memory"]))
    outputs = source_names(facts.decoder, "present")
    for j, reader in enumerate(model.layers()):
        level = [f"hidden.{facts.levels[j]}"] if model.levels(opening) else []
        links.append(Link(_Read(reader, opening.last), ["memory", "cos", "sin", *level], outputs[2 * j : 2 * j + 2]))
    ids_BS, mask_BS = _example_source(student, sizes)
    taps = [f"decoder.{j}.cross_{what}" for j in range(facts.decoder) for what in ("key", "value")]
    free = {} if sizes.source else {0: "batch", 1: "source"}
    return ExportGraph(
        name=ENCODER,
        module=Chain(model, links, inputs=["input_ids", "attention_mask"], outputs=outputs).eval(),
        inputs={"input_ids": ids_BS, "attention_mask": mask_BS},
        outputs=outputs,
        dynamic={"input_ids": free, "attention_mask": free},
        reads={} if sizes.source else {"input_ids": "input_ids", "attention_mask": "attention_mask"},
        gives={} if sizes.source else dict(zip(outputs, taps, strict=True)),
        metadata={**_facts(student, sizes), "role": ENCODER},
    )


def _decoder(student: EncDecStudent, sizes: _Sizes) -> ExportGraph:
    model, facts = student.module, student.facts
    source, past = (names(facts.decoder, "past_key_values") for names in (source_names, own_names))
    present = own_names(facts.decoder, "present")
    windows = list(dict.fromkeys(facts.layer.windows or (None,)))
    known = {w: _known(w, sizes.answer) for w in windows}
    entered = ["hidden.0", "cos", "sin", *(name for names in known.values() for name in names)]
    before = past[0] if sizes.answer is None else "position"
    links = [Link(_EnterTarget(model, sizes.answer), ["input_ids", "encoder_attention_mask", before], entered)]
    for j, layer in enumerate(model.layers()):
        kept = slice(2 * j, 2 * j + 2)
        reads = [f"hidden.{j}", "cos", "sin", *source[kept], *past[kept], *known[facts.layer.window(j)]]
        links.append(Link(_Decode(layer), reads, [f"hidden.{j + 1}", *present[kept]]))
    links.append(Link(_Leave(model), [f"hidden.{facts.decoder}"], ["logits"]))
    ids_BS, mask_BS = _example_source(student, sizes)
    caches = _example_caches(student, ids_BS, mask_BS, sizes.answer)
    inputs = {"input_ids": ids_BS[:, :1], "encoder_attention_mask": mask_BS}
    inputs |= dict(zip([*source, *past], caches, strict=True))
    dynamic: dict[str, dict[int, str]] = {}
    if sizes.answer is not None:
        inputs["position"] = torch.tensor([_example_past(sizes.answer)], device=ids_BS.device)
    else:
        dynamic = {"input_ids": {0: "batch"}, "encoder_attention_mask": {0: "batch", 1: "source"}}
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
        metadata={**_facts(student, sizes), "role": DECODER, "prepack": False},
    )


def _example_source(student: EncDecStudent, sizes: _Sizes) -> tuple[Tensor, Tensor]:
    """Return two sources, or one with static shapes, and their mask."""
    rows, tokens = (2, EXAMPLE_SOURCE) if sizes.source is None else (1, sizes.source)
    device = student.module.embed.weight.device
    ids_BS = (torch.arange(rows * tokens, device=device) % student.facts.vocab).view(rows, tokens)
    return ids_BS, torch.ones_like(ids_BS)


def _example_past(room: int | None) -> int:
    return EXAMPLE_PAST if room is None else min(EXAMPLE_PAST, room - 1)


def _example_caches(student: EncDecStudent, ids_BS: Tensor, mask_BS: Tensor, room: int | None) -> list[Tensor]:
    """Return keys and values of a source, and of a few decoder tokens."""
    model, past = student.module, _example_past(room)
    with torch.no_grad():
        source = model.encode(ids_BS, mask_BS, model.opened())
        _, own = model.decode(
            (ids_BS[:, :1] + torch.arange(past, device=ids_BS.device)) % student.facts.vocab, mask_BS, source
        )
    if room is not None:
        own = [(pad(k, (0, 0, 0, room - past)), pad(v, (0, 0, 0, room - past))) for k, v in own]
    return [tensor for caches in (source, own) for cache in caches for tensor in cache]


def _facts(student: EncDecStudent, sizes: _Sizes) -> dict[str, Any]:
    facts = student.facts
    return {
        "family": "encdec",
        "layers": facts.decoder,
        "vocab": facts.vocab,
        "cache": [facts.layer.kv_heads, facts.layer.head_dim],
        **{key: value for key, value in asdict(sizes).items() if value is not None},
        "eos": list(facts.eos),
        "facts": facts.to_json(),
        "start": "the decoder begins with the prompt's last token, which the encoder does not read",
    }
