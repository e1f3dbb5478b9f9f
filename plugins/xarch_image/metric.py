"""Metric ``top1``: how many held-out images are classified correctly, overall and by class.

Legend: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from xarch import Batch, Evaluation, EvaluationRequest, Metric, Options, TapModel, UsageError
from xarch_image.calibration import Calibration
from xarch_image.cka import Alikeness
from xarch_image.effort import EFFORT, effort_map
from xarch_image.groups import class_groups
from xarch_image.shown import ShownPictures

TOP = 5
FEW_CLASSES = 20
"""Up to this many classes, the recall of each is a figure of its own."""


class Top1Options(Options):
    """Options of ``top1``."""

    cka: int = Field(128, ge=0, description="held-out pictures on which the alikeness of layers is measured; 0: none")
    groups: list[int] = Field(
        default_factory=list,
        description="where mid and tail begin among the classes sorted by training images, e.g. [36, 71]; by default "
        "3:4:3 up to 20 classes, above 100 and below 20 images for more",
    )


class Top1(Metric):
    """Share of images whose likeliest class is the label.

    Figures: ``top1``, ``top5`` (of more than five classes), ``balanced_accuracy`` (mean recall of the classes present),
    ``recall.head``, ``recall.mid`` and ``recall.tail`` (mean recall of a group) for data with unequal class counts,
    ``recall.NAME`` of every class up to 20, and the calibration error ``ece``, with ``ece.GROUP`` of images of a group.
    ``agreement`` with the teacher may be gated besides. Data without labels are measured by ``agreement`` alone, a
    share of images given the teacher's class.
    """

    Options = Top1Options
    figures = ("top1", "top5", "balanced_accuracy", "recall.*", "ece", "ece.*", "agreement")

    def evaluate(self, request: EvaluationRequest) -> Evaluation:
        """See :meth:`xarch.Metric.evaluate`.

        Raises:
            UsageError: there are no held-out images, or neither labels nor a teacher to judge them by.
        """
        models = dict(request.students)
        if request.teacher is not None:
            models["teacher"] = request.teacher
        tallies = {name: _Tally() for name in models}
        shown, alike = ShownPictures(), Alikeness()
        labelled = False
        for batch in request.batches():
            layers = alike.images < request.options.cka and _comparable(models)
            values = {name: _values(model, batch, name, layers) for name, model in models.items()}
            scores = {name: found.pop("logits").float().cpu() for name, found in values.items()}
            effort_BL = values["student"].pop(EFFORT, None)
            places_BHW = None if effort_BL is None else effort_map(effort_BL, models["student"].facts)
            if layers:
                alike.add(values["student"], values["teacher"])
            labels = batch.get("labels")
            labelled = labels is not None
            for name, score_BK in scores.items():
                tallies[name].compare(score_BK, scores.get("teacher"))
                if labels is not None:
                    tallies[name].judge(score_BK, _hard(labels))
            shown.add(batch, {n: scores[n] for n in ("teacher", "student") if n in scores}, places_BHW)
            request.progress(batch.units)
        if not tallies["student"].images:
            raise UsageError("no held-out image to evaluate on", "raise evaluate.samples, or the data's held-out share")
        if not labelled and request.teacher is None:
            raise UsageError("these images have no labels, and there is no teacher to compare the student with")
        names, counts = _names(request.data, models), [int(n) for n in request.data.get("class_counts") or ()]
        groups = class_groups(counts, request.options.groups) if counts else {}
        agreement = {n: {"agreement": t.same / t.images} for n, t in tallies.items()}
        found = {n: t.figures(groups, names) for n, t in tallies.items()} if labelled else agreement
        measured = (*found["student"], "agreement")
        recall = {n: t.recall() for n, t in tallies.items()} if labelled else {}
        return Evaluation(
            metric="top1" if labelled else "agreement",
            higher_is_better=True,
            unit="share",
            teacher=found.pop("teacher", {}),
            n=tallies["student"].images,
            student=found.pop("student"),
            baselines=found,
            gated=agreement["student"] if request.teacher is not None and labelled else {},
            units=dict.fromkeys(measured, "share"),
            directions={name: name.partition(".")[0] != "ece" for name in measured},
            samples=shown.samples(names, recall, counts, groups) + [m for m in (alike.to_json(),) if m],
        )


class _Tally:
    """Counts of one model's right answers; ``hits`` and ``totals`` [K] are per class."""

    def __init__(self) -> None:
        self.hits = self.totals = torch.zeros(0)
        self.top = self.same = self.images = 0
        self.calibration = Calibration()

    def compare(self, score_BK: Tensor, teacher_BK: Tensor | None) -> None:
        """Count images, and those that get the teacher's class."""
        self.images += len(score_BK)
        if teacher_BK is not None:
            self.same += int((score_BK.argmax(-1) == teacher_BK.argmax(-1)).sum())

    def judge(self, score_BK: Tensor, label_B: Tensor) -> None:
        """Count right answers."""
        classes = score_BK.shape[-1]
        if not len(self.totals):
            self.hits, self.totals = torch.zeros(classes), torch.zeros(classes)
        self.calibration.add(score_BK, label_B)
        right_B = score_BK.argmax(-1) == label_B
        self.totals += torch.bincount(label_B, minlength=classes).float()
        self.hits += torch.bincount(label_B[right_B], minlength=classes).float()
        self.top += int((score_BK.topk(min(TOP, classes)).indices == label_B[:, None]).any(-1).sum())

    def recall(self) -> dict[int, float]:
        """Return class -> its recall; a class without held-out images has none."""
        return {c: float(self.hits[c] / n) for c, n in enumerate(self.totals) if n}

    def figures(self, groups: Mapping[str, Sequence[int]], names: Sequence[str]) -> dict[str, float]:
        """Return all figures."""
        recall = self.recall()
        found = {"top1": float(self.hits.sum()) / self.images}
        if len(self.totals) > TOP:
            found["top5"] = self.top / self.images
        found["ece"] = self.calibration.error()
        found["balanced_accuracy"] = _mean(list(recall.values()))
        for group, classes in groups.items():
            found[f"recall.{group}"] = _mean([recall[c] for c in classes if c in recall])
            found[f"ece.{group}"] = self.calibration.error(classes)
        if len(self.totals) <= FEW_CLASSES:
            found |= {f"recall.{names[c] if names else c}": share for c, share in recall.items()}
        return found


def _values(model: TapModel, batch: Batch, name: str, layers: bool) -> dict[str, Tensor]:
    """Return a model's scores on its view of a batch, where the student computed if it says so, and with ``layers`` the
    features of teacher and student."""
    seen = batch.seen_by("teacher" if name == "teacher" else "student")
    wanted = _layers(model) if layers and name in ("teacher", "student") else []
    wanted += [EFFORT] if name == "student" and EFFORT in model.taps() else []
    found = model.collect(seen, {"logits", *wanted})
    return {tap: found[tap] for tap in (*wanted, "logits")}


def _layers(model: TapModel) -> list[str]:
    """Return the taps whose alikeness is measured, in order; none of an exported file."""
    return [name for name in model.taps() if name.startswith("features.") or name == "pooled"]


def _comparable(models: Mapping[str, TapModel]) -> bool:
    return all(name in models and len(_layers(models[name])) > 1 for name in ("teacher", "student"))


def _hard(labels: Tensor) -> Tensor:
    """Return class numbers [B] on the CPU; of mixed labels [B, K] the dominant class."""
    return (labels if labels.ndim == 1 else labels.argmax(-1)).long().cpu()


def _mean(shares: Sequence[float]) -> float:
    return sum(shares) / len(shares) if shares else 0.0


def _names(data: Mapping[str, Any], models: Mapping[str, TapModel]) -> list[str]:
    """Return the class names of the data, or of the first model that knows them."""
    facts = [getattr(m.facts, "class_names", ()) for m in models.values()]
    return [str(n) for n in data.get("class_names") or next((names for names in facts if names), ())]
