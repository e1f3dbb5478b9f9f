"""ONNX graphs of a decoder student: ``prefill_T`` reads T tokens at once, ``decode_1`` one token.

Both take the recurrent states and return the updated ones, so a prompt takes a few prefill calls followed by decode
calls, without padding. A prefill graph returns the logits of its last position, from which a program samples.

Legend: L tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from xarch import Chain, ExportGraph, Link, Options, PlanError, Profile
from xarch_decoder.model.block import Block
from xarch_decoder.model.decoder import MixerDecoder, embedded, places
from xarch_decoder.model.mixer import StateSpec
from xarch_decoder.student import DecoderStudent

EXAMPLE_PAST = 5
"""Tokens in the example states. Tracing treats sizes 0 and 1 as constants, so it must be at least 2."""

PAST = "past"
"""Name of the free dimension of growing states."""

Tokens = Annotated[int, Field(ge=1, le=1 << 20)]


class DecoderExport(Options):
    """Export options of a decoder student."""

    prefill: list[Tokens] = Field(
        default=[64], max_length=64, description="tokens per call, one graph each; empty: decode only"
    )
    logits: Literal["last", "all"] = Field(
        "last", description="positions whose logits a prefill call returns; `all` computes the head for each of them"
    )
    context: int | None = Field(
        None,
        ge=2,
        le=1 << 24,
        description="cache capacity in tokens for static shapes; default the teacher's, at most 1024",
    )


@dataclass(frozen=True)
class GraphState:
    """One state tensor of the exported graphs."""

    layer: int
    spec: StateSpec

    @property
    def name(self) -> str:
        """Return the input name, e.g. ``ssm_state.3``."""
        return f"{self.spec.name}.{self.layer}"

    @property
    def present(self) -> str:
        """Return the output name, e.g. ``present_ssm_state.3``."""
        return f"present_{self.name}"


class _Enter(nn.Module):
    """Maps (input_ids [1, L], position [1]) to (hidden states [1, L, D], positions [1, L])."""

    def __init__(self, decoder: MixerDecoder) -> None:
        super().__init__()
        self.embed, self.gain = decoder.embed, decoder.facts.embed_gain

    def forward(self, input_ids_1L: Tensor, position_1: Tensor) -> tuple[Tensor, Tensor]:
        return embedded(self.embed, self.gain, input_ids_1L), places(input_ids_1L, position_1)


class _Step(nn.Module):
    """Maps (hidden states, positions, a block's states, its tables) to (hidden states, new states)."""

    def __init__(self, block: Block, states: int, *, fixed: bool) -> None:
        super().__init__()
        self.block, self.states, self.fixed = block, states, fixed

    def forward(self, x_1LD: Tensor, positions_1L: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        state, tables = given[: self.states], given[self.states :]
        x_1LD, state = self.block.advance(x_1LD, positions_1L, state, tables, fixed=self.fixed)
        return (x_1LD, *state)


class _Leave(nn.Module):
    """Maps hidden states to logits [1, L, V], or [1, 1, V] if ``last``."""

    def __init__(self, decoder: MixerDecoder, *, last: bool) -> None:
        super().__init__()
        self.norm, self.head, self.last = decoder.norm, decoder.head, last
        self.embed = decoder.embed if decoder.head.weight is None else None

    def forward(self, x_1LD: Tensor) -> Tensor:
        if self.last and x_1LD.shape[1] > 1:
            x_1LD = x_1LD[:, -1:]
        weight_VD = self.head.weight if self.embed is None else self.embed.weight
        assert weight_VD is not None
        return self.head(self.norm(x_1LD), weight_VD)


def step_chain(decoder: MixerDecoder, *, fixed: bool, last: bool) -> Chain:
    """Return ``decoder.advance`` as a chain of embedding, blocks and head.

    It maps (input_ids [1, L], position [1], states by layer) to (logits, new states), with logits [1, L, V], or
    [1, 1, V] if ``last``.
    """
    states = list(graph_states(decoder))
    links = [Link(_Enter(decoder), ["input_ids", "position"], ["hidden", "positions"])]
    hidden = "hidden"
    constants: dict[str, Tensor] = {}
    for layer in range(decoder.facts.layers):
        own = [state for state in states if state.layer == layer]
        tables = {f"{table.name}.{layer}": table for table in decoder.block(layer).mixer().tables()}
        reads = [hidden, "positions", *(state.name for state in own), *tables]
        sizes = {state.name: state.spec.sizes for state in own} | {name: t.sizes for name, t in tables.items()}
        constants |= {name: table.value for name, table in tables.items()}
        hidden = f"hidden.{layer}"
        step = _Step(decoder.block(layer), len(own), fixed=fixed)
        links.append(Link(step, reads, [hidden, *(state.present for state in own)], sizes if tables else {}))
    links.append(Link(_Leave(decoder, last=last), [hidden], ["logits"]))
    return Chain(
        decoder,
        links,
        inputs=["input_ids", "position", *(state.name for state in states)],
        outputs=["logits", *(state.present for state in states)],
        constants=constants,
    )


def graph_states(decoder: MixerDecoder) -> Iterator[GraphState]:
    """Yield the state tensors of the active mixers in the order in which graphs take them."""
    for layer, specs in enumerate(decoder.state_specs()):
        for spec in specs:
            yield GraphState(layer, spec)


def decoder_graphs(student: DecoderStudent, profile: Profile, chosen: DecoderExport) -> list[ExportGraph]:
    """Build ``decode_1`` and one ``prefill_T`` per size in ``chosen.prefill``.

    With a static profile, caches are buffers of ``context`` tokens; otherwise they grow from zero tokens.

    Raises:
        PlanError: a prefill size does not fit, or a mixer does not support static shapes.
    """
    context = (chosen.context or min(student.facts.max_positions, 1024)) if profile.static else None
    sizes = sorted(set(chosen.prefill), reverse=True)
    wrong = [size for size in sizes if size < 2 or (context is not None and size > context)]
    if wrong:
        raise PlanError(
            f"export options: prefill {wrong} must lie between 2 and {context or 'the prompt length'}",
            "set `export.options.prefill` to the numbers of tokens to read per call, e.g. [64]",
        )
    return [_graph(student, size, sizes, context, chosen.logits) for size in (1, *sizes)]


def _graph(student: DecoderStudent, tokens: int, prefill: list[int], context: int | None, logits: str) -> ExportGraph:
    decoder, facts = student.decoder, student.facts
    states = list(graph_states(decoder))
    device = decoder.embed.weight.device
    ids = (torch.arange(EXAMPLE_PAST + tokens, device=device) % facts.vocab)[None]
    fixed = context is not None
    past = min(EXAMPLE_PAST, context - tokens) if context is not None else EXAMPLE_PAST
    with torch.no_grad():
        nested = decoder.initial_states(length=context or 0)
        if past:
            _, nested = decoder.advance(ids[:, :past], 0, nested, fixed=fixed)
    inputs = {"input_ids": ids[:, past : past + tokens], "position": torch.tensor([past], device=device)}
    inputs |= {state.name: tensor for state, tensor in zip(states, (t for s in nested for t in s), strict=True)}
    dynamic = {s.name: {s.spec.axis: PAST} for s in states if s.spec.axis is not None and not fixed}
    return ExportGraph(
        name="decode_1" if tokens == 1 else f"prefill_{tokens}",
        module=step_chain(decoder, fixed=fixed, last=logits == "last").eval(),
        inputs=inputs,
        outputs=["logits", *(state.present for state in states)],
        dynamic=dynamic,
        weight_only=True,
        metadata={
            "family": "decoder",
            "tokens": tokens,
            # A single token gains nothing from repacked weights; unpacked, they stay memory-mapped and shared.
            "prepack": tokens > 1,
            "prefill": prefill,
            "logits": logits,
            "context": context,
            "vocab": facts.vocab,
            "bos": facts.bos,
            "eos": list(facts.eos),
            "mixers": [decoder.block(i).active for i in range(facts.layers)],
            "facts": facts.to_json(),
            "position": "tokens already in the states",
            "states": [_described(state, inputs[state.name], context or 0) for state in states],
        },
    )


def _described(state: GraphState, example: Tensor, length: int) -> dict[str, Any]:
    """Describe how a program creates the initial state, ``full(shape, fill, dtype)``, and passes it on."""
    return {
        "name": state.name,
        "present": state.present,
        "shape": [1, *state.spec.sized(length)],
        "fill": state.spec.fill,
        "dtype": str(example.dtype).removeprefix("torch."),
        "tokens_axis": state.spec.axis,
    }
