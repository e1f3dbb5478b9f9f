"""One decoder block: norms, one of several sequence mixers, MLP; its inner values can be tapped.

Legend: B batch, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from torch import Tensor, nn

from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.layers import MLP, make_norm
from xarch_decoder.model.mixer import Mixer, SequenceInfo

MixerFactory = Callable[[DecoderFacts, int], Mixer]
"""Builds the mixer of one layer, e.g. a mixer class whose constructor takes (facts, layer)."""

Push = Callable[[str, Any], None]
"""Called with (leaf tap name, value)."""


class Block(nn.Module):
    """Pre-norm block whose mixer is chosen among ``mixers`` by name; ``active`` is the one that runs.

    Args:
        facts: the decoder.
        layer: index of the block.
        factories: mixer factories of the block, one per kind; the first one is active.
    """

    def __init__(self, facts: DecoderFacts, layer: int, factories: Sequence[MixerFactory]) -> None:
        super().__init__()
        self.parallel = facts.block == "parallel"
        self.norm1 = make_norm(facts)
        self.norm2 = None if facts.shared_norm else make_norm(facts)
        self.mlp = MLP(facts)
        built = [factory(facts, layer) for factory in factories]
        if len({m.kind for m in built}) != len(built) or not built:
            raise ValueError(f"layer {layer}: mixers need distinct kinds, got {[m.kind for m in built]}")
        self.mixers = nn.ModuleDict({m.kind: m for m in built})
        self.active = built[0].kind

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the kinds of mixers in this block."""
        return tuple(self.mixers)

    def mixer(self, kind: str | None = None) -> Mixer:
        """Return the mixer of a kind, by default the active one.

        Raises:
            ValueError: the block has no such mixer.
        """
        kind = self.active if kind is None else kind
        if kind not in self.mixers:
            raise ValueError(f"no mixer {kind!r} in this block; it has {', '.join(self.mixers)}")
        found = self.mixers[kind]
        assert isinstance(found, Mixer)
        return found

    def keep(self, kind: str) -> None:
        """Drop every other mixer and make ``kind`` the active one."""
        self.mixers = nn.ModuleDict({kind: self.mixer(kind)})
        self.active = kind

    def forward(
        self,
        x_BLD: Tensor,
        sequence: SequenceInfo,
        kind: str | None = None,
        wanted: Collection[str] = (),
        push: Push | None = None,
        whole: bool = True,
    ) -> Tensor | None:
        """Return the output of the block [B, L, D].

        Args:
            kind: mixer to run instead of the active one.
            wanted: leaf names of taps handed to ``push`` as soon as they exist.
            whole: if False, compute only the wanted taps; the result is None if the block stopped early.
        """
        ahead = set(wanted)

        def give(leaf: str, value: Any) -> None:
            if leaf in ahead and push is not None:
                push(leaf, value)
            ahead.discard(leaf)

        give("input", x_BLD)
        if not whole and not ahead:
            return None
        normed_BLD = self.norm1(x_BLD)
        give("mixer_in", normed_BLD)
        if not whole and not ahead:
            return None
        mixer = self.mixer(kind)
        mixes = whole or bool(ahead & {"mixer_out", "output"})
        mixed_BLD: Tensor | None = None
        inside = ahead - {"mixer_out", "output"}
        if inside:
            layouts = mixer.inner_layouts()
            together = {"mixer_out"} if mixes and "mixer_out" in layouts else set()
            values = mixer.inner(normed_BLD, sequence, inside | together)
            mixed_BLD = values.pop("mixer_out", None)
            for leaf in [name for name in layouts if name in inside]:
                give(leaf, values.pop(leaf))
        if not mixes:
            return None
        if mixed_BLD is None:
            mixed_BLD = mixer(normed_BLD, sequence)
        give("mixer_out", mixed_BLD)
        if not whole and not ahead:
            return None
        output_BLD = self.close(x_BLD, normed_BLD, mixed_BLD)
        give("output", output_BLD)
        return output_BLD

    def advance(
        self,
        x_BLD: Tensor,
        positions_BL: Tensor,
        state: tuple[Tensor, ...],
        tables: tuple[Tensor, ...] = (),
        *,
        fixed: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Process L more tokens from ``state``; return (output [B, L, D], new state).

        Args:
            tables: the mixer's, for a graph that is to learn sizes from them.
        """
        normed_BLD = self.norm1(x_BLD)
        mixer = self.mixer()
        if tables:
            mixed_BLD, state = mixer.advance_sized(normed_BLD, positions_BL, state, tables)
        else:
            step = mixer.advance_fixed if fixed else mixer.advance
            mixed_BLD, state = step(normed_BLD, positions_BL, state)
        return self.close(x_BLD, normed_BLD, mixed_BLD), state

    def close(self, x_BLD: Tensor, normed_BLD: Tensor, mixed_BLD: Tensor) -> Tensor:
        """Run the rest of the block after the mixer."""
        after_BLD = x_BLD + mixed_BLD
        read_BLD = x_BLD if self.parallel else after_BLD
        if self.norm2 is not None:
            normed_BLD = self.norm2(read_BLD)
        elif not self.parallel:
            normed_BLD = self.norm1(read_BLD)
        return after_BLD + self.mlp(normed_BLD)
