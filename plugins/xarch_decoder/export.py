"""ONNX graphs of a decoder student: ``prefill_T`` reads T tokens at once, ``decode_1`` one token.

Both take the recurrent states and return the updated ones, so a prompt takes a few prefill calls followed by decode
calls, without padding. A prefill graph returns the logits of its last position, from which a program samples.

Where mixers put work off, ``fold`` does it: before another graph at every position that is a multiple of ``fold.every``
in the metadata, which is also the only size of a prefill graph. Each graph reads and gives only the states that it
needs; the others stay as they are.

Legend: L tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from xarch import Chain, ExportGraph, Link, Options, PlanError, Profile
from xarch_decoder.model.block import Block
from xarch_decoder.model.decoder import MixerDecoder, States, embedded, places
from xarch_decoder.model.mixer import StateSpec
from xarch_decoder.student import DecoderStudent

EXAMPLE_PAST = 5
"""Tokens in the example states. Tracing treats sizes 0 and 1 as constants, so it must be at least 2."""

PAST = "past"
"""Name of the free dimension of growing states."""

FOLD = "fold"
"""Name of the graph of folds."""

Tokens = Annotated[int, Field(ge=1, le=1 << 20)]


class DecoderExport(Options):
    """Export options of a decoder student."""

    prefill: list[Tokens] = Field(
        default=[64],
        max_length=64,
        description="tokens per call, one graph each; empty: decode only; a student that folds has its own size",
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
    """Maps (hidden states, positions, a block's states, its tables) to (hidden states, new states).

    Args:
        reads, gives: places of the states that it takes and returns among all of the block.
    """

    def __init__(self, block: Block, reads: list[int], gives: list[int], *, fixed: bool) -> None:
        super().__init__()
        self.block, self.reads, self.gives, self.fixed = block, reads, gives, fixed

    def forward(self, x_1LD: Tensor, positions_1L: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        known, tables = dict(zip(self.reads, given, strict=False)), given[len(self.reads) :]
        # What is not read is not looked at either.
        state = tuple(
            known[i] if i in known else x_1LD.new_zeros(spec.sized(1, 1))
            for i, spec in enumerate(self.block.mixer().state_spec())
        )
        x_1LD, state = self.block.advance(x_1LD, positions_1L, state, tables, fixed=self.fixed)
        return (x_1LD, *(state[i] for i in self.gives))


class _Fold(nn.Module):
    """Maps (position [1], a block's states, its tables) to those of its states that a fold changes."""

    def __init__(self, block: Block, states: int, gives: list[int]) -> None:
        super().__init__()
        self.block, self.states, self.gives = block, states, gives

    def forward(self, position_1: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        state = self.block.mixer().fold(position_1, given[: self.states], given[self.states :])
        return tuple(state[i] for i in self.gives)


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


def step_chain(decoder: MixerDecoder, tokens: int, *, fixed: bool, last: bool) -> Chain:
    """Return ``decoder.advance`` on so many tokens as a chain of embedding, blocks and head.

    It maps (input_ids [1, L], position [1], states by layer) to (logits, new states), with logits [1, L, V], or
    [1, 1, V] if ``last``, and the states of :func:`touched`.
    """
    reads, gives = touched(decoder, tokens)
    links = [Link(_Enter(decoder), ["input_ids", "position"], ["hidden", "positions"])]
    hidden = "hidden"
    constants: dict[str, Tensor] = {}
    for layer in range(decoder.facts.layers):
        block, own = decoder.block(layer), [s for s in graph_states(decoder) if s.layer == layer]
        read, given = ([i for i, state in enumerate(own) if state in some] for some in (reads, gives))
        tables, sizes = _tables(block, layer)
        constants |= tables
        sizes |= {own[i].name: own[i].spec.sizes for i in read} if tables else {}
        names = [hidden, "positions", *(own[i].name for i in read), *tables]
        hidden = f"hidden.{layer}"
        step = _Step(block, read, given, fixed=fixed)
        links.append(Link(step, names, [hidden, *(own[i].present for i in given)], sizes))
    links.append(Link(_Leave(decoder, last=last), [hidden], ["logits"]))
    return Chain(
        decoder,
        links,
        inputs=["input_ids", "position", *(state.name for state in reads)],
        outputs=["logits", *(state.present for state in gives)],
        constants=constants,
    )


def fold_chain(decoder: MixerDecoder) -> Chain:
    """Return ``decoder.fold`` as a chain of its blocks: it maps (position [1], states) to the states of :func:`touched`
    without tokens."""
    reads, gives = touched(decoder, 0)
    links: list[Link] = []
    constants: dict[str, Tensor] = {}
    for layer in sorted({state.layer for state in reads}):
        block, own = decoder.block(layer), [state for state in reads if state.layer == layer]
        given = [i for i, state in enumerate(own) if state in gives]
        tables, sizes = _tables(block, layer)
        constants |= tables
        sizes |= {state.name: state.spec.sizes for state in own} if tables else {}
        names = ["position", *(state.name for state in own), *tables]
        links.append(Link(_Fold(block, len(own), given), names, [own[i].present for i in given], sizes))
    return Chain(
        decoder,
        links,
        inputs=["position", *(state.name for state in reads)],
        outputs=[state.present for state in gives],
        constants=constants,
    )


def _tables(block: Block, layer: int) -> tuple[dict[str, Tensor], dict[str, Mapping[int, str]]]:
    """Return the tables of a block's mixer by name, and the sizes that they hold."""
    found = block.mixer().tables()
    named = {f"{table.name}.{layer}": table for table in found}
    return {name: t.value for name, t in named.items()}, {name: t.sizes for name, t in named.items()}


def touched(decoder: MixerDecoder, tokens: int) -> tuple[list[GraphState], list[GraphState]]:
    """Return the states that a graph of so many tokens reads, and those that it changes; without tokens, a fold's."""
    every = {i for i in range(decoder.facts.layers) if decoder.block(i).mixer().fold_every is not None}
    states = list(graph_states(decoder))
    if tokens:
        return (
            [s for s in states if s.layer not in every or s.spec.read],
            [s for s in states if s.layer not in every or s.spec.written],
        )
    # What tokens write and do not read is there for folds, which leave it alone.
    return [s for s in states if s.layer in every], [
        s for s in states if s.layer in every and (s.spec.read or not s.spec.written)
    ]


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
    every = student.decoder.fold_every
    default = chosen.prefill if every is None or "prefill" in chosen.model_fields_set else [every]
    sizes = sorted(set(default), reverse=True)
    wrong = [size for size in sizes if size < 2 or (context is not None and size > context)]
    if wrong:
        raise PlanError(
            f"export options: prefill {wrong} must lie between 2 and {context or 'the prompt length'}",
            "set `export.options.prefill` to the numbers of tokens to read per call, e.g. [64]",
        )
    if every is not None and set(sizes) - {every}:
        raise PlanError(
            f"export options: prefill {sizes}, but this student folds its memory after {every} tokens",
            f"leave out `export.options.prefill`, or set it to [{every}] or [] and the size by `student.options.fold`",
        )
    graphs = [_graph(student, profile, size, sizes, context, chosen.logits) for size in (1, *sizes)]
    return graphs if every is None else [*graphs, _fold_graph(student, every)]


def _graph(
    student: DecoderStudent, profile: Profile, tokens: int, prefill: list[int], context: int | None, logits: str
) -> ExportGraph:
    decoder, facts = student.decoder, student.facts
    device = decoder.embed.weight.device
    fixed, every = context is not None, decoder.fold_every
    past = min(EXAMPLE_PAST, context - tokens) if context is not None else EXAMPLE_PAST
    if every is not None and tokens > 1:
        # A piece begins where a fold does.
        past = 0
    ids, nested = _example(decoder, past, tokens, context)
    states = list(graph_states(decoder))
    examples = {state.name: tensor for state, tensor in zip(states, (t for s in nested for t in s), strict=True)}
    reads, gives = touched(decoder, tokens)
    inputs = {"input_ids": ids[:, past : past + tokens], "position": torch.tensor([past], device=device)}
    inputs |= {state.name: examples[state.name] for state in reads}
    dynamic = {s.name: {s.spec.axis: PAST} for s in reads if s.spec.axis is not None and not fixed}
    return ExportGraph(
        name="decode_1" if tokens == 1 else f"prefill_{tokens}",
        module=step_chain(decoder, tokens, fixed=fixed, last=logits == "last").eval(),
        inputs=inputs,
        outputs=["logits", *(state.present for state in gives)],
        dynamic=dynamic,
        counts={"position": PAST} if dynamic else {},
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
            "fold": None if every is None else {"graph": FOLD, "every": every},
            "states": [_described(state, examples[state.name], context, profile) for state in states],
            **_touched(reads, gives),
        },
    )


def _fold_graph(student: DecoderStudent, every: int) -> ExportGraph:
    decoder = student.decoder
    _, nested = _example(decoder, every, 0, None)
    examples = (tensor for state in nested for tensor in state)
    inputs = {s.name: t for s, t in zip(graph_states(decoder), examples, strict=True)}
    reads, gives = touched(decoder, 0)
    return ExportGraph(
        name=FOLD,
        module=fold_chain(decoder).eval(),
        inputs={
            "position": torch.tensor([every], device=decoder.embed.weight.device),
            **{state.name: inputs[state.name] for state in reads},
        },
        outputs=[state.present for state in gives],
        weight_only=True,
        metadata={"family": "decoder", "every": every, **_touched(reads, gives)},
    )


def _example(decoder: MixerDecoder, past: int, tokens: int, context: int | None) -> tuple[Tensor, States]:
    """Return tokens [1, past + tokens], and the states after ``past`` of them."""
    ids = (torch.arange(past + tokens, device=decoder.embed.weight.device) % decoder.facts.vocab)[None]
    with torch.no_grad():
        nested = decoder.initial_states(length=context or 0)
        if past:
            _, nested = decoder.advance(ids[:, :past], 0, nested, fixed=context is not None)
    return ids, nested


def _touched(reads: list[GraphState], gives: list[GraphState]) -> dict[str, list[str]]:
    """Describe which states a program passes in and takes out."""
    return {"reads": [state.name for state in reads], "gives": [state.name for state in gives]}


def _described(state: GraphState, example: Tensor, context: int | None, profile: Profile) -> dict[str, Any]:
    """Describe how a program creates the initial state, ``full(shape, fill, dtype)``, and passes it on. A size of -1 is
    room for as many tokens as it is going to hold."""
    room = state.spec.room and context is None and "runtime" in profile.lowerings
    return {
        "name": state.name,
        "present": state.present,
        "shape": list(state.spec.sized(1, -1 if room else context or 0)),
        "fill": state.spec.fill,
        "dtype": str(example.dtype).removeprefix("torch."),
        "tokens_axis": state.spec.axis,
    }
