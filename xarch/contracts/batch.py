"""The unit of data that travels from a data provider through teacher and student to the objectives."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

CHANGED = "changed"
"""Key of ``Batch.meta``: a batch step changed tensors of the data, so ``sample_id`` no longer says what is in it."""


@dataclass
class Batch:
    """Named tensors that share their first dimension.

    Attributes:
        tensors: name -> tensor, dimension 0 is the sample. A family fixes the names that its models read. Data may
            add ``sample_id`` [B] int64, which identifies a sample together with its augmentation
            draw. A *view* for one side only is named ``NAME@teacher`` or ``NAME@student`` (``NAME@MODEL`` for one of
            several teachers); :meth:`seen_by` resolves it.
        units: how many units of the budget it is (tokens, images, rays).
        meta: facts that are not tensors (where the samples came from).
    """

    tensors: dict[str, Tensor]
    units: int
    meta: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return next(iter(self.tensors.values())).shape[0] if self.tensors else 0

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return next(iter(self.tensors.values())).device

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def get(self, name: str) -> Tensor | None:
        """The tensor called ``name`` or None."""
        return self.tensors.get(name)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on ``device``."""
        return Batch({k: v.to(device) for k, v in self.tensors.items()}, self.units, self.meta)

    def seen_by(self, side: str) -> Batch:
        """The batch as ``side`` ("teacher", "student" or a model's name) sees it: ``NAME@side`` replaces ``NAME``."""
        plain = {k: v for k, v in self.tensors.items() if "@" not in k}
        own = {k.split("@")[0]: v for k, v in self.tensors.items() if k.endswith("@" + side)}
        return Batch({**plain, **own}, self.units, self.meta)

    def replace(self, **tensors: Tensor) -> Batch:
        """The same batch with these tensors added or changed; units are kept per sample."""
        made = Batch({**self.tensors, **tensors}, self.units, self.meta)
        if tensors and len(next(iter(tensors.values()))) != len(self):
            raise ValueError("replace() keeps the number of samples; make a Batch to change it")
        return made

    def narrow(self, start: int, stop: int) -> Batch:
        """Samples ``start`` to ``stop`` (exclusive), with their share of the units."""
        total = len(self)
        share = self.units * (stop - start) // max(total, 1)
        return Batch({k: v[start:stop] for k, v in self.tensors.items()}, share, self.meta)

    def split(self, parts: int) -> list[Batch]:
        """At most ``parts`` non-empty batches of nearly equal size, in order."""
        total = len(self)
        parts = max(1, min(parts, total))
        edges = [total * i // parts for i in range(parts + 1)]
        return [self.narrow(a, b) for a, b in pairwise(edges)]
