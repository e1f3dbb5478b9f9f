"""The teacher's attention over a memory of constant size that is folded every few tokens.

Legend: B batch, L tokens, D width, H heads, K key/value heads, G heads that share one, E head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch import PlanError
from xarch.kernels import (
    FoldedLayout,
    FoldedRanges,
    FoldedTables,
    fold_memory,
    folded_memory,
    folded_memory_step,
    folded_tables,
    state_sizes,
    table_sizes,
)
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.bounded import BoundedAttention
from xarch_decoder.model.mixer import SequenceInfo, StateSpec, Table

READ = ("keys", "values", "bias")
WRITTEN = ("keys", "values", "query")
"""Parts of the state that a single token reads and changes."""

SPAN = 8.0
"""Largest number of 8 bits in standard deviations of a channel, as long as nothing is measured."""


class FoldedAttention(BoundedAttention):
    """Attention with the teacher's weights that sees what ``layout`` keeps. See :func:`xarch.kernels.folded_memory`.

    Args:
        layout: sizes of every key/value head, and precision.

    Raises:
        PlanError: the layout does not fit the decoder's heads, or the layer's memory is constant already.
    """

    kind = "folded"

    def __init__(self, facts: DecoderFacts, layer: int, *, layout: FoldedLayout) -> None:
        super().__init__(facts, layer)
        if layout.heads != facts.kv_heads:
            raise PlanError(f"layer {layer}: a memory of {layout.heads} heads for {facts.kv_heads} key/value heads")
        self.layout = layout
        shape = (self.kv_heads, self.head_dim)
        self.register_buffer("key_scale", torch.zeros(shape))
        self.register_buffer("value_scale", torch.zeros(shape))
        self.register_buffer("query_square", torch.zeros(self.kv_heads, self.heads // self.kv_heads))

    @property
    def fold_every(self) -> int:  # type: ignore[override]
        return self.layout.fold

    @property
    def ranges(self) -> FoldedRanges:
        """What was measured of keys, values and queries."""
        return FoldedRanges(
            self.get_buffer("key_scale"), self.get_buffer("value_scale"), self.get_buffer("query_square")
        )

    def set_ranges(self, ranges: FoldedRanges) -> None:
        """Copy what was measured into the buffers."""
        for own, measured in zip(self.ranges, ranges, strict=True):
            own.copy_(measured)

    @torch.no_grad()
    def estimate_ranges(self, gain_D: Tensor) -> None:
        """Set ranges from the weights alone, as if the block's normed stream had independent channels.

        Args:
            gain_D: of the norm before this mixer.
        """
        key_KE, value_KE, query_HE = (
            (layer.weight.float() * gain_D.float()).square().sum(1).unflatten(0, (-1, self.head_dim))
            for layer in (self.k, self.v, self.q)
        )
        if self.q_norm is not None and self.k_norm is not None:
            key_KE = self.k_norm.weight.float().square().expand_as(key_KE)
            query_HE = self.q_norm.weight.float().square().expand_as(query_HE)
        pairs = len(self.frequencies)
        turned = key_KE[:, :pairs] + key_KE[:, pairs : 2 * pairs]
        key_KE = torch.cat([turned, turned, key_KE[:, 2 * pairs :]], 1)
        key_KE, value_KE = (SPAN * square.sqrt().clamp_min(1e-6) / 127 for square in (key_KE, value_KE))
        self.set_ranges(FoldedRanges(key_KE, value_KE, query_HE.sum(1).unflatten(0, (self.kv_heads, -1))))

    def remember(self, q_BLHE: Tensor, k_BLKE: Tensor, v_BLKE: Tensor, sequence: SequenceInfo) -> Tensor:
        return folded_memory(q_BLHE, k_BLKE, v_BLKE, sequence.positions_BL, self.layout, self.rotary, self.ranges)

    def state_spec(self) -> tuple[StateSpec, ...]:
        return tuple(
            StateSpec(
                name,
                held.shape,
                held.fill,
                str(held.dtype).removeprefix("torch."),
                state_sizes(name),
                read=name in READ,
                written=name in WRITTEN,
                rows=self.kv_heads,
                padding=held.padding,
            )
            for name, held in self.layout.state(self.head_dim, self.heads // self.kv_heads).items()
        )

    def tables(self) -> tuple[Table, ...]:
        made = folded_tables(self.layout, torch.float32, self.o.weight.device)
        return tuple(Table(f"folded_{name}", tensor, table_sizes(name)) for name, tensor in made._asdict().items())

    def advance(
        self, x_BLD: Tensor, positions_BL: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.advance_sized(x_BLD, positions_BL, state, ())

    def advance_sized(
        self, x_BLD: Tensor, positions_BL: Tensor, state: tuple[Tensor, ...], tables: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        operands = self.operands(x_BLD, SequenceInfo(positions_BL))
        heads_BLHE, state = folded_memory_step(
            *operands,
            positions_BL,
            self.layout,
            self.rotary,
            self.ranges,
            state,
            FoldedTables(*tables) if tables else None,
        )
        return self.o(heads_BLHE.flatten(2)), state

    def fold(
        self, positions_B: Tensor, state: tuple[Tensor, ...], tables: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, ...]:
        return fold_memory(
            positions_B, self.layout, self.rotary, self.ranges, state, FoldedTables(*tables) if tables else None
        )
