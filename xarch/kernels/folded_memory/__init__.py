"""Attention over a memory of constant size that is folded every few tokens: a window, and slots of merged keys and
values; one softmax.

Legend: B batch, L tokens, H heads, K key/value heads, G heads that share one, E head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.errors import UsageError
from xarch.kernels.bounded_attention import Rotary, check_operands
from xarch.kernels.dispatch import select
from xarch.kernels.folded_memory import cpp, naive, plain
from xarch.kernels.folded_memory.layout import (
    FoldedLayout,
    FoldedPrecision,
    FoldedRanges,
    entry_cost,
)
from xarch.kernels.folded_memory.step import fold_memory, folded_memory_step
from xarch.kernels.folded_memory.tables import (
    FoldedTables,
    folded_tables,
    state_sizes,
    table_sizes,
)
from xarch.kernels.precision import tracing, without_autocast

__all__ = [
    "FoldedLayout",
    "FoldedPrecision",
    "FoldedRanges",
    "FoldedTables",
    "cpp",
    "entry_cost",
    "fold_memory",
    "folded_memory",
    "folded_memory_state",
    "folded_memory_step",
    "folded_tables",
    "naive",
    "plain",
    "state_sizes",
    "table_sizes",
]


def folded_memory(
    q_BLHE: Tensor,
    k_BLKE: Tensor,
    v_BLKE: Tensor,
    positions_BL: Tensor,
    layout: FoldedLayout,
    rotary: Rotary,
    ranges: FoldedRanges,
    *,
    backend: str | None = None,
) -> Tensor:
    """Attend from every token to slots and to what came after the last fold, and before it within the window.

    Before every token whose position p is a multiple of F = ``layout.fold``, except the first, what every entry
    received from the last token is added to its importance, which decays by ``decay ** F``; then the F oldest tokens
    leave the window. Of slots and these, the F least important are merged into what remains, each into the entry with
    the nearest key, all at once: keys (before their rotation), values and positions become means over tokens, the
    spread u the mean squared distance from the mean key, counts n and importance add. First tokens stay as they are.
    Then tokens attend, with one softmax, to

        tokens:  scale q · k
        slots:   scale q · R(p) k + ln n + min(scale² E|q|² u / (2 E), cap)

    Args:
        q_BLHE, k_BLKE: rotated queries and keys; head h reads key/value head ``h // (H // K)``.
        v_BLKE: values.
        positions_BL: places in the document, consecutive; 0 begins one, and every row begins with one. For exporters
            and on the meta device every row is one document.
        layout: sizes and precision.
        rotary: the rotation that q and k have had, and the scale of scores.
        ranges: of keys and values, and E|q|².
        backend: force a backend, see :mod:`xarch.kernels.dispatch`.

    Returns:
        heads [B, L, H, E] in the dtype of ``q_BLHE``. Gradients flow through everything but choices, importance and
        rounding, which they pass.

    Raises:
        UsageError: shapes do not fit together, or the backend cannot run the call.
    """
    check_operands("folded_memory", q_BLHE, k_BLKE, v_BLKE, positions_BL, layout.heads, rotary)
    if q_BLHE.shape[1] and not _unseen(positions_BL) and bool((positions_BL[:, 0] != 0).any()):
        raise UsageError("folded_memory: every row begins with a document, so its first position is 0")
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in (q_BLHE, k_BLKE, v_BLKE))
    features = ["gradients"] if learns else []
    chosen = select("folded_memory", q_BLHE.device, q_BLHE.dtype, features=features, backend=backend)
    with without_autocast(q_BLHE.device):
        begins = None if _unseen(positions_BL) else (positions_BL == 0).nonzero().tolist()
        if begins is None or len(begins) <= q_BLHE.shape[0]:
            found: Tensor = chosen.run(q_BLHE, k_BLKE, v_BLKE, layout, rotary, ranges)
            return found
        ends = [after if row == other else q_BLHE.shape[1] for (row, _), (other, after) in _pairs(begins)]
        parts: list[list[Tensor]] = [[] for _ in q_BLHE]
        for (row, begin), end in zip(begins, ends, strict=True):
            own = [x[row : row + 1, begin:end] for x in (q_BLHE, k_BLKE, v_BLKE)]
            parts[row].append(chosen.run(*own, layout, rotary, ranges))
        return torch.cat([torch.cat(row, 1) for row in parts])


def folded_memory_state(
    layout: FoldedLayout,
    batch: int,
    width: int,
    group: int,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, ...]:
    """Return the state before the first token, in the order of ``layout.state``.

    Args:
        width, group: E and G.
        dtype: of what the layout calls float32; float64 for reference results.
    """
    tensors = layout.state(width, group).values()
    kinds = [dtype if tensor.dtype == torch.float32 else tensor.dtype for tensor in tensors]
    return tuple(
        torch.full((batch * layout.heads, *tensor.shape), tensor.fill, dtype=kind, device=device)
        for tensor, kind in zip(tensors, kinds, strict=True)
    )


def _unseen(positions: Tensor) -> bool:
    """Whether values cannot be looked at: rows are then one document each."""
    return tracing() or positions.is_meta


def _pairs(begins: list[list[int]]) -> list[tuple[list[int], list[int]]]:
    return list(zip(begins, [*begins[1:], [-1, -1]], strict=True))
