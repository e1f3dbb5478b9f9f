"""The target ``timm``: students of any architecture of timm."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import BaseModel, Field

from xarch import DataInfo, ExportGraph, Options, PlanError, Profile, Student, TargetAdapter, Teacher, validated
from xarch_image import ImageFacts, ImageModel
from xarch_timm.build import create, describe, has_own_size
from xarch_timm.export import ImageExport, image_graphs
from xarch_timm.model import TimmStudent
from xarch_timm.reference import File, image_size, parse
from xarch_timm.weights import from_file, names_to_load, pretrained, pretrained_names, shapes_of

SMALL = "test_resnet?size=32"
"""A residual network in which everything is small, for trials: also untrained, its logits survive 8 bits. Those of an
untrained transformer are differences of nearly equal sums, whose last bits they are."""


class TimmTargetOptions(Options):
    """Options of students; what ``model`` says after ``?`` comes first."""

    model: str = Field("", description="name of the model in timm, e.g. vit_tiny_patch16_224, maybe ?size=32&depth=6")
    arguments: dict[str, Any] = Field(
        default_factory=dict,
        description="further arguments of timm.create_model, e.g. {patch_size: 4, depth: 6}; `cosine: 30` makes "
        "the classifier 30 times the cosine of features and classes, `distilled: true` gives a plain transformer a "
        "second token with a classifier of its own",
    )
    size: int | tuple[int, int] | None = Field(
        None, description="image size in pixels; default: the model's own if it is built for one, else the teacher's"
    )
    channels: int | None = Field(None, ge=1, le=64, description="channels of its images; default: the teacher's")
    mean: list[float] | None = Field(None, description="normalisation: mean of each channel, of images in 0 to 1")
    std: list[float] | None = Field(None, description="normalisation: deviation of each channel")
    checkpoint: File | None = Field(None, description="file of weights to start from, in timm's names")
    pretrained: bool = Field(False, description="start from timm's own pretrained weights")
    allow_pickle: bool = Field(False, description="also read a .pth file as `checkpoint`")


class TimmTarget(TargetAdapter):
    """Builds, initialises and exports students of any architecture of timm."""

    Options = TimmTargetOptions
    ExportOptions = ImageExport

    def tiny(self, options: BaseModel) -> BaseModel:
        """Return the options unchanged: an architecture by name has no shorter form; without a name, a small one."""
        if cast(TimmTargetOptions, options).model:
            return options
        return options.model_copy(update={"model": SMALL})

    def facts_from_data(self, data: DataInfo, options: BaseModel) -> ImageFacts:
        """Return the facts of a student for data with known classes and pictures.

        Raises:
            PlanError: the data do not declare classes.
        """
        classes, size = data.facts.get("classes"), data.facts.get("size")
        if not isinstance(classes, int):
            raise PlanError(
                "the data declare no classes, so there is nothing to learn without a teacher", "--teacher timm:…"
            )
        known = image_size(tuple(size) if isinstance(size, list | tuple) else size)
        names = tuple(str(name) for name in data.facts.get("class_names") or ())
        return replace(_own_facts(classes, data.facts.get("channels"), known, _merged(options)), class_names=names)

    def build(
        self, facts: ImageFacts, options: BaseModel, decisions: Mapping[str, Any], *, device: torch.device
    ) -> TimmStudent:
        chosen = _merged(options)
        own = _own_facts(facts.classes, facts.channels, (facts.height, facts.width), chosen)
        if not (chosen.pretrained or chosen.checkpoint) and own.channels == facts.channels:
            own = replace(own, mean=facts.mean, std=facts.std)
        own = replace(own, class_names=facts.class_names).normalised_by(chosen.mean, chosen.std)
        with torch.device(device):
            net = create(own)
        student = TimmStudent(net, own)
        student.decide(decisions)
        return student

    def own_weights(self, student: Student, options: BaseModel) -> Collection[str]:
        chosen, facts, net = _merged(options), student.facts, student.module
        meta = any(p.is_meta for p in net.parameters())
        if chosen.checkpoint:
            file = Path(chosen.checkpoint)
            if not meta:
                found = from_file(facts, file, allow_pickle=chosen.allow_pickle, resize=True, new_head=True)
                net.load_state_dict(found.state_dict())
            return names_to_load(net, shapes_of(file, allow_pickle=chosen.allow_pickle))
        if chosen.pretrained and not meta:
            net.load_state_dict(pretrained(facts).state_dict())
        return pretrained_names(net, facts) if chosen.pretrained else ()

    def recipe(self, facts: ImageFacts, options: BaseModel) -> str:
        return "ofa-kd"

    def export_graphs(self, student: Student, profile: Profile, options: Any) -> Sequence[ExportGraph]:
        return image_graphs(student, profile, options)

    def teacher_graphs(self, teacher: Teacher, profile: Profile, options: Any) -> Sequence[ExportGraph]:
        return image_graphs(teacher, profile, options) if isinstance(teacher, ImageModel) else ()


def _merged(options: BaseModel) -> TimmTargetOptions:
    """Return the options with what the model's reference says."""
    given = cast(TimmTargetOptions, options)
    named = parse(given.model)
    arguments = {**given.arguments, **named.arguments}
    values = {**given.model_dump(), **named.own, "model": named.name, "arguments": arguments}
    return validated(TimmTargetOptions, values, f"timm:{given.model} ")


def _own_facts(
    classes: int, channels: int | None, size: tuple[int, int] | None, chosen: TimmTargetOptions
) -> ImageFacts:
    wanted = image_size(chosen.size)
    if wanted is None and not has_own_size(chosen.model):
        wanted = size
    return describe(
        chosen.model,
        classes=classes,
        channels=chosen.channels or channels,
        size=wanted,
        arguments=chosen.arguments,
    )
