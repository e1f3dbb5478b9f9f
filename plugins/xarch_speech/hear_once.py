"""Batch step ``hear-once``: teacher and student of the same encoder listen once to every recording."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from xarch import Batch, BatchStep, PlanError, StepContext, TensorInfo
from xarch_speech.student import MEMORY, Running, same_encoder


class HearOnce(BatchStep):
    """Adds what the teacher's encoder gives [B, S, D], which both sides then read.

    Raises:
        PlanError: the student's encoder is not the teacher's, because it has fewer layers or is trained.
    """

    def reads(self) -> Mapping[str, str]:
        return {"input_features": "BMF"}

    def makes(self, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        return {MEMORY: TensorInfo("BSD", dtype="float32")}

    def taps(self) -> Mapping[str, Collection[str]]:
        return {"": {"memory"}}

    def work(self, sample: Mapping[str, Any], *, student: float, teacher: float) -> float:
        # The encoder is most of a forward pass, and leaves the passes of both sides.
        return 0.0

    def __call__(self, batch: Batch, context: StepContext) -> Batch:
        teacher, student = context.teacher, context.student
        if not isinstance(teacher, Running) or not isinstance(student, Running):
            raise PlanError("hear-once needs speech models as teacher and student")
        if not same_encoder(student, teacher):
            raise PlanError(
                "hear-once: the student's encoder is not the teacher's", "leave the step out where the encoder trains"
            )
        return batch.replace(**{MEMORY: teacher.heard(batch)})
