"""A causal decoder with interchangeable sequence mixers; everything else matches the teacher.

Parameter names are the family's canonical names (``embed.weight``, ``blocks.3.norm1.weight``, ``norm.weight``), with
mixers at ``blocks.3.mixers.KIND``.

Legend: B batch, L tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from xarch import PlanError, Sink
from xarch_decoder.factored import FactoredLogits
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.block import Block, MixerFactory
from xarch_decoder.model.layers import Head, make_norm
from xarch_decoder.model.mixer import Mixer, SequenceInfo, StateSpec

States = tuple[tuple[Tensor, ...], ...]
"""State tensors of every layer, each with the batch in dimension 0."""


@dataclass
class Probe:
    """What to read while the decoder runs.

    Attributes:
        wanted: full tap names.
        sink: receives each value as soon as it exists.
        active: layer -> mixer kind to run instead of the active one.
        start: (layer, residual stream [B, L, D] entering it): start there instead of at the embedding.
    """

    wanted: frozenset[str]
    sink: Sink
    active: Mapping[int, str] = field(default_factory=dict)
    start: tuple[int, Tensor] | None = None

    def leaves(self, layer: int) -> frozenset[str]:
        """Return the leaf names wanted from a block."""
        prefix = f"blocks.{layer}."
        return frozenset(name.removeprefix(prefix) for name in self.wanted if name.startswith(prefix))


class MixerDecoder(nn.Module):
    """Embedding, blocks, final norm, head.

    Args:
        facts: the architecture.
        mixers: mixer factories of each layer; the first one of a layer is active.

    Raises:
        ValueError: ``mixers`` does not have one entry per layer.
    """

    def __init__(self, facts: DecoderFacts, mixers: Sequence[Sequence[MixerFactory]]) -> None:
        super().__init__()
        if len(mixers) != facts.layers:
            raise ValueError(f"got {len(mixers)} lists of mixers for {facts.layers} layers")
        self.facts = facts
        self.embed = nn.Embedding(facts.vocab, facts.width)
        self.blocks = nn.ModuleList([Block(facts, i, factories) for i, factories in enumerate(mixers)])
        self.norm = make_norm(facts)
        self.head = Head(facts)

    def block(self, layer: int) -> Block:
        """Return block ``layer``."""
        found = self.blocks[layer]
        assert isinstance(found, Block)
        return found

    def keep(self, layer: int, kind: str) -> None:
        """Drop every mixer of ``layer`` except ``kind``."""
        self.block(layer).keep(kind)

    @property
    def head_weight(self) -> Tensor:
        """Return the output projection [V, D]: the embedding if the two are tied."""
        return self.embed.weight if self.head.weight is None else self.head.weight

    def forward(self, input_ids_BL: Tensor, segment_ids_BL: Tensor | None = None) -> Tensor:
        """Return logits [B, L, V]."""
        sequence = make_sequence(input_ids_BL, segment_ids_BL)
        x_BLD = self._embedded(input_ids_BL)
        for block in self.blocks:
            x_BLD = block(x_BLD, sequence)
        return self.head(self.norm(x_BLD), self.head_weight)

    def read(self, input_ids_BL: Tensor, segment_ids_BL: Tensor | None, probe: Probe) -> None:
        """Run and push the values that ``probe`` wants; stop after the last one."""
        sequence = make_sequence(input_ids_BL, segment_ids_BL)
        leaves = [probe.leaves(i) for i in range(self.facts.layers)]
        tail = probe.wanted & {"final", "logits"}
        last = self.facts.layers if tail else max((i for i, names in enumerate(leaves) if names), default=-1)
        first, x_BLD = probe.start or (0, self._embedded(input_ids_BL))
        x_BLD = x_BLD.to(self.embed.weight.dtype)
        for layer in range(first, min(last + 1, self.facts.layers)):

            def push(leaf: str, value: object, layer: int = layer) -> None:
                probe.sink(f"blocks.{layer}.{leaf}", value)

            kind, whole = probe.active.get(layer), layer < last
            x_BLD = self.blocks[layer](x_BLD, sequence, kind, leaves[layer], push, whole)
        if tail:
            final_BLD = self.norm(x_BLD)
            if "final" in tail:
                probe.sink("final", final_BLD)
            if "logits" in tail:
                probe.sink("logits", self.logits(final_BLD))

    def logits(self, final_BLD: Tensor) -> FactoredLogits:
        """Return the logits of normalised hidden states."""
        return FactoredLogits(final_BLD, self.head_weight, self.head.bias, self.head.softcap)

    def advance(
        self, input_ids_BL: Tensor, position: int | Tensor, states: States, *, fixed: bool = False, last: bool = False
    ) -> tuple[Tensor, States]:
        """Process L more tokens of one document; return (logits [B, L, V], new states).

        Args:
            position: number of tokens already in ``states``, an int or an int64 tensor [1].
            states: from :meth:`initial_states` or an earlier call.
            fixed: growing states are buffers of fixed length (see ``Mixer.advance_fixed``).
            last: return logits of the last token only, [B, 1, V].
        """
        every = self.fold_every
        if every is None:
            return self._advanced(input_ids_BL, position, states, fixed, last)
        logits: list[Tensor] = []
        begin = int(position)
        end = begin + input_ids_BL.shape[1]
        while begin < end:
            size = every if begin % every == 0 and end - begin >= every else 1
            if begin % every == 0:
                states = self.fold(begin, states)
            part_BL = input_ids_BL[:, begin - end :][:, :size]
            found_BLV, states = self._advanced(part_BL, begin, states, fixed, last)
            logits, begin = [found_BLV] if last else [*logits, found_BLV], begin + part_BL.shape[1]
        return torch.cat(logits, 1), states

    @property
    def fold_every(self) -> int | None:
        """Tokens after which states need :meth:`fold`, None if no mixer puts work off.

        Raises:
            PlanError: mixers disagree.
        """
        found = {mixer.fold_every for mixer in self._active() if mixer.fold_every is not None}
        if len(found) > 1:
            raise PlanError(f"layers fold after {sorted(found)} tokens", "give all of them the same `fold`")
        return next(iter(found), None)

    def fold(self, position: int, states: States) -> States:
        """Return the states that a token at ``position``, a multiple of :attr:`fold_every`, reads."""
        found = []
        for mixer, state in zip(self._active(), states, strict=True):
            if mixer.fold_every is not None:
                state = mixer.fold(torch.full((1,), position, device=state[0].device), state)
            found.append(state)
        return tuple(found)

    def _active(self) -> list[Mixer]:
        return [self.block(layer).mixer() for layer in range(self.facts.layers)]

    def _advanced(
        self, input_ids_BL: Tensor, position: int | Tensor, states: States, fixed: bool, last: bool
    ) -> tuple[Tensor, States]:
        positions_BL = places(input_ids_BL, position)
        x_BLD = self._embedded(input_ids_BL)
        out: list[tuple[Tensor, ...]] = []
        for layer, state in enumerate(states):
            x_BLD, state = self.block(layer).advance(x_BLD, positions_BL, state, fixed=fixed)
            out.append(state)
        if last and x_BLD.shape[1] > 1:
            x_BLD = x_BLD[:, -1:]
        return self.head(self.norm(x_BLD), self.head_weight), tuple(out)

    def state_specs(self) -> tuple[tuple[StateSpec, ...], ...]:
        """Return the state specifications of the active mixers, by layer."""
        return tuple(self.block(i).mixer().state_spec() for i in range(self.facts.layers))

    def initial_states(self, batch: int = 1, *, length: int = 0) -> States:
        """Return the states before the first token of a document.

        Growing states (caches) hold ``length`` entries in the weights' dtype. All others are float32 unless their mixer
        says otherwise, because a recurrence in half precision stops decaying (a state multiplied by 0.999 rounds back
        to itself).
        """
        weight = self.embed.weight

        def tensor(spec: StateSpec) -> Tensor:
            dtype = torch.float32 if spec.axis is None else weight.dtype
            dtype = dtype if spec.dtype is None else getattr(torch, spec.dtype)
            return torch.full(spec.sized(batch, length), spec.fill, dtype=dtype, device=weight.device)

        return tuple(tuple(tensor(spec) for spec in specs) for specs in self.state_specs())

    def _embedded(self, input_ids_BL: Tensor) -> Tensor:
        return embedded(self.embed, self.facts.embed_gain, input_ids_BL)


def embedded(embed: nn.Embedding, gain: float, input_ids_BL: Tensor) -> Tensor:
    """Return the hidden states of tokens [B, L, D]."""
    x_BLD = embed(input_ids_BL)
    return x_BLD if gain == 1.0 else x_BLD * gain


def places(input_ids_BL: Tensor, position: int | Tensor) -> Tensor:
    """Return the positions [B, L] of tokens in their document, of which ``position`` came before them."""
    # A constant tensor rather than arange: it becomes an initializer, not a Range node.
    steps_L = torch.tensor(list(range(input_ids_BL.shape[1])), device=input_ids_BL.device)
    positions_BL = (steps_L + position)[None]
    return positions_BL.expand(input_ids_BL.shape) if input_ids_BL.shape[0] > 1 else positions_BL


def make_sequence(input_ids_BL: Tensor, segment_ids_BL: Tensor | None) -> SequenceInfo:
    """Return positions that restart with every document in a row."""
    place_BL = torch.arange(input_ids_BL.shape[1], device=input_ids_BL.device).expand(input_ids_BL.shape)
    if segment_ids_BL is None:
        return SequenceInfo(place_BL)
    starts_BL = torch.zeros_like(place_BL)
    fresh_BL = segment_ids_BL[:, 1:] != segment_ids_BL[:, :-1]
    starts_BL[:, 1:] = torch.where(fresh_BL, place_BL[:, 1:], 0)
    return SequenceInfo(place_BL - starts_BL.cummax(1).values, segment_ids_BL)
