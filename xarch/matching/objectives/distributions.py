"""Divergence between the distributions over classes of two dense sides.

Legend: B samples, P positions, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from xarch.matching.objectives.dense import DenseObjective, opened, rows
from xarch.matching.objectives.divergence import DivergenceOptions, averaged, divergence


class KL(DenseObjective):
    """T² · KL(softmax(t/T) ‖ softmax(s/T)), or the reverse, or Jensen–Shannon (Hinton et al., arXiv 1503.02531).

    For several teachers it uses the weighted mean of their probabilities. Logs the arg-max agreement.
    """

    Options = DivergenceOptions
    units = "nats/position"
    ensembles = True

    def right(self, teacher: Any) -> Tensor:
        return _ensemble(teacher, self.teacher_tap, self.context.weights, self.options.temperature)

    def positions(self, student_BPF: Tensor, teacher_BPF: Tensor, mask_BP: Tensor) -> Tensor:
        softened = F.log_softmax(student_BPF / self.options.temperature, -1)
        return (
            divergence(teacher_BPF, softened, self.options.direction, self.options.share) * self.options.temperature**2
        )

    def figures(self, student_BPF: Tensor, teacher_BPF: Tensor, mask_BP: Tensor) -> Mapping[str, Tensor]:
        same_BP = (student_BPF.argmax(-1) == teacher_BPF.argmax(-1)).to(mask_BP.dtype)
        return {"agreement": (same_BP * mask_BP).sum() / mask_BP.sum().clamp_min(1)}


def _ensemble(value: Any, taps: Any, weights: Mapping[str, float], temperature: float) -> Tensor:
    """Return log-probabilities [B, P, K] of one teacher, or of the weighted mean of several."""
    if not isinstance(value, Mapping):
        return F.log_softmax(rows(opened(value), taps.layout) / temperature, -1)
    each = {name: rows(opened(z), taps[name].layout) for name, z in value.items()}
    return averaged(each, weights, temperature)
