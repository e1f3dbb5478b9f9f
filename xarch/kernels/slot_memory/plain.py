"""The memory in plain PyTorch: one step after another, vectorised over sequences and heads.

Legend: B batch, L tokens, H heads, K key/value heads, E head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.kernels.dispatch import register
from xarch.kernels.precision import island_dtype
from xarch.kernels.slot_memory.layout import MemoryLayout
from xarch.kernels.slot_memory.step import Rotary, slot_memory_step
from xarch.kernels.slot_memory.tables import MemoryTables, memory_tables
from xarch.kernels.token_scan import over_tokens


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
    tables: MemoryTables | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Arguments and results of :func:`xarch.kernels.slot_memory`; always with the state.

    Args:
        tables: those of ``layout``, where a caller has them.
    """
    if q_BLHE.shape[1] == 0:
        return torch.zeros_like(q_BLHE), state
    if tables is None:
        tables = memory_tables(layout, island_dtype(q_BLHE, *state), q_BLHE.device)

    def step(
        q_BHE: Tensor, k_BKE: Tensor, v_BKE: Tensor, t_B: Tensor, held: tuple[Tensor, ...], *tables: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        return slot_memory_step(q_BHE, k_BKE, v_BKE, t_B, layout, rotary, held, MemoryTables(*tables))

    return over_tokens(step, (q_BLHE, k_BLKE, v_BLKE, positions_BL), state, tables)
