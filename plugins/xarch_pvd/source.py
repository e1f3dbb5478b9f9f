"""Source ``field:``: trained radiance fields from files, and the demo field that is trained on first use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import BaseModel, Field

from xarch import Options, SourceAdapter, SourceInfo, UsageError, file_digest
from xarch.families.field import occupancy
from xarch.families.field.facts import FieldFacts, ViewFacts
from xarch.families.field.model import FAMILY, FieldTeacher
from xarch_pvd.demo import DEMO, demo_field
from xarch_pvd.field_file import is_field_file, load_field_file
from xarch_pvd.formats import read_field
from xarch_pvd.formats.record import FieldFile
from xarch_pvd.representations.records import NO_CLIP, from_file

RESOLUTION = 64
SPHERE = 1.9
"""Camera distance in circumradii of the box, for files that tell nothing of their cameras."""
FEATURE_ARCHS = ("hash", "mlp", "vm", "cp", "torch-ngp-mlp")
"""Kinds of field with the feature of 16 values that fields are aligned on."""


class FieldOptions(Options):
    """Options of ``field:`` teachers."""

    allow_pickle: bool = Field(False, description="read .pth, .th and .ckpt too, by torch.load(weights_only=True)")
    samples: int = Field(128, ge=8, description="steps along a ray")


class FieldSource(SourceAdapter):
    """``field:FILE`` in xarch's own safetensors or in a format of another project; ``field:demo``."""

    Options = FieldOptions

    def tiny(self, options: BaseModel) -> BaseModel:
        """The field as it is, with few samples on a ray."""
        return options.model_copy(update={"samples": 32})

    def describe(self, ref: str, options: BaseModel) -> SourceInfo:
        record, views, path = _read(ref, cast(FieldOptions, options))
        parameters = sum(t.numel() for t in record.tensors.values())
        return SourceInfo(
            family=FAMILY,
            facts=facts_of(record, views, cast(FieldOptions, options).samples),
            parameters=parameters,
            weight_bytes=path.stat().st_size,
            title=f"{record.arch} field, {parameters / 1e6:.2f} M parameters ({path.name})",
            details=dict(record.details),
        )

    def load(self, ref: str, options: BaseModel, *, device: torch.device, dtype: torch.dtype) -> FieldTeacher:
        record, views, path = _read(ref, cast(FieldOptions, options))
        field = from_file(record)
        if record.occupancy is None:
            field.set_occupancy(occupancy.build(field, resolution=RESOLUTION))
        field.to(device).eval().requires_grad_(False)
        facts = facts_of(record, views, cast(FieldOptions, options).samples)
        return FieldTeacher(field, facts, ref=f"field:{ref}", fingerprint=file_digest(path))


def facts_of(record: FieldFile, views: ViewFacts | None, samples: int) -> FieldFacts:
    """Facts of a teacher from its record; cameras on a sphere around the box if the file has none."""
    low, high = record.aabb[:3], record.aabb[3:]
    grid = record.occupancy
    return FieldFacts(
        arch=record.arch,
        aabb=((low[0], low[1], low[2]), (high[0], high[1], high[2])),
        options=_plain(record.options),
        warp=record.warp,
        sigma_clip=record.sigma_clip or NO_CLIP,
        background=record.background or (1.0, 1.0, 1.0),
        occupancy=RESOLUTION if grid is None else grid.shape[0],
        feature=record.arch in FEATURE_ARCHS,
        samples=samples,
        views=views or _sphere(record),
    )


def _read(ref: str, options: FieldOptions) -> tuple[FieldFile, ViewFacts | None, Path]:
    path = demo_field() if ref == DEMO else Path(ref).expanduser()
    if path.is_dir():
        raise UsageError(
            f"field:{ref} is a folder of pictures, not a trained field",
            f"train a teacher first: `xarch pvd train {ref} --out teacher.safetensors`",
        )
    if not path.is_file():
        raise UsageError(f"field:{ref}: there is no such file", "or take `field:demo`, which is trained on first use")
    if is_field_file(path):
        record, views = load_field_file(path)
        return record, views, path
    return read_field(path, allow_pickle=options.allow_pickle), None, path


def _sphere(record: FieldFile) -> ViewFacts:
    corners = torch.tensor(record.aabb).view(2, 3)
    middle = corners.mean(dim=0).tolist()
    radius = SPHERE * float((corners[1] - corners[0]).norm()) / 2
    return replace(ViewFacts(), radius=(radius, radius), target=(middle[0], middle[1], middle[2]))


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
