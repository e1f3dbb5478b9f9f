"""Losses on labels: given labels, or the most likely class of the right side.

Legend: B samples, P positions, K classes.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from xarch.contracts.batch import Batch
from xarch.contracts.objective import MatchContext, Objective
from xarch.contracts.tap import Tap
from xarch.matching.objectives.balance import BalanceOptions, class_weights
from xarch.matching.objectives.dense import DenseObjective, feature_letter, rows, spread

IGNORED = -100
"""Label value that is ignored."""


class LabelObjective(Objective):
    """Base class: −Σ_k w_k y_k log softmax(s)_k at every position, as ``torch.nn.functional.cross_entropy`` computes
    it.

    A sample's loss is the sum over its counted positions, each of which is weighted by its class.
    """

    units = "nats/position"
    weighs_target = True

    def __init__(self, student: Tap, teacher: Tap | None, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        self._balanced: Tensor | None = None
        self._class_weights()

    @classmethod
    def takes(cls, student: Tap, teacher: Tap | None) -> bool:
        return student.dense and teacher is not None and teacher.dense

    @classmethod
    def masks(cls, student: Tap, layout: str) -> bool:
        return DenseObjective.masks(student, layout)

    @abstractmethod
    def labels(self, right: Tensor) -> Tensor:
        """Return labels [B, P] int64 or probabilities [B, P, K]."""

    def scores(self, student_BPK: Tensor, label: Tensor) -> Tensor:
        """Return the class scores that are compared with labels [B, P] or [B, P, K]; by default the student's."""
        return student_BPK

    def balances(self) -> bool:
        """Return whether classes are currently weighted."""
        return self.options.balance != "none"

    def smoothing(self) -> float:
        """Return the share of a label spread over all classes."""
        return 0.0

    def forward(self, student: Any, teacher: Any, batch: Batch, *, mask: Tensor | None = None, **aux: Any) -> Tensor:
        label = self.labels(teacher)
        student_BPK = self.scores(rows(student, self.student_tap.layout), label)
        weight_K, kinds = self._class_weights(), {"reduction": "none", "label_smoothing": self.smoothing()}
        if label.ndim == 2:
            kinds["ignore_index"] = IGNORED
        if weight_K is not None:
            kinds["weight"] = weight_K.to(student_BPK)
        each = F.cross_entropy(student_BPK.flatten(0, 1), label.flatten(0, 1), **kinds)  # type: ignore[arg-type]
        each_BP = each.view(student_BPK.shape[:2])
        if mask is None:
            return each_BP.sum(1)
        mask_BP = spread(mask, each_BP.detach())
        return torch.where(mask_BP != 0, each_BP * mask_BP, 0.0).sum(1)

    def weight(self, batch: Batch, target: Any = None, *, mask: Tensor | None = None) -> Tensor:
        label = self.labels(target)
        weight_K = self._class_weights()
        if label.ndim == 3:
            weight_BP = torch.ones_like(label[..., 0])
        else:
            weight_BP = (label != IGNORED).float()
            if weight_K is not None:
                weight_BP = weight_BP * weight_K.to(label.device)[label.clamp_min(0)]
        return (weight_BP if mask is None else weight_BP * spread(mask, weight_BP)).sum(1)

    def _class_weights(self) -> Tensor | None:
        if not self.balances():
            return None
        if self._balanced is None:
            options = self.options
            self._balanced = class_weights(options.balance, options.beta, self.context.data, self.context.match)
        return self._balanced


class CrossEntropyOptions(BalanceOptions):
    """Options of ``cross-entropy``."""

    smoothing: float = Field(0.0, ge=0, lt=1, description="share of the label spread evenly over all classes")


class CrossEntropy(LabelObjective):
    """−log softmax(s)_y. The right side is labels (int, the student's layout without its classes; -100 does not count)
    or probabilities (its layout)."""

    Options = CrossEntropyOptions
    accepts = frozenset({("dense", "labels"), ("dense", "probabilities")})

    @classmethod
    def check(cls, student: Tap, teacher: Tap | None) -> str | None:
        letter = feature_letter(student.layout)
        if not letter:
            return f"{student.layout} has no axis of classes"
        if teacher is None or len(teacher.layout) == len(student.layout):
            return DenseObjective.check(student, teacher)
        if len(teacher.layout) != len(student.layout) - 1:
            return f"labels of {student.layout} are {student.layout.replace(letter, '')}, not {teacher.layout}"
        return None

    def smoothing(self) -> float:
        return float(self.options.smoothing)

    def labels(self, right: Tensor) -> Tensor:
        if right.ndim == len(self.student_tap.layout):
            return rows(right, self.student_tap.layout)
        return right.long().flatten(1) if right.ndim > 1 else right.long()[:, None]


class HardLabelOptions(BalanceOptions):
    """Options of ``hard-label``."""

    balance: Literal["none", "effective-number", "inverse"] = Field(
        "effective-number", description="class weighting used by `reweight`"
    )
    reweight: bool = Field(False, description="weight a position by its class ŷ")


class HardLabel(LabelObjective):
    """−log softmax(s)_ŷ with ŷ the most likely class of the right side (DeiT, arXiv 2012.12877), optionally weighted by
    its class (DeiT-LT, arXiv 2404.02900). Given labels of the same positions (``aux: {labels: …}``), it
    logs at which share ŷ is their likeliest class."""

    Options = HardLabelOptions
    accepts = frozenset({("dense", "dense")})
    aux = frozenset({"labels"})

    def __init__(self, student: Tap, teacher: Tap | None, options: Any, context: MatchContext) -> None:
        super().__init__(student, teacher, options, context)
        self._agreement: Tensor | None = None

    @classmethod
    def check(cls, student: Tap, teacher: Tap | None) -> str | None:
        return DenseObjective.check(student, teacher)

    def balances(self) -> bool:
        return bool(self.options.reweight) and self.options.balance != "none"

    def labels(self, right: Tensor) -> Tensor:
        return rows(right, self.teacher_tap.layout).argmax(-1)

    def forward(self, student: Any, teacher: Any, batch: Batch, *, mask: Tensor | None = None, **aux: Any) -> Tensor:
        given = aux.get("labels")
        if self.monitored and given is not None:
            soft = given.ndim == len(self.student_tap.layout)
            label_BP = rows(given, self.student_tap.layout).argmax(-1) if soft else given.reshape(len(given), -1)
            same_BP = (self.labels(teacher) == label_BP)[label_BP != IGNORED]
            self._agreement = same_BP.float().mean()
        return super().forward(student, teacher, batch, mask=mask)

    def monitor(self) -> dict[str, float]:
        return {} if self._agreement is None else {"label_agreement": float(self._agreement)}
