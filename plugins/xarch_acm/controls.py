"""What a student must beat: the teacher's modules cut to the student's budget without training or data."""

from __future__ import annotations

import torch

from xarch import Control
from xarch_acm.module import Point
from xarch_acm.sort import arrange
from xarch_acm.student import AcmStudent, OperatingPoint


def name_of(student: AcmStudent) -> str:
    """Return the name of the control."""
    return f"truncated-{round(100 * student.options.budget)}"


@torch.no_grad()
def truncated(student: AcmStudent) -> Control:
    """Return the teacher with the same number of learners in every module, the units with the largest weights first.

    Args:
        student: new, with the teacher's weights; becomes the control.
    """
    kept = {path: max(1, round(student.options.budget * module.learners)) for path, module in student.adaptive.items()}
    for module in student.adaptive.values():
        read_F = torch.stack([layer.weight.double().square().sum(1) for layer in module.layers]).prod(0)
        arrange(module, read_F * module.out.weight.double().square().sum(0))
    student.module.eval().requires_grad_(False)
    counts = ", ".join(map(str, sorted(set(kept.values()))))
    facts = {"keeps": f"{counts} of {student.options.learners} parts of every module's hidden units"}
    return Control(OperatingPoint(student, {path: Point(fixed=k) for path, k in kept.items()}), facts)
