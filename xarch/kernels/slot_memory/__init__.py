"""Attention over a cache of constant size: first tokens, a window, and slots for tokens with much attention.

Legend: B batch, L tokens, H heads, K key/value heads, E head width.
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
from xarch.kernels.slot_memory.layout import ExactPrecision, MemoryLayout, SlotPrecision, entry_bytes

__all__ = [
    "ExactPrecision",
    "MemoryLayout",
    "Rotary",
    "SlotPrecision",
    "cpp",
    "entry_bytes",
    "naive",
    "plain",
    "slot_memory",
    "slot_memory_state",
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
    backend: str | None = None,
) -> Tensor | tuple[Tensor, tuple[Tensor, ...]]:
    """Attend from every token to sinks, window and slots, updating them token by token.

    At each token, what leaves the window of a head takes one of its slots: a free one, or else that of the least
    important slot, unless its own importance is smaller still; then it is dropped. The token attends to what is kept,
    itself included, and every entry's importance becomes decay · importance + the attention of all heads that share it.

    Args:
        q_BLHE, k_BLKE: rotated queries and keys; head h reads key/value head ``h // (H // K)``.
        v_BLKE: values.
        positions_BL: places in the document, consecutive from 0, or from what ``state`` holds; 0 begins a document.
        layout: sizes and precision.
        rotary: the rotation that q and k have had, and the scale of scores.
        state: what :func:`slot_memory_state` or an earlier call returned; None before the first token.
        return_final_state: also return the state after the last token.
        backend: force a backend, see :mod:`xarch.kernels.dispatch`.

    Returns:
        heads [B, L, H, E] in the dtype of ``q_BLHE``, and the state where asked for. Gradients flow through everything
        but the choice of slots, rounding, and stored states.

    Raises:
        UsageError: shapes do not fit together, or the backend cannot run the call.
    """
    check_operands("slot_memory", q_BLHE, k_BLKE, v_BLKE, positions_BL, None, rotary)
    heads, width = k_BLKE.shape[2:]
    if state is None:
        dtype = island_dtype(q_BLHE, k_BLKE, v_BLKE)
        state = slot_memory_state(layout, q_BLHE.shape[0], heads, width, device=q_BLHE.device, dtype=dtype)
    wanted = [(q_BLHE.shape[0], *shape) for shape, _ in layout.state(heads, width).values()]
    if (found := [tuple(t.shape) for t in state]) != wanted:
        raise UsageError(f"slot_memory: the state has shapes {found}, want {wanted}")
    given = (q_BLHE, k_BLKE, v_BLKE, *state)
    features = ["gradients"] if torch.is_grad_enabled() and any(t.requires_grad for t in given) else []
    chosen = select("slot_memory", q_BLHE.device, q_BLHE.dtype, features=features, backend=backend)
    with without_autocast(q_BLHE.device):
        y_BLHE, after = chosen.run(q_BLHE, k_BLKE, v_BLKE, positions_BL, layout, rotary, state=tuple(state))
    return (y_BLHE, after) if return_final_state else y_BLHE


def slot_memory_state(
    layout: MemoryLayout,
    batch: int,
    heads: int,
    width: int,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, ...]:
    """Return the state before the first token, in the order of ``layout.state``.

    Args:
        heads: K.
        dtype: of what the layout calls float32; float64 for reference results.
    """
    return tuple(
        torch.zeros(batch, *shape, dtype=dtype if kind == torch.float32 else kind, device=device)
        for shape, kind in layout.state(heads, width).values()
    )
