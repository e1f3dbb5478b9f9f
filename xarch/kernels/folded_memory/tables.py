"""The sizes of a layout as tensors: graphs of layouts that differ in nothing else consist of the same operators.

Legend: K key/value heads, N slots of the largest head, C its entries, n and w slots and window of any other, F tokens
of a fold.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from xarch.kernels.folded_memory.layout import FoldedLayout


class FoldedTables(NamedTuple):
    """What the operators need to know of the sizes of a layer's heads. Places count through all rows of a sequence."""

    places_N: Tensor
    """0 … N - 1, int64."""
    ages_KC: Tensor
    """Place of every entry behind the oldest that waits for a fold; below -w for slots, from F on for nothing."""
    waiting_KC: Tensor
    """Which of F tokens of its row an entry is that waits, int64."""
    slots_KN: Tensor
    """Which entry a slot is, int64; slots that a head lacks come first."""
    lacking_KN: Tensor
    """True for these."""
    oldest_KF: Tensor
    """Which entries are the next to leave the window, int64."""
    made_KC: Tensor
    """Where every entry comes from after a fold, int64: from N slots, or from C entries before it, behind them."""
    windows_K: Tensor
    """w."""
    before_K: Tensor
    """n + w, int32: entries in use at a fold."""
    entries_1: Tensor
    """C, int32."""
    firsts_K: Tensor
    """First of N + F candidates of every row, int64."""
    kept_KC: Tensor
    """Where every entry lies among F merged entries and C entries, int64."""


def folded_tables(layout: FoldedLayout, dtype: torch.dtype, device: torch.device | str = "cpu") -> FoldedTables:
    """Return the tables of a layout; those of numbers have ``dtype``."""
    fold, most, entries = layout.fold, max(layout.slots), max(layout.entries)
    sizes = list(enumerate(zip(layout.slots, layout.windows, strict=True)))

    # From Python numbers: exporters make it an initializer, where arange would become a node.
    def table(values: list[list[int]], kind: torch.dtype = torch.int64) -> Tensor:
        return torch.tensor(values, dtype=kind, device=device)

    def made(row: int, slots: int, window: int) -> list[int]:
        first, kept = row * (most + entries), range(slots, slots + window)
        found = [first + most - slots + i for i in range(slots)]
        # what waits is overwritten before it is read
        return found + [first + most + i + fold * (i in kept) for i in range(slots, entries)]

    return FoldedTables(
        torch.tensor(list(range(most)), device=device),
        torch.tensor([[float(i - n - w) for i in range(entries)] for _, (n, w) in sizes], dtype=dtype, device=device),
        table([[k * fold + min(max(i - n - w, 0), fold - 1) for i in range(entries)] for k, (n, w) in sizes]),
        table([[k * entries + max(i - (most - n), 0) for i in range(most)] for k, (n, _) in sizes]),
        table([[i < most - n for i in range(most)] for _, (n, _) in sizes], torch.bool),
        table([[k * entries + n + i for i in range(fold)] for k, (n, _) in sizes]),
        table([made(k, n, w) for k, (n, w) in sizes]),
        torch.tensor([float(w) for w in layout.windows], dtype=dtype, device=device),
        torch.tensor([n + w for _, (n, w) in sizes], dtype=torch.int32, device=device),
        torch.tensor([entries], dtype=torch.int32, device=device),
        torch.tensor([k * (most + fold) for k, _ in sizes], device=device),
        table([[k * (fold + entries) + fold + i for i in range(entries)] for k, _ in sizes]),
    )


def table_sizes(name: str) -> dict[int, str]:
    """Return axis -> name of the size of a table in which layouts may differ."""
    if name == "places_N":
        return {0: "slots"}
    return {1: "slots"} if name.endswith("_KN") else {1: "entries"} if name.endswith("_KC") else {}


def state_sizes(name: str) -> dict[int, str]:
    """Return axis -> name of the size of a batched tensor of the state in which layouts may differ."""
    axes = {"keys": 2, "values": 2, "bias": 3, "importance": 1, "facts": 2}
    return {axes[name]: "slots" if name == "facts" else "entries"} if name in axes else {}
