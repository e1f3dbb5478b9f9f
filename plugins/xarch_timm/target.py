"""The target ``timm``: students of any architecture of timm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from pydantic import BaseModel, Field

from xarch import DataInfo, ExportGraph, Initialisation, Options, PlanError, Profile, Student, TargetAdapter, Teacher
from xarch_image import ImageFacts
from xarch_timm.build import create, describe
from xarch_timm.export import image_graphs
from xarch_timm.model import TimmStudent
from xarch_timm.reference import image_size, parse


class TimmTargetOptions(Options):
    """Options of students."""

    model: str = Field("", description="name of the model in timm, e.g. vit_tiny_patch16_224")
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="further arguments of timm.create_model, e.g. {patch_size: 4, depth: 6}"
    )
    size: int | tuple[int, int] | None = Field(
        None, description="image size in pixels; default: the teacher's, or the model's own if it has one"
    )
    channels: int | None = Field(None, ge=1, le=64, description="channels of its images; default: the teacher's")
    checkpoint: str | None = Field(None, description="file of weights to start from, in timm's names")
    pretrained: bool = Field(False, description="start from timm's own pretrained weights")
    allow_pickle: bool = Field(False, description="also read .pth files as `checkpoint`")


class TimmTarget(TargetAdapter):
    """Builds, initialises and exports students of any architecture of timm."""

    Options = TimmTargetOptions

    def facts_from_data(self, data: DataInfo, options: BaseModel) -> ImageFacts:
        """Return the facts of a student for data with known classes and pictures.

        Raises:
            PlanError: the data do not declare classes.
        """
        classes, size = data.facts.get("classes"), data.facts.get("size")
        if not isinstance(classes, int):
            raise PlanError(
                "the data do not declare the number of classes, so there is nothing to train without a teacher"
            )
        known = image_size(tuple(size) if isinstance(size, list | tuple) else size)
        return self._own_facts(classes, data.facts.get("channels"), known, cast(TimmTargetOptions, options))

    def build(
        self, facts: ImageFacts, options: BaseModel, decisions: Mapping[str, Any], *, device: torch.device
    ) -> TimmStudent:
        chosen = cast(TimmTargetOptions, options)
        own = self._own_facts(facts.classes, facts.channels, (facts.height, facts.width), chosen)
        if not _starts_trained(chosen) and own.channels == facts.channels:
            own = replace(own, mean=facts.mean, std=facts.std)
        own = replace(own, class_names=facts.class_names)
        with torch.device(device):
            net = create(own)
        return TimmStudent(net, own)

    def _own_facts(
        self, classes: int, channels: int | None, size: tuple[int, int] | None, chosen: TimmTargetOptions
    ) -> ImageFacts:
        named = parse(chosen.model)
        arguments = {**named.arguments, **chosen.arguments}
        wanted = image_size(chosen.size)
        if wanted is None and not _has_own_size(named.name):
            wanted = size
        return describe(
            named.name, classes=classes, channels=chosen.channels or channels, size=wanted, arguments=arguments
        )

    def initialise(self, student: Student, teacher: Teacher) -> Initialisation:
        return self.initialisation(student.facts, student)

    def export_graphs(self, student: Student, profile: Profile, options: Any) -> Sequence[ExportGraph]:
        return image_graphs(student, profile)


def _starts_trained(chosen: TimmTargetOptions) -> bool:
    return chosen.pretrained or chosen.checkpoint is not None


def _has_own_size(name: str) -> bool:
    """Return whether a model is built for one image size, which then is the student's."""
    import timm

    config = timm.get_pretrained_cfg(name)
    return bool(config is not None and config.fixed_input_size)
