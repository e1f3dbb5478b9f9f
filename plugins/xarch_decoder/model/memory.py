"""The teacher's attention over a memory of constant size: sinks, a window and slots, one softmax.

Legend: B batch, L tokens, D width, H heads, K key/value heads, E head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.kernels import (
    MemoryLayout,
    MemoryTables,
    memory_tables,
    shared_sizes,
    slot_memory,
    slot_memory_step,
)
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.bounded import BoundedAttention
from xarch_decoder.model.mixer import SequenceInfo, StateSpec, Table


class MemoryAttention(BoundedAttention):
    """Attention with the teacher's weights that sees what ``layout`` keeps. See :func:`xarch.kernels.slot_memory`.

    Args:
        layout: sizes of every key/value head, and precision.

    Raises:
        PlanError: the layout does not fit the decoder's heads.
    """

    kind = "memory"

    def __init__(self, facts: DecoderFacts, layer: int, *, layout: MemoryLayout) -> None:
        super().__init__(facts, layer, heads=layout.heads)
        self.layout = layout

    def remember(self, q_BLHE: Tensor, k_BLKE: Tensor, v_BLKE: Tensor, sequence: SequenceInfo) -> Tensor:
        heads_BLHE = slot_memory(q_BLHE, k_BLKE, v_BLKE, sequence.positions_BL, self.layout, self.rotary)
        assert isinstance(heads_BLHE, Tensor)
        return heads_BLHE

    def state_spec(self) -> tuple[StateSpec, ...]:
        return tuple(
            StateSpec(name, shape, dtype=str(dtype).removeprefix("torch."), sizes=shared_sizes(self.layout, name))
            for name, (shape, dtype) in self.layout.state(self.head_dim).items()
        )

    def tables(self) -> tuple[Table, ...]:
        made = memory_tables(self.layout, torch.float32, self.o.weight.device)._asdict()
        shared = any(shared_sizes(self.layout, name) for name in made)
        return tuple(Table(f"memory_{n}", t, shared_sizes(self.layout, n)) for n, t in made.items()) if shared else ()

    def advance_sized(
        self, x_BLD: Tensor, positions_BL: Tensor, state: tuple[Tensor, ...], tables: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        known = MemoryTables(*tables) if tables else None
        q_BLHE, k_BLKE, v_BLKE = self.operands(x_BLD, SequenceInfo(positions_BL))
        if x_BLD.shape[1] == 1:
            given = (q_BLHE[:, 0], k_BLKE[:, 0], v_BLKE[:, 0], positions_BL[:, 0])
            heads_BHE, state = slot_memory_step(*given, self.layout, self.rotary, state, known)
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
            tables=known,
        )
        heads_BLHE, state = found
        assert torch.is_tensor(heads_BLHE)
        return self.o(heads_BLHE.flatten(2)), tuple(state)
