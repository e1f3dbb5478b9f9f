"""Relations instead of values: DIST.

Legend: B samples, P positions, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor

from xarch import Batch, Options
from xarch.matching.objectives.correlation import pearson
from xarch.matching.objectives.dense import PairObjective, total
from xarch_objectives.labelled import agreement


class DISTOptions(Options):
    """Options of ``dist``."""

    inter: float = Field(2.0, ge=0, description="weight β of the correlation over classes, in every position")
    intra: float = Field(2.0, ge=0, description="weight γ of the correlation over the batch, of every class")
    temperature: float = Field(1.0, gt=0, description="softens both sides; the loss is scaled by its square")


class DIST(PairObjective):
    """T² [β (1 − ρ(q, p)) + γ (1 − mean_k ρ(q_k, p_k))], with Pearson's correlation ρ of p = softmax(t/T) and
    q = softmax(s/T) over the classes of a position, and over all positions of the batch for class k (Huang et al.,
    arXiv 2205.10536)."""

    Options = DISTOptions
    units = "1 - correlation"
    couples = "batch"

    def forward(self, student: Any, teacher: Any, batch: Batch, *, mask: Tensor | None = None, **aux: Any) -> Tensor:
        student_BPK, teacher_BPK, mask_BP = self.sides(student, teacher, mask)
        q_BPK, p_BPK = ((z / self.options.temperature).softmax(-1) for z in (student_BPK, teacher_BPK))
        inter_BP = 1 - pearson(q_BPK, p_BPK, q_BPK.new_ones(q_BPK.shape[-1]))
        intra = (1 - pearson(q_BPK.flatten(0, 1).T, p_BPK.flatten(0, 1).T, mask_BP.flatten())).mean()
        each_BP = self.options.inter * inter_BP + self.options.intra * intra
        return total(each_BP * self.options.temperature**2, mask)

    def figures(self, student_BPF: Tensor, teacher_BPF: Tensor, mask_BP: Tensor) -> Mapping[str, Tensor]:
        return agreement(student_BPF, teacher_BPF, mask_BP)
