"""Stage kind ``acm-threshold``: from when on a further learner helps too little, so that what gates learn asks for
the budget.

Legend: T positions, K choices of a gate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from xarch import Batch, Options, PlanError, StageContext, StageKind, StageOutcome, StageRequest, UsageError
from xarch_acm.answers import acm_student, all_learners, answer, divergence, reference
from xarch_acm.labels import lost, stop
from xarch_acm.student import SENSITIVITY, AcmStudent
from xarch_acm.view import PASSES

HALVINGS = 48
LARGEST = 1.5
"""Largest threshold of distances: a learner may leave more than there was."""
PRICES = (1e-15, 1e6)
"""Least and largest price of a learner, in the answer's divergence."""


class ThresholdOptions(Options):
    """Options of an ``acm-threshold`` stage."""

    samples: int = Field(64, ge=1, le=10**6, description="calibration samples to measure on, at most those there are")
    most_left: float | None = Field(
        0.01,
        ge=0,
        description="the stage ends the run if all learners together diverge from the teacher by more nats an answer "
        "(0.01: about a point of accuracy, or one per cent of perplexity): gates would learn to choose among poor "
        "learners. null: whatever it is",
    )


class Threshold(StageKind):
    """Decides ``threshold`` by bisection, one for all modules and positions: where another learner helps much, more of
    them run. Gates that estimate begin with the means. Trains nothing."""

    Options = ThresholdOptions

    def units(self, request: StageRequest) -> int:
        return int(request.options.samples) * request.units_per_sample

    def work(self, request: StageRequest, *, student: float, teacher: float) -> float:
        """Sensitivities, which gates that estimate need, are further passes of the teacher."""
        return 2 * student + (2 + PASSES) * teacher

    def run(self, context: StageContext) -> StageOutcome:
        """See :class:`xarch.StageKind`.

        Raises:
            UsageError: the student has no adaptive modules, or there is no teacher.
            PlanError: all learners together are too far from the teacher.
        """
        student = acm_student(context)
        if context.teacher is None:
            raise UsageError("stage kind acm-threshold needs a teacher, but this run has none")
        left = checked(student, context)
        found = distances_of(student, context, context.calibration(context.options.samples))
        total = sum(m.cost * m.learners * len(found[path][0]) for path, m in student.adaptive.items())

        def taught(threshold: float) -> float:
            ran = 0.0
            for path, module in student.adaptive.items():
                distances, sensitivity = found[path]
                if sensitivity is None:
                    choice_T = stop(distances, threshold, student.options.label_offset)
                else:
                    choice_T = module.gate.scores(lost(distances, sensitivity, threshold).log(), 0.0).argmax(-1)
                ran += float((choice_T + module.least).double().sum()) * module.cost
                ran += len(choice_T) * module.gate_cost
            return ran / total

        priced = student.options.gates == "estimate"
        best = _bisect(taught, student.options.budget, priced=priced)
        for path, (distances, sensitivity) in found.items():
            if sensitivity is not None:
                student.adaptive[path].gate.centre(lost(distances, sensitivity, best))
        relative = {path: float((d[:, -1] / d[:, 0].clamp_min(1e-30)).mean()) for path, (d, _) in found.items()}
        return StageOutcome(
            metrics={"threshold": best, "taught": taught(best), "left": left},
            decisions={"threshold": best},
            per_site={"distance_left": relative},
        )


def checked(student: AcmStudent, context: StageContext) -> float:
    """Return how far all learners together are from the teacher, in nats.

    Raises:
        PlanError: it is more than the option allows.
    """
    batches, most = context.calibration(context.options.samples), context.options.most_left
    if not batches:
        raise UsageError(f"stage {context.name}: there are no calibration samples", "raise the data's held-out share")
    whole = all_learners(student)
    student.module.eval()
    with torch.no_grad():
        each = [divergence(reference(student, b, context), answer(student, b, whole)) * len(b) for b in batches]
    left = sum(each) / sum(map(len, batches))
    if most is not None and not left <= most:
        where = f"stages.{context.name}.options.most_left"
        raise PlanError(
            f"{where}: all learners together diverge from the teacher by {left:.4g} nats on the calibration data, "
            f"required at most {most:g}: gates would choose among poor learners",
            f"lower the learning rate of the stages before, or change the limit: `--set {where}=…`",
        )
    return left


def _bisect(taught: Callable[[float], float], share: float, *, priced: bool) -> float:
    """Return the threshold that teaches gates to run a share: prices between their bounds in equal ratios, the dearer
    the fewer learners; thresholds of distances in equal steps, the larger the more."""
    low, high = map(math.log, PRICES) if priced else (0.0, LARGEST)
    given = math.exp if priced else float
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        below = taught(given(middle)) < share
        low, high = (middle, high) if below != priced else (low, middle)
    return min(map(given, (low, high)), key=lambda threshold: abs(taught(threshold) - share))


def distances_of(
    student: AcmStudent, context: StageContext, batches: Sequence[Batch]
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Return path -> distances [T, K] of all prefixes from the teacher's output, and its sensitivity [T] if labels
    need it."""
    parts: dict[str, list[Tensor]] = {path: [] for path in student.adaptive}
    weights: dict[str, list[Tensor]] = {path: [] for path in student.adaptive}
    leaves = next(iter(student.gates().values())).inputs
    wanted = {f"{path}.{leaf}" for path in student.adaptive for leaf in leaves}
    for number, batch in enumerate(batches, 1):
        given: dict[str, Tensor] = {}

        def take(name: str, value: Any, given: dict[str, Tensor] = given) -> None:
            path, _, leaf = name.rpartition(".")
            given[leaf] = value
            if leaf == "out":
                module = student.adaptive[path]
                x = given.pop("in").to(module.out.weight.dtype)
                parts[path].append(module.distances(module.prefixes(x), given.pop("out")).flatten(0, -2))
            elif leaf == SENSITIVITY:
                weights[path].append(given.pop(leaf).flatten())

        with torch.no_grad():
            context.run_teacher(batch, wanted, take)
        context.progress(number, len(batches))
    return {p: (torch.cat(found), torch.cat(weights[p]) if weights[p] else None) for p, found in parts.items()}
