"""The teacher's attention over a memory of constant size: sinks, a window and slots, one softmax.

Legend: B batch, L tokens, D width, H heads, K key/value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from xarch import PlanError
from xarch.kernels import (
    MemoryLayout,
    MemoryTables,
    Rotary,
    memory_tables,
    shared_sizes,
    slot_memory,
    slot_memory_step,
)
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.attention import Attention
from xarch_decoder.model.mixer import SequenceInfo, StateSpec, Table


class MemoryAttention(Attention):
    """Attention with the teacher's weights that sees what ``layout`` keeps. See :func:`xarch.kernels.slot_memory`.

    Args:
        layout: sizes of every key/value head, and precision.

    Raises:
        PlanError: the layout does not fit the decoder's heads.
    """

    kind = "memory"

    def __init__(self, facts: DecoderFacts, layer: int, *, layout: MemoryLayout) -> None:
        super().__init__(facts, layer)
        if layout.heads != facts.kv_heads:
            raise PlanError(f"layer {layer}: a memory of {layout.heads} heads for {facts.kv_heads} key/value heads")
        if self.window is not None:
            raise PlanError(
                f"layer {layer} has a sliding window of {self.window} tokens: its memory is constant already",
                "leave this layer out of those that are replaced",
            )
        self.layout = layout
        self.rotary = Rotary(facts.inverse_frequencies, facts.rotary_gain, facts.scale, facts.softcap)

    def remember(self, q_BLHE: Tensor, k_BLKE: Tensor, v_BLKE: Tensor, sequence: SequenceInfo) -> Tensor:
        """Return the heads' outputs [B, L, H, E] over whole sequences."""
        heads_BLHE = slot_memory(q_BLHE, k_BLKE, v_BLKE, sequence.positions_BL, self.layout, self.rotary)
        assert isinstance(heads_BLHE, Tensor)
        return heads_BLHE

    def operands(self, x_BLD: Tensor, sequence: SequenceInfo) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated queries and keys, and values."""
        return *self._queries_keys(x_BLD, self._rotation(sequence)), self._values(x_BLD)

    def exact(self, q_BLHE: Tensor, k_BLKE: Tensor, v_BLKE: Tensor, sequence: SequenceInfo) -> Tensor:
        """Return the heads' outputs [B, L, H, E] of the attention that the memory stands for."""
        return self._attend(q_BLHE, k_BLKE, v_BLKE, self._mask(sequence))

    def forward(self, x_BLD: Tensor, sequence: SequenceInfo) -> Tensor:
        return self.o(self.remember(*self.operands(x_BLD, sequence), sequence).flatten(2))

    def inner(self, x_BLD: Tensor, sequence: SequenceInfo, wanted: Collection[str]) -> dict[str, Any]:
        q_BLHE, k_BLKE, v_BLKE = self.operands(x_BLD, sequence)
        values: dict[str, Any] = {"values": v_BLKE}
        if "heads" in wanted or "mixer_out" in wanted:
            values["heads"] = self.remember(q_BLHE, k_BLKE, v_BLKE, sequence)
            values["mixer_out"] = self.o(values["heads"].flatten(2))
        return {name: value for name, value in values.items() if name in wanted}

    def inner_layouts(self) -> dict[str, str]:
        return {"values": "BLKE", "heads": "BLHE", "mixer_out": "BLD"}

    def inner_shapes(self) -> dict[str, dict[str, int]]:
        return {"values": {"K": self.kv_heads, "E": self.head_dim}, "heads": {"H": self.heads, "E": self.head_dim}}

    def state_spec(self) -> tuple[StateSpec, ...]:
        return tuple(
            StateSpec(name, shape, dtype=str(dtype).removeprefix("torch."), sizes=shared_sizes(self.layout, name))
            for name, (shape, dtype) in self.layout.state(self.head_dim).items()
        )

    def tables(self) -> tuple[Table, ...]:
        made = memory_tables(self.layout, torch.float32, self.o.weight.device)._asdict()
        shared = any(shared_sizes(self.layout, name) for name in made)
        return tuple(Table(f"memory_{n}", t, shared_sizes(self.layout, n)) for n, t in made.items()) if shared else ()

    def advance(
        self, x_BLD: Tensor, positions_BL: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self._advanced(x_BLD, positions_BL, state, None)

    def advance_sized(
        self, x_BLD: Tensor, positions_BL: Tensor, state: tuple[Tensor, ...], tables: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self._advanced(x_BLD, positions_BL, state, MemoryTables(*tables))

    def _advanced(
        self, x_BLD: Tensor, positions_BL: Tensor, state: tuple[Tensor, ...], tables: MemoryTables | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        q_BLHE, k_BLKE, v_BLKE = self.operands(x_BLD, SequenceInfo(positions_BL))
        if x_BLD.shape[1] == 1:
            given = (q_BLHE[:, 0], k_BLKE[:, 0], v_BLKE[:, 0], positions_BL[:, 0])
            heads_BHE, state = slot_memory_step(*given, self.layout, self.rotary, state, tables)
            return self.o(heads_BHE.flatten(1)[:, None]), state
        found = slot_memory(
            q_BLHE,
            k_BLKE,
            v_BLKE,
            positions_BL,
            self.layout,
            self.rotary,
            state=state,
            return_final_state=True,
            tables=tables,
        )
        heads_BLHE, state = found
        assert torch.is_tensor(heads_BLHE)
        return self.o(heads_BLHE.flatten(2)), tuple(state)

    def advance_fixed(
        self, x_BLD: Tensor, positions_BL: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.advance(x_BLD, positions_BL, state)
