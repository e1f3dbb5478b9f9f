"""Every prefix of the learners against the module that they replace.

Legend: B samples, L positions, N learners, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch import Batch, Objective, Tap
from xarch.matching.objectives.dense import counted, total, wide


class Prefixes(Objective):
    """1/(N D) Σ_n ‖h(z, n) − o‖² at every position, with h(z, n) the first n learners at the teacher's input z and o
    the teacher's output (stage 1)."""

    accepts = frozenset({("BLND", "BLD")})
    units = "squared value"
    _left: Tensor | None = None

    @classmethod
    def masks(cls, student: Tap, layout: str) -> bool:
        return layout in ("B", "BL")

    def forward(
        self, student: Tensor, teacher: Tensor, batch: Batch, *, mask: Tensor | None = None, **aux: object
    ) -> Tensor:
        error_BLN = (wide(student) - wide(teacher)[:, :, None]).square().mean(-1)
        if self.monitored:
            with torch.no_grad():
                self._left = error_BLN.flatten(0, 1).mean(0) / wide(teacher).square().mean().clamp_min(1e-30)
        return total(error_BLN.mean(-1), mask)

    def weight(self, batch: Batch, target: object = None, *, mask: Tensor | None = None) -> Tensor:
        return counted(batch, mask)

    def monitor(self) -> dict[str, float]:
        """Return the squared error left after each learner, relative to the output."""
        return {} if self._left is None else {f"error.{n}": float(v) for n, v in enumerate(self._left, 1)}
