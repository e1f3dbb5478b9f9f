"""Batch: the unit of data passed from a data provider through teacher and student to the objectives."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

CHANGED = "changed"
"""Key of ``Batch.meta``: a batch step changed data tensors, so ``sample_id`` no longer identifies their content."""


@dataclass
class Batch:
    """Named tensors that share their first dimension.

    Attributes:
        tensors: name -> tensor; dimension 0 is the sample. A family defines the names that its models read. Data may
            add ``sample_id`` [B] int64, which identifies a sample and its augmentation, and ``index`` [B] int64, the
            number of a sample whatever its augmentation. A *view* for one side only is named ``NAME@teacher`` or
            ``NAME@student`` (``NAME@MODEL`` for one of several teachers); :meth:`seen_by` resolves it.
        units: number of budget units (tokens, images, rays) in it.
        meta: facts that are not tensors (e.g. the origin of the samples).
    """

    tensors: dict[str, Tensor]
    units: int
    meta: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return next(iter(self.tensors.values())).shape[0] if self.tensors else 0

    @property
    def device(self) -> torch.device:
        """Device of its tensors."""
        return next(iter(self.tensors.values())).device

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def get(self, name: str) -> Tensor | None:
        """Return the tensor called ``name``, or None."""
        return self.tensors.get(name)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with every tensor on ``device``."""
        return Batch({k: v.to(device) for k, v in self.tensors.items()}, self.units, self.meta)

    def seen_by(self, *sides: str) -> Batch:
        """Return the batch as a side ("teacher", "student" or a model's name) sees it: ``NAME@side`` replaces ``NAME``.
        Of several sides, the first one that the batch has views for counts, else the last."""
        side = next((s for s in sides if s and any(k.endswith("@" + s) for k in self.tensors)), sides[-1])
        plain = {k: v for k, v in self.tensors.items() if "@" not in k}
        own = {k.split("@")[0]: v for k, v in self.tensors.items() if k.endswith("@" + side)}
        return Batch({**plain, **own}, self.units, self.meta)

    def replace(self, **tensors: Tensor) -> Batch:
        """Return the batch with these tensors added or replaced; units per sample are kept."""
        made = Batch({**self.tensors, **tensors}, self.units, self.meta)
        if tensors and len(next(iter(tensors.values()))) != len(self):
            raise ValueError("replace() keeps the number of samples; create a new Batch to change it")
        return made

    def narrow(self, start: int, stop: int) -> Batch:
        """Return samples ``start`` to ``stop`` (exclusive), with their share of the units."""
        total = len(self)
        share = self.units * (stop - start) // max(total, 1)
        return Batch({k: v[start:stop] for k, v in self.tensors.items()}, share, self.meta)

    def split(self, parts: int) -> list[Batch]:
        """Split into at most ``parts`` non-empty batches of nearly equal size, in order."""
        total = len(self)
        parts = min(parts, total)
        if parts <= 1:
            return [self]
        edges = [total * i // parts for i in range(parts + 1)]
        return [self.narrow(a, b) for a, b in pairwise(edges)]
