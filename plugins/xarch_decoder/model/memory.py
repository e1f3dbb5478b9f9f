"""The teacher's attention over a cache of constant size: sinks, a window and slots, one softmax.

Legend: B batch, L tokens, D width, H heads, K key/value heads, E head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.kernels import MemoryLayout, slot_memory
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.bounded import BoundedAttention
from xarch_decoder.model.mixer import SequenceInfo, StateSpec


class MemoryAttention(BoundedAttention):
    """Attention with the teacher's weights that sees what ``layout`` keeps. See :func:`xarch.kernels.slot_memory`.

    Args:
        layout: sizes, the same for every key/value head, and precision.

    Raises:
        PlanError: the layer's memory is constant already.
    """

    kind = "memory"

    def __init__(self, facts: DecoderFacts, layer: int, *, layout: MemoryLayout) -> None:
        super().__init__(facts, layer)
        self.layout = layout

    def remember(self, q_BLHE: Tensor, k_BLKE: Tensor, v_BLKE: Tensor, sequence: SequenceInfo) -> Tensor:
        heads_BLHE = slot_memory(q_BLHE, k_BLKE, v_BLKE, sequence.positions_BL, self.layout, self.rotary)
        assert isinstance(heads_BLHE, Tensor)
        return heads_BLHE

    def state_spec(self) -> tuple[StateSpec, ...]:
        return tuple(
            StateSpec(name, shape, dtype=str(dtype).removeprefix("torch."))
            for name, (shape, dtype) in self.layout.state(self.kv_heads, self.head_dim).items()
        )

    def advance(
        self, x_BLD: Tensor, positions_BL: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        operands = self.operands(x_BLD, SequenceInfo(positions_BL))
        found = slot_memory(*operands, positions_BL, self.layout, self.rotary, state=state, return_final_state=True)
        heads_BLHE, state = found
        assert torch.is_tensor(heads_BLHE)
        return self.o(heads_BLHE.flatten(2)), tuple(state)
