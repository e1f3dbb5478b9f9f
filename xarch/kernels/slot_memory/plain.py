"""The memory in plain PyTorch, vectorised over sequences and heads, some tokens at a time.

Legend: B batch, L tokens, H heads, K key/value heads, E head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.kernels.bounded_attention import Rotary
from xarch.kernels.dispatch import register
from xarch.kernels.precision import island_dtype
from xarch.kernels.slot_memory.chunk import slot_memory_chunk
from xarch.kernels.slot_memory.layout import MemoryLayout
from xarch.kernels.slot_memory.tables import MemoryTables, memory_tables

TOKENS = 128
"""Tokens of a chunk: scores of exact entries are held for all of them."""


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
    rows = []
    for begin in range(0, q_BLHE.shape[1], TOKENS):
        cut = slice(begin, begin + TOKENS)
        given = (q_BLHE[:, cut], k_BLKE[:, cut], v_BLKE[:, cut], positions_BL[:, cut])
        row_BLHE, state = slot_memory_chunk(*given, layout, rotary, state, tables)
        rows.append(row_BLHE)
    return torch.cat(rows, 1) if len(rows) > 1 else rows[0], state
