"""Rows of tokens with document boundaries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from xarch import Batch


class Row:
    """A row being filled.

    Args:
        length: tokens of a full row.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.ids: list[int] = []
        self.segments: list[int] = []
        self.names: list[str] = []

    def add(self, ids: Sequence[int], start: int, name: str, *, new_document: bool) -> int:
        """Append as many of ``ids[start:]`` as fit; return the index of the first remaining one."""
        stop = min(len(ids), start + self.length - len(self.ids))
        if stop > start:
            if not self.names or new_document:
                self.names.append(name)
            self.segments += [len(self.names) - 1] * (stop - start)
            self.ids += ids[start:stop]
        return stop

    @property
    def full(self) -> bool:
        """Return whether the row is full."""
        return len(self.ids) == self.length


def to_batch(rows: Sequence[Row], *, cross_documents: bool) -> Batch:
    """Build a batch of ``input_ids`` and ``segment_ids``, int64 [rows, length]; units are tokens.

    Args:
        cross_documents: ignore document boundaries; ``segment_ids`` are all 0.
    """
    ids = torch.tensor([r.ids for r in rows], dtype=torch.int64)
    segments = torch.zeros_like(ids)
    if not cross_documents:
        segments = torch.tensor([r.segments for r in rows], dtype=torch.int64)
    meta: dict[str, Any] = {"documents": [r.names for r in rows]}
    return Batch({"input_ids": ids, "segment_ids": segments}, ids.numel(), meta)
