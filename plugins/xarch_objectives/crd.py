"""Contrastive representation distillation.

Legend: B samples, D features, E features of the embedding, N samples of the data, M negatives.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from xarch import Batch, MatchContext, Options, PlanError
from xarch.matching.objectives.dense import FAINTEST, features
from xarch_objectives.banks import Banks
from xarch_objectives.relations import SampleObjective


class CRDOptions(Options):
    """Options of ``crd``."""

    width: int = Field(128, ge=1, le=1 << 14, description="features of the embeddings")
    negatives: int = Field(16384, ge=1, le=1 << 24, description="samples of other classes; at most those there are")
    temperature: float = Field(0.07, gt=0)
    momentum: float = Field(0.5, ge=0, lt=1, description="of the banks")


class CRD(SampleObjective):
    """Noise contrast between a sample's embedding on one side and a bank of embeddings of the other: with
    h = exp(e · b / τ) / Z, −log(h / (h + M/N)) of its own entry b − Σ log((M/N) / (h + M/N)) of M entries of other
    classes, both ways (Tian et al., arXiv 1910.10699). Banks [N, E] and Z are in checkpoints. At first Z is what random
    directions give, from the first step on what that step measured (theirs: its own batch).

    Takes ``aux: {index: batch:index, labels: labels}``; the index is the sample's number, below N.
    """

    Options = CRDOptions
    units = "nats"
    couples = "batch"

    def __init__(self, student: Any, teacher: Any, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        total = int(context.data.get("indices", 0))
        if not total:
            raise PlanError(f"matches.{context.match}: crd requires data that number their samples (`indices`)")
        widths = [features(tap) or 1 for tap in (self.student_tap, self.teacher_tap)]
        self.heads = nn.ModuleList(nn.Linear(width, options.width) for width in widths)
        self.banks = Banks(total, options.width, options.temperature)
        self._last: tuple[Tensor, ...] = ()

    def forward(  # type: ignore[override]
        self, student: Any, teacher: Any, batch: Batch, *, index: Tensor, labels: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        own, other = self.vectors(student, self.student_tap, mask), self.vectors(teacher, self.teacher_tap, mask)
        own, other = (
            F.normalize(head(x), dim=1, eps=FAINTEST) for head, x in zip(self.heads, (own, other), strict=True)
        )
        label_B, present_B = labels.argmax(-1) if labels.ndim > 1 else labels.long(), self.weight(batch, mask=mask)
        drawn_BM = self.banks.draw(index, self.options.negatives)
        counts_BM = (self.banks.classes[drawn_BM] != label_B[:, None]) & (drawn_BM != index[:, None])
        share_B1 = counts_BM.sum(1, keepdim=True).clamp_min(1) / len(self.banks.classes)
        loss_B, means = torch.zeros_like(own[:, 0]), []
        for number, (e_BE, bank) in enumerate(((own, self.banks.other), (other, self.banks.own))):
            near_BN = e_BE @ bank.to(e_BE).T
            near = near_BN.gather(1, torch.cat([index[:, None], drawn_BM], 1)) / self.options.temperature
            h = near.exp() / self.banks.scale[number]
            means.append(near.detach().exp().mean() * len(bank))
            loss_B = loss_B - (h[:, 0] / (h[:, 0] + share_B1[:, 0])).log()
            loss_B = loss_B - ((share_B1 / (h[:, 1:] + share_B1)).log() * counts_BM).sum(1)
        if self.training:
            self._last = (present_B, torch.stack(means), index, label_B, own.detach(), other.detach())
        return loss_B * present_B.to(loss_B)

    def after_step(self) -> None:
        if self._last:
            present_B, means, *seen = self._last
            index, label, own, other = (value[present_B > 0] for value in seen)
            self.banks.update(index, label, own, other, self.options.momentum)
            self.banks.rescale(means)
            self._last = ()
