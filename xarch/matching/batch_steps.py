"""Built-in batch steps.

Legend: B samples, K classes.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from xarch.contracts.batch import Batch
from xarch.contracts.batch_step import BatchStep, StepContext
from xarch.contracts.data import TensorInfo
from xarch.contracts.options import Options
from xarch.errors import PlanError, UsageError

T = TypeVar("T")


class MixupOptions(Options):
    """Options of ``mixup``."""

    alpha: float = Field(0.8, gt=0, description="parameter of the Beta(α, α) distribution of the mixing share")
    prob: float = Field(1.0, ge=0, le=1, description="fraction of batches to mix")
    keys: list[str] = Field(
        default_factory=list, description="tensors to mix, including their views; default: every floating-point tensor"
    )
    labels: str | None = Field("labels", description="int labels [B] that become probabilities [B, K]; null: none")


class Mixup(BatchStep):
    """``mixup``: λ x + (1 − λ) x', with x' another sample of the batch and λ ~ Beta(α, α), one λ per batch (Zhang et
    al., arXiv 1710.09412). Labels become probabilities in every batch, so that unmixed validation batches have the same
    layout."""

    Options = MixupOptions

    def __init__(self, options: Any, data: Mapping[str, Any]) -> None:
        super().__init__(options, data)
        if options.labels and not data.get("classes"):
            raise PlanError(
                f"batch step mixup: the data do not declare the number of classes of {options.labels!r}",
                "use data that declare `classes`, or labels: null",
            )

    def reads(self) -> Mapping[str, str]:
        wanted = dict.fromkeys(self.options.keys, "*")
        return wanted | ({self.options.labels: "B"} if self.options.labels else {})

    def makes(self, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        if not self.options.labels:
            return {}
        return {self.options.labels: TensorInfo("BK", {"K": int(self.data["classes"])})}

    def __call__(self, batch: Batch, context: StepContext) -> Batch:
        changed: dict[str, Tensor] = {}
        if self.options.labels:
            label_B = batch[self.options.labels]
            changed[self.options.labels] = F.one_hot(label_B.long(), int(self.data["classes"])).float()
        draw = random.Random(int(torch.randint(2**62, (), generator=context.generator)))
        mixes = draw.random() < self.options.prob
        share = draw.betavariate(self.options.alpha, self.options.alpha)
        partner = torch.randperm(len(batch), generator=context.generator).to(batch.device)
        if context.training and mixes:
            for key in self.options.keys or _floating(batch):
                for name in (key, f"{key}@teacher", f"{key}@student"):
                    value = batch.get(name)
                    if value is not None:
                        changed[name] = _mixed(value, partner, share)
            if self.options.labels:
                changed[self.options.labels] = _mixed(changed[self.options.labels], partner, share)
            context.log(mixup=share)
        return batch.replace(**changed)


def _floating(batch: Batch) -> list[str]:
    """Return the keys of tensors that can be mixed; views are listed under their plain name."""
    return list(dict.fromkeys(k.partition("@")[0] for k, v in batch.tensors.items() if v.is_floating_point()))


def _mixed(value: Tensor, partner: Tensor, share: float) -> Tensor:
    value = value if value.is_floating_point() else value.float()
    return value * share + value[partner] * (1 - share)


class TeacherLabelsOptions(Options):
    """Options of ``teacher-labels``."""

    teacher: str = Field("", description="name of a further teacher; default: the main teacher")
    tap: str = Field("logits", description="tap to store")
    key: str = Field("teacher_labels", description="batch key to store it under")
    form: Literal["argmax", "probabilities", "value"] = Field(
        "argmax", description="argmax or softmax over the last axis, or the value itself"
    )
    temperature: float = Field(1.0, gt=0, description="temperature of the softmax")
    layout: str | None = Field(None, description='layout of the result; default "B" for argmax, else "BK"')


class TeacherLabels(BatchStep):
    """``teacher-labels``: runs a teacher on its own view of the batch and stores its output."""

    Options = TeacherLabelsOptions

    def makes(self, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        layout = self.options.layout or ("B" if self.options.form == "argmax" else "BK")
        classes = {"K": int(self.data["classes"])} if "K" in layout and self.data.get("classes") else {}
        return {self.options.key: TensorInfo(layout, classes)}

    def taps(self) -> Mapping[str, Collection[str]]:
        return {self.options.teacher: {self.options.tap}}

    def work(self, sample: Mapping[str, Any], *, student: float, teacher: float) -> float:
        return teacher

    def __call__(self, batch: Batch, context: StepContext) -> Batch:
        chosen = context.teachers[self.options.teacher] if self.options.teacher else context.teacher
        assert chosen is not None, "the plan proved it"
        value = chosen.collect(batch.seen_by(self.options.teacher, "teacher"), {self.options.tap})[self.options.tap]
        # A structured value with a dense form provides `full()`.
        value = value if isinstance(value, Tensor) else value.full()
        if self.options.form == "argmax":
            value = value.argmax(-1)
        elif self.options.form == "probabilities":
            value = (value.float() / self.options.temperature).softmax(-1)
        return batch.replace(**{self.options.key: value.detach()})


class RepeatOptions(Options):
    """Options of ``repeat``."""

    names: list[str] = Field(min_length=2, description="names of the copies of every sample, e.g. [gold, kd]")
    mask: str | None = Field(None, description="key of a mask applied to every copy, e.g. of padding")


class Repeat(BatchStep):
    """``repeat``: repeats every sample once per name, with masks ``NAME_mask`` that are 1 on its copy: losses on
    different inputs (labels on given samples, a teacher on sampled ones) then need only one forward pass."""

    Options = RepeatOptions

    def reads(self) -> Mapping[str, str]:
        return {self.options.mask: "*"} if self.options.mask else {}

    def makes(self, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        found = tensors.get(self.options.mask) if self.options.mask else None
        info = TensorInfo(found.layout, dict(found.shape)) if found is not None else TensorInfo("B")
        return {f"{name}_mask": info for name in self.options.names}

    def __call__(self, batch: Batch, context: StepContext) -> Batch:
        copies, size = len(self.options.names), len(batch)
        whole = {key: torch.cat([value] * copies) for key, value in batch.tensors.items()}
        counts = batch[self.options.mask] if self.options.mask else torch.ones(size, device=batch.device)
        for place, name in enumerate(self.options.names):
            mask = torch.zeros_like(torch.cat([counts] * copies), dtype=torch.float32)
            mask[place * size : (place + 1) * size] = counts.float()
            whole[f"{name}_mask"] = mask
        return Batch(whole, batch.units, batch.meta)


class ShuffleTeacher(BatchStep):
    """``shuffle-teacher``: every teacher sees another sample of the batch than the student: a control that keeps what
    the teacher says in general and takes away what it says about a sample. No sample keeps its place; the samples of a
    batch have the same sizes, so whatever a teacher reads can be exchanged.

    Raises:
        UsageError: a training batch has a single sample.
    """

    def makes(self, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        return {f"{key}@{side}": info for side in _teachers(tensors) for key, info in _seen(tensors, side).items()}

    def __call__(self, batch: Batch, context: StepContext) -> Batch:
        if len(batch) < 2 and context.training:
            raise UsageError("batch step shuffle-teacher: a batch of one sample cannot be shuffled", "larger batches")
        order = torch.randperm(len(batch), generator=context.generator)
        other = torch.empty_like(order)
        other[order] = order.roll(1)  # one cycle through all samples
        other, made = other.to(batch.device), {}
        for side in _teachers(batch.tensors):
            made.update({f"{key}@{side}": v[other] for key, v in _seen(batch.tensors, side).items()})
        return batch.replace(**made)


def _teachers(tensors: Mapping[str, Any]) -> list[str]:
    """Return the sides that have views, except the student, and the main teacher's."""
    return sorted({"teacher", *(key.partition("@")[2] for key in tensors if "@" in key)} - {"student"})


def _seen(tensors: Mapping[str, T], side: str) -> dict[str, T]:
    """Return what a side sees, by plain name."""
    return {key: tensors.get(f"{key}@{side}", value) for key, value in tensors.items() if "@" not in key}
