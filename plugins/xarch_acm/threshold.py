"""Stage kind ``acm-threshold``: from when on a further learner helps too little, so that labels of gates ask for the
budget.

Legend: T positions, K choices of a gate.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from xarch import Options, StageContext, StageKind, StageOutcome, StageRequest, UsageError
from xarch_acm.module import stop
from xarch_acm.student import AcmStudent

HALVINGS = 24
LARGEST = 1.5
"""Largest threshold: a learner may leave more of the distance than there was."""


class ThresholdOptions(Options):
    """Options of an ``acm-threshold`` stage."""

    samples: int = Field(64, ge=1, le=10**6, description="calibration samples to measure on, at most those there are")


class Threshold(StageKind):
    """Decides ``threshold`` by bisection, one for all modules: where another learner helps much, more of them run.
    Trains nothing."""

    Options = ThresholdOptions

    def units(self, request: StageRequest) -> int:
        return int(request.options.samples) * request.units_per_sample

    def run(self, context: StageContext) -> StageOutcome:
        """See :class:`xarch.StageKind`.

        Raises:
            UsageError: the student has no adaptive modules, or there is no teacher.
        """
        student = acm_student(context)
        if context.teacher is None:
            raise UsageError("stage kind acm-threshold needs a teacher, but this run has none")
        found = _distances(student, context)
        total = sum(m.cost * m.learners * len(found[path]) for path, m in student.adaptive.items())

        def labelled(threshold: float) -> float:
            ran = 0.0
            for path, module in student.adaptive.items():
                label_T = stop(found[path], threshold, student.options.label_offset) + module.least
                ran += float(label_T.double().sum()) * module.cost
            return ran / total

        low, high = 0.0, LARGEST
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if labelled(middle) < student.options.budget else (low, middle)
        best = min((low, high), key=lambda t: abs(labelled(t) - student.options.budget))
        relative = {path: float((d[:, -1] / d[:, 0].clamp_min(1e-30)).mean()) for path, d in found.items()}
        return StageOutcome(
            metrics={"threshold": best, "labelled": labelled(best)},
            decisions={"threshold": best},
            per_site={"distance_left": relative},
        )


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


def _distances(student: AcmStudent, context: StageContext) -> dict[str, Tensor]:
    """Return path -> distances [T, K] of all prefixes from the teacher's output."""
    parts: dict[str, list[Tensor]] = {path: [] for path in student.adaptive}
    wanted = {f"{path}.{leaf}" for path in student.adaptive for leaf in ("in", "out")}
    batches = context.calibration(context.options.samples)
    for number, batch in enumerate(batches, 1):
        given: dict[str, Tensor] = {}

        def take(name: str, value: Any, given: dict[str, Tensor] = given) -> None:
            path, _, leaf = name.rpartition(".")
            given[leaf] = value
            if leaf == "out":
                module = student.adaptive[path]
                x = given.pop("in").to(module.out.weight.dtype)
                parts[path].append(module.distances(module.prefixes(x), given.pop("out")).flatten(0, -2))

        with torch.no_grad():
            context.run_teacher(batch, wanted, take)
        context.progress(number, len(batches))
    if not batches:
        raise UsageError(f"stage {context.name}: there are no calibration samples", "raise the data's held-out share")
    return {path: torch.cat(found) for path, found in parts.items()}
