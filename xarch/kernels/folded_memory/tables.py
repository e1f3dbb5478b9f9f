"""The sizes of a layout as tensors: graphs of layouts that differ in nothing else consist of the same operators.

Legend: N slots of a head, W its window, F tokens of a fold, C = N + W + F.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from xarch.kernels.folded_memory.layout import FoldedLayout


class HeadTables(NamedTuple):
    """What the operators of one head need to know of its sizes."""

    places_N: Tensor
    """0 … N - 1, int64."""
    newest_W: Tensor
    """Places of the tokens that a fold leaves in the window, int64: N + F … C - 1."""
    ages_W: Tensor
    """Their places in the document, from that of the next token: -W … -1."""
    slots_1: Tensor
    """N, int64."""
    window_1: Tensor
    """W."""
    before_1: Tensor
    """N + W, int32: entries in use at a fold."""


FoldedTables = tuple[HeadTables, ...]
"""Tables of every key/value head."""


def folded_tables(layout: FoldedLayout, dtype: torch.dtype, device: torch.device | str = "cpu") -> FoldedTables:
    """Return the tables of a layout; those of numbers have ``dtype``."""
    fold = layout.fold

    # From Python numbers: exporters make it an initializer, where arange would become a node.
    def whole(values: list[int], kind: torch.dtype = torch.int64) -> Tensor:
        return torch.tensor(values, dtype=kind, device=device)

    def numbers(values: list[int]) -> Tensor:
        return torch.tensor([float(v) for v in values], dtype=dtype, device=device)

    return tuple(
        HeadTables(
            whole(list(range(n))),
            whole(list(range(n + fold, n + w + fold))),
            numbers(list(range(-w, 0))),
            whole([n]),
            numbers([w]),
            whole([n + w], torch.int32),
        )
        for n, w in zip(layout.slots, layout.windows, strict=True)
    )


def table_sizes(name: str, head: int) -> dict[int, str]:
    """Return axis -> name of the size of a table of a head in which layouts may differ."""
    return {"places_N": {0: f"slots_{head}"}, "newest_W": {0: f"window_{head}"}, "ages_W": {0: f"window_{head}"}}.get(
        name, {}
    )


def state_sizes(name: str) -> dict[int, str]:
    """Return axis -> name of the size of a batched tensor of the state in which layouts may differ."""
    kind, _, head = name.partition("_")
    axes = {"keys": 2, "values": 2, "bias": 3, "importance": 1, "facts": 2}
    return {axes[kind]: f"{'slots' if kind == 'facts' else 'entries'}_{head}"} if kind in axes else {}
