"""Contrastive representation distillation.

Legend: B samples, D features, E features of the embedding, N samples of the data, M negatives.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from xarch import Batch, MatchContext, Options, PlanError
from xarch.matching.objectives.dense import FAINTEST, features
from xarch_objectives.relations import RelationObjective


class CRDOptions(Options):
    """Options of ``crd``."""

    width: int = Field(128, ge=1, le=1 << 14, description="features of the embeddings")
    negatives: int = Field(16384, ge=1, le=1 << 24, description="samples of other classes; at most those there are")
    temperature: float = Field(0.07, gt=0)
    momentum: float = Field(0.5, ge=0, lt=1, description="of the banks")


class CRD(RelationObjective):
    """Noise contrast between a sample's embedding on one side and a bank of embeddings of the other: with
    h = exp(e · b / τ) / Z, −log(h / (h + M/N)) of its own entry b − Σ log((M/N) / (h + M/N)) of M entries of other
    classes, both ways (Tian et al., arXiv 1910.10699). Banks [N, E] and Z are in checkpoints. At first Z is what random
    directions give, from the first step on what that step measured (theirs: its own batch).

    Takes ``aux: {index: batch:index, labels: labels}``; the index is the sample's number, below N.
    """

    Options = CRDOptions
    units = "nats"
    own: Tensor
    other: Tensor
    classes: Tensor
    scale: Tensor
    measured: Tensor

    def __init__(self, student: Any, teacher: Any, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        self.total = int(context.data.get("indices", 0))
        if not self.total:
            raise PlanError(
                f"matches.{context.match}: crd requires data that declare `indices` and number their samples"
            )
        self.heads = nn.ModuleList(
            nn.Linear(features(t) or 1, options.width) for t in (self.student_tap, self.teacher_tap)
        )
        for name in ("own", "other"):
            self.register_buffer(name, F.normalize(torch.randn(self.total, options.width), dim=1))
        self.register_buffer("classes", torch.full((self.total,), -1))
        expected = math.exp(0.5 / (options.width * options.temperature**2)) * self.total
        self.register_buffer("scale", torch.tensor([expected, expected]))
        self.register_buffer("measured", torch.tensor(False))
        self._last: tuple[Tensor, ...] = ()

    def forward(  # type: ignore[override]
        self, student: Any, teacher: Any, batch: Batch, *, index: Tensor, labels: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        own, other = self.vectors(student, self.student_tap, mask), self.vectors(teacher, self.teacher_tap, mask)
        sides = [F.normalize(head(x), dim=1, eps=FAINTEST) for head, x in zip(self.heads, (own, other), strict=True)]
        label_B = labels.argmax(-1) if labels.ndim > 1 else labels.long()
        drawn_BM = self._negatives(index)
        counts_BM = (self.classes[drawn_BM] != label_B[:, None]) & (drawn_BM != index[:, None])
        present_B, loss_B, seen = self.weight(batch, mask=mask).to(own), torch.zeros_like(own[:, 0]), []
        for number, (e_BE, bank) in enumerate(zip(sides, (self.other, self.own), strict=True)):
            near = torch.cat(
                [(e_BE * bank[index]).sum(1, keepdim=True), torch.einsum("be,bme->bm", e_BE, bank[drawn_BM])], 1
            )
            h = (near / self.options.temperature).exp() / self.scale[number]
            seen.append((h.detach().mean() * self.scale[number] * self.total).float())
            noise = counts_BM.sum(1, keepdim=True).clamp_min(1) / self.total
            loss_B = loss_B - (h[:, 0] / (h[:, 0] + noise[:, 0])).log()
            loss_B = loss_B - ((noise / (h[:, 1:] + noise)).log() * counts_BM).sum(1)
        if self.training:
            kept = present_B > 0
            self._last = (index[kept], label_B[kept], *(e.detach()[kept] for e in sides), torch.stack(seen))
        return loss_B * present_B

    def relation(self, student_BD: Tensor, teacher_BD: Tensor, present_B: Tensor) -> Tensor:
        raise NotImplementedError("samples are compared with a bank, not with one another")

    def _negatives(self, index: Tensor) -> Tensor:
        """Return slots to draw from the banks [B, M]; measuring draws the same every time."""
        count = min(self.options.negatives, self.total)
        if self.training:
            return torch.randint(self.total, (len(index), count), device=index.device)
        return torch.arange(count, device=index.device).expand(len(index), -1)

    def after_step(self) -> None:
        if not self._last:
            return
        slot, label, own, other, seen = self._last
        for bank, new in ((self.own, own), (self.other, other)):
            bank[slot] = F.normalize(torch.lerp(new.to(bank), bank[slot], self.options.momentum), dim=1)
        self.classes[slot] = label
        self.scale.copy_(torch.where(self.measured, self.scale, seen))
        self.measured.fill_(True)
        self._last = ()
