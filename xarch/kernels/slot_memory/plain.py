"""The memory in plain PyTorch: one step after another, vectorised over sequences and heads.

Legend: B batch, L tokens, H heads, K key/value heads, E head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.kernels.dispatch import register
from xarch.kernels.slot_memory.layout import MemoryLayout
from xarch.kernels.slot_memory.step import Rotary, slot_memory_step


@register("slot_memory", "torch", priority=10)
def slot_memory_plain(
    q_BLHE: Tensor,
    k_BLKE: Tensor,
    v_BLKE: Tensor,
    positions_BL: Tensor,
    layout: MemoryLayout,
    rotary: Rotary,
    *,
    state: tuple[Tensor, ...],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Arguments and results of :func:`xarch.kernels.slot_memory`; always with the state."""
    rows: list[Tensor] = []
    for t in range(q_BLHE.shape[1]):
        heads_BHE, state = slot_memory_step(
            q_BLHE[:, t], k_BLKE[:, t], v_BLKE[:, t], positions_BL[:, t], layout, rotary, state
        )
        rows.append(heads_BHE)
    return torch.stack(rows, 1) if rows else torch.zeros_like(q_BLHE), state
