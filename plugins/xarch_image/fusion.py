"""Stage kind ``fuse``: how much each of two classifiers counts in the answer, chosen on validation pictures.

Legend: B images, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from xarch import Options, StageContext, StageKind, StageOutcome, StageRequest, UsageError
from xarch_image.model import ImageModel

STEPS = 20
"""The share of the first classifier is one of 1/STEPS, 2/STEPS, ..., so neither is ever lost."""
MEAN = 0.5


class FuseOptions(Options):
    """Options of a ``fuse`` stage."""

    samples: int = Field(1000, ge=1, le=10**7, description="validation pictures to choose on, at most those there are")


class Fuse(StageKind):
    """Chooses a in a·first + (1 − a)·second by the mean recall of the classes, and multiplies the weights of both
    classifiers, whose mean then is this sum; of equally good shares, the one nearest to the mean. Trains nothing. It
    is undone unless the share is better than the mean by more than the standard error of the difference."""

    Options = FuseOptions

    def units(self, request: StageRequest) -> int:
        return int(request.options.samples)

    def work(self, request: StageRequest, *, student: float, teacher: float) -> float:
        """The student once."""
        return student

    def run(self, context: StageContext) -> StageOutcome:
        """See :class:`xarch.StageKind`.

        Raises:
            UsageError: the student has not two linear classifiers, or the validation pictures no labels.
        """
        layers = context.student.classifiers() if isinstance(context.student, ImageModel) else {}
        if len(layers) != 2 or not all(isinstance(layer, nn.Linear) for layer in layers.values()):
            kinds = ", ".join(type(layer).__name__ for layer in layers.values()) or "one classifier"
            raise UsageError(
                f"stage {context.name}: fuse needs a student with two linear classifiers, this one has {kinds}",
                "use a student with a distillation token, or remove the stage with stages.NAME.skip=true",
            )
        first_BK, second_BK, label_B = _answers(context, tuple(layers))
        weight_B = balanced(label_B)
        shares = [step / STEPS for step in range(1, STEPS)]
        right = {a: (a * first_BK + (1 - a) * second_BK).argmax(-1) == label_B for a in shares}
        found = {a: float(weight_B[right_B].sum()) for a, right_B in right.items()}
        share = max(found, key=lambda a: (found[a], -abs(a - MEAN)))
        changed_B = weight_B * (right[share] != right[MEAN])
        figures = {"share": share, "balanced_accuracy": found[share], "balanced_accuracy.mean": found[MEAN]}
        if found[share] - found[MEAN] <= float(changed_B.norm()):
            return StageOutcome(figures, undone="no share is better than the mean by more than its standard error")
        with torch.no_grad():
            for layer, weight in zip(layers.values(), (share, 1 - share), strict=True):
                for value in layer.parameters():
                    value.mul_(2 * weight)
        return StageOutcome(figures, decisions={"fusion": share})


def _answers(context: StageContext, names: tuple[str, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logits of both classifiers [B, K] and the labels [B] of the validation pictures."""
    taps = [f"logits.{name}" for name in names]
    parts: list[tuple[Tensor, ...]] = []
    for batch in context.validation(context.options.samples):
        labels = batch.get("labels")
        if labels is None:
            raise UsageError(f"stage {context.name}: the validation pictures have no labels to choose by")
        with torch.no_grad():
            said: dict[str, Any] = context.student.collect(batch.seen_by("student"), set(taps))
        hard = labels if labels.ndim == 1 else labels.argmax(-1)
        parts.append((*(said[tap].float().cpu() for tap in taps), hard.long().cpu()))
    if not parts:
        raise UsageError(f"stage {context.name}: there are no validation pictures", "raise data.options.validation")
    first, second, labels = (torch.cat(each) for each in zip(*parts, strict=True))
    return first, second, labels


def balanced(label_B: Tensor) -> Tensor:
    """Return the weight of every picture, of which a class has the same sum as any other, together 1."""
    total_K = torch.bincount(label_B)
    return 1 / (total_K[label_B] * (total_K > 0).sum()).double()
