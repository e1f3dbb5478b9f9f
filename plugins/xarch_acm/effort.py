"""Where a model computes: the share of all learners that ran at every position.

Legend: B samples, L positions, K choices of a gate.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from xarch import Sink
from xarch_acm.spent import Counted


class Effort:
    """Adds up the choices of all gates as a sink of the model's values; passes on what else was asked for. Of a model
    whose parts see positions of several sizes, it counts the parts that see as many as the first.

    Args:
        modules: path -> adaptive module. wanted: further taps. sink: receives these.

    Attributes:
        wanted: what to ask the model for.
    """

    def __init__(self, modules: Mapping[str, Counted], wanted: Collection[str], sink: Sink) -> None:
        self.modules, self.sink, self._further = modules, sink, set(wanted)
        self.choices = {f"{path}.choice": path for path in modules}
        self.wanted = {*self._further, *self.choices}
        self._ran: Tensor | None = None
        self._whole = 0.0

    def __call__(self, name: str, value: Any) -> None:
        if name in self._further:
            self.sink(name, value)
        if name not in self.choices:
            return
        module = self.modules[self.choices[name]]
        count_K = torch.arange(value.shape[-1], device=value.device, dtype=value.dtype) + module.least
        ran_BL = (value * count_K).sum(-1) * module.cost
        if self._ran is None or self._ran.shape == ran_BL.shape:
            self._ran = ran_BL if self._ran is None else self._ran + ran_BL
            self._whole += module.cost * module.learners

    def value(self) -> Tensor:
        """Return the share [B, L]."""
        assert self._ran is not None, "asked before the model ran"
        return self._ran / self._whole
