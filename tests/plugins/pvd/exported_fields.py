"""A small trained field as a student, and its export to a profile."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from tests.plugins.pvd.tiny_field import OPTIONS_OF, SIZE, trained
from xarch.contracts.export import Profile
from xarch.export.onnx_export import Translated, to_onnx
from xarch.export.run import ExportResult, export_profile
from xarch.planning.resolve import resolve_target
from xarch.registry.loader import get_registry
from xarch_field.facts import FieldFacts, ViewFacts
from xarch_field.student import FieldStudent
from xarch_pvd.data.fixed import picture_batch
from xarch_pvd.data.views import fixed_cameras
from xarch_pvd.export.graphs import FieldExport
from xarch_pvd.targets.representations import OPTIONS, build_field
from xarch_pvd.train import scene

SAMPLES = 32


def student_of(arch: str, **options: Any) -> FieldStudent:
    """Its trained field; with options of its own an untrained one with the trained one's occupancy."""
    views = ViewFacts(width=SIZE, height=SIZE, focal=1.39, radius=(scene.RADIUS, scene.RADIUS))
    low, high = (tuple(corner) for corner in scene.BOX)
    facts = FieldFacts(arch=arch, aabb=(low, high), samples=SAMPLES, views=views)
    chosen = OPTIONS[arch].model_validate(options or OPTIONS_OF[arch])
    torch.manual_seed(0)
    grid = trained().occupancy
    field = build_field(arch, chosen, aabb=scene.BOX, occupancy=grid) if options else trained(arch)
    return FieldStudent(field.eval().requires_grad_(False), facts, chosen)


@cache
def translated(arch: str) -> Translated:
    """What has been translated of the fields that the tests of a file share."""
    return Translated()


def export(student: FieldStudent, profile: Profile, out: Path, **options: Any) -> ExportResult:
    """Export it with two held-out views for the parity gate."""
    adapter = resolve_target(get_registry(), student.field.arch, {}).adapter
    views = [picture_batch(c, (1.0, 1.0, 1.0)) for c in fixed_cameras(student.facts.views, 2, "heldout")]
    return export_profile(
        student,
        adapter,
        profile,
        options=FieldExport(**options),
        batches=views,
        out=out,
        metadata={},
        say=lambda line: None,
        translate=partial(to_onnx, known=translated(student.field.arch)),
    )
