"""A student's answers on calibration data beside its teacher's.

Legend: ... samples, and positions of text, V logits.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from xarch import Batch, StageContext, UsageError
from xarch.matching.objectives.dense import opened
from xarch_acm.module import Point
from xarch_acm.student import LOGITS, AcmStudent, Points


def acm_student(context: StageContext) -> AcmStudent:
    """Return the student of a stage.

    Raises:
        UsageError: it has no adaptive modules.
    """
    if not isinstance(context.student, AcmStudent):
        raise UsageError(
            f"stage {context.name} supports only students of target acm, got a {type(context.student).__name__}"
        )
    return context.student


def all_learners(student: AcmStudent) -> dict[str, Point]:
    """Return the points at which every learner runs."""
    return {path: Point(fixed=module.learners) for path, module in student.adaptive.items()}


def reference(student: AcmStudent, batch: Batch, context: StageContext) -> Tensor:
    """Return the teacher's logarithms of probabilities [..., V]; without one, those of all learners together."""
    if context.teacher is None:
        return answer(student, batch, all_learners(student))
    values: dict[str, Any] = {}
    context.run_teacher(batch, {LOGITS}, values.__setitem__)
    return opened(values[LOGITS]).float().log_softmax(-1)


def answer(student: AcmStudent, batch: Batch, points: Points) -> Tensor:
    """Return the student's logarithms of probabilities [..., V] with its modules run as told."""
    with student.at(points):
        return opened(student.inner.collect(batch.seen_by("student"), {LOGITS})[LOGITS]).float().log_softmax(-1)


def divergence(wanted: Tensor, found: Tensor) -> float:
    """Return KL(wanted || found) in nats, the mean of all answers."""
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())
