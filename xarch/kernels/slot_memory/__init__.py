"""Attention over a memory of constant size: first tokens, a window, and slots of merged keys and values; one softmax.

Legend: B batch, L tokens, H heads, K key/value heads, E head width, F rotated pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xarch.errors import UsageError
from xarch.kernels.bounded_attention import Rotary, check_operands
from xarch.kernels.dispatch import select
from xarch.kernels.precision import island_dtype, without_autocast
from xarch.kernels.slot_memory import cpp, naive, plain
from xarch.kernels.slot_memory.layout import ExactPrecision, MemoryLayout, SlotPrecision, entry_bytes, slot_bytes
from xarch.kernels.slot_memory.step import slot_memory_step
from xarch.kernels.slot_memory.tables import MemoryTables, memory_tables, shared_sizes

__all__ = [
    "ExactPrecision",
    "MemoryLayout",
    "MemoryTables",
    "Rotary",
    "SlotPrecision",
    "cpp",
    "entry_bytes",
    "memory_tables",
    "naive",
    "plain",
    "shared_sizes",
    "slot_bytes",
    "slot_memory",
    "slot_memory_state",
    "slot_memory_step",
]


def slot_memory(
    q_BLHE: Tensor,
    k_BLKE: Tensor,
    v_BLKE: Tensor,
    positions_BL: Tensor,
    layout: MemoryLayout,
    rotary: Rotary,
    *,
    state: Sequence[Tensor] | None = None,
    return_final_state: bool = False,
    tables: MemoryTables | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, tuple[Tensor, ...]]:
    """Attend from every token to sinks, window and slots, updating them token by token.

    At each token, what leaves the window of a head is written to its slots: to a free one, or as ``layout.write``
    says. A merge of b (the least important, n_b tokens) into a (the nearest key) takes f = n_b / (n_a + n_b):
    key, value and position become means, u = (1 - f) u_a + f u_b + f (1 - f) |k_a - k_b|², counts and importance add.
    Keys are compared and averaged before their rotation. Then the token attends to all, itself included, by

        exact entries:  scale q · k
        slots:          scale q · R(p) k + ln n + min(scale² |q|² u / (2 E), cap)

    and every entry's importance becomes decay · importance + the attention of all heads that share it.

    Args:
        q_BLHE, k_BLKE: rotated queries and keys; head h reads key/value head ``h // (H // K)``.
        v_BLKE: values.
        positions_BL: places in the document, consecutive from 0, or from what ``state`` holds; 0 begins a document.
        layout: sizes and precision; one size per key/value head.
        rotary: the rotation that q and k have had, and the scale of scores.
        state: what :func:`slot_memory_state` or an earlier call returned; None before the first token.
        return_final_state: also return the state after the last token.
        tables: those of ``layout``. With them the operators that an exporter records do not depend on its sizes, which
            must then be those of ``state``.
        backend: force a backend, see :mod:`xarch.kernels.dispatch`.

    Returns:
        heads [B, L, H, E] in the dtype of ``q_BLHE``, and the state where asked for. Gradients flow through everything
        but the choice of slots, rounding, and stored states.

    Raises:
        UsageError: shapes do not fit together, or the backend cannot run the call.
    """
    check_operands("slot_memory", q_BLHE, k_BLKE, v_BLKE, positions_BL, layout.heads, rotary)
    if state is None:
        dtype = island_dtype(q_BLHE, k_BLKE, v_BLKE)
        state = slot_memory_state(layout, q_BLHE.shape[0], q_BLHE.shape[3], device=q_BLHE.device, dtype=dtype)
    if tables is None:
        _check_state(state, layout, q_BLHE)
    given = (q_BLHE, k_BLKE, v_BLKE, *state)
    features: set[str] = set()
    if torch.is_grad_enabled() and any(t.requires_grad for t in given):
        features.add("gradients")
    if tables is not None:
        features.add("tables")
    chosen = select("slot_memory", q_BLHE.device, q_BLHE.dtype, features=features, backend=backend)
    with without_autocast(q_BLHE.device):
        own = {} if tables is None else {"tables": tables}
        y_BLHE, after = chosen.run(q_BLHE, k_BLKE, v_BLKE, positions_BL, layout, rotary, state=tuple(state), **own)
    return (y_BLHE, after) if return_final_state else y_BLHE


def slot_memory_state(
    layout: MemoryLayout,
    batch: int,
    width: int,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, ...]:
    """Return the state before the first token, in the order of ``layout.state``.

    Args:
        dtype: of what the layout calls float32; float64 for reference results.
    """
    return tuple(
        torch.zeros(batch, *shape, dtype=dtype if kind == torch.float32 else kind, device=device)
        for shape, kind in layout.state(width).values()
    )


def _check_state(state: Sequence[Tensor], layout: MemoryLayout, q: Tensor) -> None:
    wanted = {name: (q.shape[0], *shape) for name, (shape, _) in layout.state(q.shape[3]).items()}
    found = [tuple(t.shape) for t in state]
    if found != list(wanted.values()):
        raise UsageError(f"slot_memory: the state has shapes {found}, want {wanted}")
