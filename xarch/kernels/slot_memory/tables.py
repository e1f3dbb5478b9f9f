"""The sizes of a layout as tensors: graphs of layouts that differ in nothing else consist of the same operators.

Legend: K key/value heads, P exact entries, M slots of all heads, R longest window, N = 2 + slots of the largest head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from xarch.kernels.slot_memory.layout import MemoryLayout


class MemoryTables(NamedTuple):
    """What a step needs to know of the sizes of a layout."""

    exact_own_KP: Tensor
    """1 where an exact entry belongs to the head."""
    exact_age_P: Tensor
    """Tokens since the entry of a full window arrived, -1 for sinks."""
    window_K: Tensor
    """Entries of the head's window."""
    slots_K: Tensor
    """Its slots."""
    oldest_K: Tensor
    """Place of its oldest window entry among the exact entries, int64."""
    slot_own_KM: Tensor
    """1 where a slot belongs to the head."""
    slot_place_M: Tensor
    """Place of a slot among those of its head."""
    slot_window_M: Tensor
    """Window of a slot's head."""
    slot_index_M: Tensor
    """Place of a slot among all, int64."""
    slot_last_1: Tensor
    """M, int64: the place of the leaving token among the candidates."""
    reach_age_R: Tensor
    """Tokens since the entry of a longest, full window arrived: R - 1 ... 0."""
    reach_place_KR: Tensor
    """Place of such an entry of the head among the exact entries, int64; beyond a shorter window that of its oldest."""
    slot_order_N: Tensor
    """0 ... N - 1."""
    slot_take_KN: Tensor
    """Place of a slot of the head among all, int64; beyond its slots that of another one."""
    slot_leaving_1: Tensor
    """N - 2, int64: the place of the leaving token beside the slots of the largest head."""


SIZES: dict[str, dict[int, str]] = {
    "exact_keys": {1: "exact"},
    "exact_values": {1: "exact"},
    "exact_facts": {2: "exact"},
    "exact_own_KP": {1: "exact"},
    "exact_age_P": {0: "exact"},
    "slot_keys": {1: "slot"},
    "slot_values": {1: "slot"},
    "slot_facts": {2: "slot"},
    "slot_own_KM": {1: "slot"},
    "slot_place_M": {0: "slot"},
    "slot_window_M": {0: "slot"},
    "slot_index_M": {0: "slot"},
    "reach_age_R": {0: "reach"},
    "reach_place_KR": {1: "reach"},
    "slot_order_N": {0: "most"},
    "slot_take_KN": {1: "most"},
}
"""Batched tensor of the state, or table -> axis -> which number of entries it has: P "exact", M "slot", R "reach" or N
"most"."""


def shared_sizes(layout: MemoryLayout, name: str) -> Mapping[int, str]:
    """Return the entry of :data:`SIZES` if graphs of this layout can serve others, too.

    Exporters take sizes below 2 for constants.
    """
    return SIZES.get(name, {}) if min(max(layout.windows), layout.slot_total) >= 2 else {}


def memory_tables(layout: MemoryLayout, dtype: torch.dtype, device: torch.device | str = "cpu") -> MemoryTables:
    """Return the tables of a layout; those of numbers have ``dtype``."""

    def table(values: list[float] | list[list[float]]) -> Tensor:
        # From Python numbers: exporters make it an initializer, where arange would become a node.
        return torch.tensor(values, dtype=dtype, device=device)

    def own(owners: list[int]) -> Tensor:
        return table([[float(owner == j) for owner in owners] for j in range(layout.heads)])

    sinks = layout.heads * layout.sinks
    exact_owners = [j for j in range(layout.heads) for _ in range(layout.sinks)]
    exact_owners += [j for j, w in enumerate(layout.windows) for _ in range(w)]
    slot_owners = [j for j, m in enumerate(layout.slots) for _ in range(m)]
    reach, most = max(layout.windows), max(layout.slots) + 2
    windows = zip(layout.windows, layout.window_starts, strict=True)
    oldest = [[start + max(0, w - reach + i) for i in range(reach)] for w, start in windows]
    taken = [[min(start + i, max(layout.slot_total - 1, 0)) for i in range(most)] for start in layout.slot_starts]
    return MemoryTables(
        own(exact_owners),
        table([-1.0] * sinks + [float(w - 1 - i) for w in layout.windows for i in range(w)]),
        table([float(w) for w in layout.windows]),
        table([float(m) for m in layout.slots]),
        torch.tensor(layout.window_starts, device=device),
        own(slot_owners),
        table([float(i) for m in layout.slots for i in range(m)]),
        table([float(layout.windows[j]) for j in slot_owners]),
        torch.tensor(list(range(layout.slot_total)), dtype=torch.int64, device=device),
        torch.tensor([layout.slot_total], device=device),
        table([float(reach - 1 - i) for i in range(reach)]),
        torch.tensor(oldest, dtype=torch.int64, device=device),
        table([float(i) for i in range(most)]),
        torch.tensor(taken, dtype=torch.int64, device=device),
        torch.tensor([most - 2], device=device),
    )
