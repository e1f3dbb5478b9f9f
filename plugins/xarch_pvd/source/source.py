"""Source ``field:``: trained radiance fields from files, and the demo field, trained on first use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import torch
from pydantic import BaseModel, Field

from xarch import Options, PlanError, SourceAdapter, SourceInfo, file_digest, weights_digest
from xarch_field.facts import FieldFacts, ViewFacts
from xarch_field.taps import FAMILY
from xarch_field.teacher import FieldTeacher
from xarch_pvd.editing.fields import EDITED
from xarch_pvd.editing.record import edited_field
from xarch_pvd.source.formats.record import FieldFile
from xarch_pvd.source.reference import RESOLUTION, OpenedField, field_of, open_field
from xarch_pvd.source.stitch import StitchedTeacher, has_latent
from xarch_pvd.targets.representations import OPTIONS, build_field
from xarch_pvd.targets.representations.records import NO_CLIP


class FieldOptions(Options):
    """Options of ``field:`` teachers."""

    allow_pickle: bool = Field(False, description="also read .pth, .th and .ckpt, with torch.load(weights_only=True)")
    edits: str | list[Any] = Field(
        [], description="edits (erase, crop, affine, compose): a list, or a YAML file with one"
    )
    samples: int = Field(128, ge=8, le=1 << 16, description="steps per ray")


class FieldSource(SourceAdapter):
    """``field:FILE`` in xarch's own safetensors or in a format of another project; ``field:RUN``; ``field:demo``."""

    Options = FieldOptions

    def tiny(self, options: BaseModel) -> BaseModel:
        """Return the options with few samples per ray."""
        return options.model_copy(update={"samples": 32})

    def describe(self, ref: str, options: BaseModel) -> SourceInfo:
        opened, samples = _open(ref, cast(FieldOptions, options))
        record = opened.record
        parameters = sum(t.numel() for n, t in record.tensors.items() if not n.endswith(".occupancy"))
        return SourceInfo(
            family=FAMILY,
            facts=facts_of(record, opened.views, samples),
            parameters=parameters,
            weight_bytes=opened.path.stat().st_size,
            title=f"{kind_of(record)} field, {parameters / 1e6:.2f} M parameters ({opened.path.name})",
            details=dict(record.details),
        )

    def load(self, ref: str, options: BaseModel, *, device: torch.device, dtype: torch.dtype) -> FieldTeacher:
        opened, samples = _open(ref, cast(FieldOptions, options))
        field = field_of(opened.record).to(device)
        facts = facts_of(opened.record, opened.views, samples)
        fingerprint = file_digest(opened.path)
        if facts.edits:
            # The fingerprint must cover composed fields and edits, which no weight records.
            fingerprint = f"{weights_digest(opened.record.tensors)} {json.dumps(opened.record.options, sort_keys=True)}"
        kind = StitchedTeacher if has_latent(field) else FieldTeacher
        return kind(field, facts, ref=f"field:{ref}", fingerprint=fingerprint)

    def random(self, ref: str, options: BaseModel, *, device: torch.device, seed: int) -> FieldTeacher:
        """Build a randomly initialised field with the same representation, box and occupancy.

        Raises:
            PlanError: the field is edited, or xarch can only read its representation.
        """
        opened, samples = _open(ref, cast(FieldOptions, options))
        record = opened.record
        if record.arch not in OPTIONS:
            raise PlanError(f"field:{ref} is of kind {kind_of(record)}, which xarch cannot initialise randomly")
        facts = facts_of(record, opened.views, samples)
        known = {k: v for k, v in record.options.items() if k in OPTIONS[record.arch].model_fields}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            field = build_field(
                record.arch,
                OPTIONS[record.arch].model_validate(known),
                aabb=facts.aabb,
                warp=facts.warp,
                warp_parameters=facts.warp_parameters,
                sigma_clip=facts.sigma_clip,
                background=facts.background,
                occupancy=field_of(record).occupancy,
            )
        where = f"random weights of field:{ref}"
        field = field.to(device).eval().requires_grad_(False)
        return FieldTeacher(field, facts, ref=where, fingerprint=weights_digest(field.state_dict()))


def facts_of(record: FieldFile, views: ViewFacts, samples: int) -> FieldFacts:
    """Return the facts of a teacher from its record."""
    low, high = record.aabb[:3], record.aabb[3:]
    grid = record.occupancy
    # Every kind of field in a file has the shared feature, or one that is stitched to it.
    arch, options, feature = record.arch, record.options, True
    edits: tuple[str, ...] = ()
    inherits: tuple[str, ...] | None = None
    if record.arch == EDITED:
        field = edited_field(record)
        edits, inherits = tuple(n for e in options["edits"] for n in e), field.inherits
        feature = field.has_feature or has_latent(field)
        # A student inherits from the underlying field.
        arch, options = (options["parts"][0][k] for k in ("arch", "options")) if inherits else (EDITED, {})
    return FieldFacts(
        arch=arch,
        aabb=((low[0], low[1], low[2]), (high[0], high[1], high[2])),
        options=_plain(options),
        warp=record.warp,
        sigma_clip=record.sigma_clip or NO_CLIP,
        background=record.background or (1.0, 1.0, 1.0),
        occupancy=RESOLUTION if grid is None else grid.shape[0],
        feature=feature,
        samples=samples,
        edits=edits,
        inherits=inherits,
        views=views,
    )


def _open(ref: str, options: FieldOptions) -> tuple[OpenedField, int]:
    return open_field(ref, allow_pickle=options.allow_pickle, edits=options.edits), options.samples


def kind_of(record: FieldFile) -> str:
    """Return the kind of a field, for display."""
    if record.arch != EDITED:
        return record.arch
    parts = " + ".join(part["arch"] for part in record.options["parts"])
    return f"edited {parts}"


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
