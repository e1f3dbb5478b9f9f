"""An objective: how far a student tap is from a teacher tap, one number per sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from xarch.contracts.batch import Batch
from xarch.contracts.tap import Tap


class Objective(nn.Module, ABC):
    """Built once per match from the two taps; may own projectors, which train with the stage and are dropped with it.

    Class attributes:
        accepts: (student layout, teacher layout) pairs it can compare; "*" matches any layout. The teacher side is
            ``"batch"`` when a tensor of the batch is the target and ``"none"`` for a term of the student alone.
        units: what one unit of the value means, e.g. "nats/token".
        couples: "sample" if the loss of a sample depends on that sample alone, so that a batch may be cut into
            micro-batches and spread over processes; "batch" if it may not (correlation and contrastive losses).
    """

    accepts: ClassVar[frozenset[tuple[str, str]]] = frozenset()
    units: ClassVar[str] = ""
    couples: ClassVar[Literal["sample", "batch"]] = "sample"

    def __init__(self, student: Tap, teacher: Tap | None, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.student_tap, self.teacher_tap, self.options = student, teacher, dict(options)

    @classmethod
    def takes(cls, student: Tap, teacher: Tap | None) -> bool:
        """Whether this pair of layouts can be compared."""
        right = "none" if teacher is None else teacher.layout
        return any(a in ("*", student.layout) and b in ("*", right) for a, b in cls.accepts)

    @classmethod
    def check(cls, student: Tap, teacher: Tap | None) -> str | None:
        """Why this pair cannot be compared (shapes), or None. Runs while planning, on declarations only."""
        if teacher is None:
            return None
        shared = student.shape.keys() & teacher.shape.keys()
        wrong = [
            f"{k}: {student.shape[k]} != {teacher.shape[k]}"
            for k in sorted(shared)
            if student.shape[k] != teacher.shape[k]
        ]
        return "; ".join(wrong) or None

    @abstractmethod
    def forward(self, student: Any, teacher: Any, batch: Batch, **aux: Any) -> Tensor:
        """Loss of each sample [B] in float32, *summed* over the sample's elements that :meth:`weight` counts.

        ``aux`` holds the further values a match names (``aux: {alpha: teacher:points.alpha}``).
        """

    def weight(self, batch: Batch) -> Tensor:
        """How much each sample counts [B]: the engine minimises sum(loss) / sum(weight) over the whole effective
        batch, across micro-batches and processes alike. Known from the batch alone; by default one per sample.
        """
        return torch.ones(len(batch), device=next(iter(batch.tensors.values())).device)

    def monitor(self) -> dict[str, float]:
        """Further figures of the last forward, logged at the logging interval (relative error, agreement)."""
        return {}

    def after_step(self) -> None:
        """Called once after every optimiser step (running statistics, banks); never per micro-batch."""
