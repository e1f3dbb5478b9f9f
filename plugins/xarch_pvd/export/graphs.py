"""ONNX graphs of a field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field

from xarch import ExportGraph, Options, PlanError, Profile, Throughput
from xarch_field import PointsGraph, RadianceField, RaysGraph, example_points, forms_of, packs
from xarch_field.student import FieldStudent
from xarch_field.teacher import FieldTeacher
from xarch_pvd.export.encoded_graph import encoded_graph
from xarch_pvd.export.parity import POINT_TAPS, RAY_TAPS

MEASURED, RAYS = 16_384, 256
"""Points and rays per call when benchmarking graphs with dynamic shapes."""


class FieldExport(Options):
    """Export options of a field."""

    samples: int | None = Field(None, ge=2, le=1 << 16, description="steps per ray; default the scene's")
    points: int = Field(4096, ge=1, le=1 << 24, description="points per call for static shapes")
    rays: int = Field(256, ge=1, le=1 << 24, description="rays per call for static shapes")
    grids: Literal["auto", "grid_sample", "gather"] = Field(
        "auto",
        description="operators for planes and lines: GridSample, or Gather and arithmetic; auto: the first supported",
    )
    hash: Literal["loop", "batched"] = Field(
        "loop", description="hash levels one at a time, or batched with fewer nodes"
    )
    empty: Literal["auto", "evaluate"] = Field(
        "auto", description="samples in empty cells: left out where the profile can, or evaluated like the others"
    )
    encoding: Literal["graph", "input"] = Field(
        "graph", description="mlp: `input` exports `encoded`, whose caller computes the positional encoding"
    )


def field_graphs(student: FieldStudent, profile: Profile, chosen: FieldExport) -> Sequence[ExportGraph]:
    """Build the graphs of a student.

    These are ``points`` (xyz, dir -> sigma, rgb) and ``rays`` (origins, directions, background -> rgb, depth, acc);
    with ``encoding: input`` only ``encoded`` (pe, dir -> sigma, rgb).

    Raises:
        PlanError: the profile lacks operators that the representation needs.
    """
    _refuse(student.field, profile, chosen)
    forms = {**forms_of(profile), "hash": chosen.hash}
    if chosen.grids != "auto":
        forms["grid"] = chosen.grids
    metadata = facts_of_use(student)
    xyz, dirs = example_points(chosen.points if profile.static else 7)
    work = Throughput("points", chosen.points if profile.static else MEASURED, {"points": MEASURED})
    if chosen.encoding == "input":
        return [encoded_graph(student, xyz, dirs, _free(profile, "points", "pe", "dir"), metadata, work)]
    samples = chosen.samples or student.facts.samples
    rays = chosen.rays if profile.static else 5
    origins = torch.zeros(rays, 3) + torch.tensor([0.0, 0.0, 4.0])
    ahead = torch.nn.functional.normalize(torch.randn(rays, 3, generator=torch.Generator().manual_seed(1)), dim=-1)
    return [
        ExportGraph(
            "points",
            PointsGraph(student.field, forms),
            {"xyz": xyz, "dir": dirs},
            ("sigma", "rgb"),
            _free(profile, "points", "xyz", "dir"),
            metadata,
            work,
            reads={"xyz": "xyz", "dir": "dirs"},
            gives=POINT_TAPS,
        ),
        ExportGraph(
            "rays",
            RaysGraph(student.field, samples, forms, packed=chosen.empty == "auto" and packs(profile)),
            {"origins": origins, "directions": ahead, "background": torch.ones(3)},
            ("rgb", "depth", "acc"),
            _free(profile, "rays", "origins", "directions"),
            {**metadata, "samples": samples},
            Throughput("rays", rays if profile.static else RAYS, {"rays": RAYS}),
            reads={"origins": "origins", "directions": "dirs", "background": "background"},
            # With another number of samples, parity cases request the same number from the student.
            gives=RAY_TAPS if samples == student.facts.samples else {},
        ),
    ]


def teacher_points(teacher: FieldTeacher, profile: Profile, chosen: FieldExport) -> Sequence[ExportGraph]:
    """Build the teacher's own ``points`` graph, which shows the cost of its representation.

    Raises:
        PlanError: the profile lacks operators that the teacher needs.
    """
    inside = chosen.model_copy(update={"encoding": "graph"})
    return field_graphs(FieldStudent(teacher.field, teacher.facts), profile, inside)[:1]


def facts_of_use(student: FieldStudent) -> dict[str, Any]:
    """Return metadata for users of the exported file."""
    facts = student.facts
    return {
        "kind": "radiance-field",
        "arch": student.field.arch,
        "aabb": [list(corner) for corner in facts.aabb],
        "warp": facts.warp,
        "sigma_clip": list(facts.sigma_clip),
        "density": "per world unit",
        "background": list(facts.background),
        "camera": {
            "width": facts.views.width,
            "height": facts.views.height,
            "focal": facts.views.focal,
            "radius": facts.views.radius[1],
            "target": list(facts.views.target),
        },
    }


def _free(profile: Profile, symbol: str, *inputs: str) -> dict[str, dict[int, str]]:
    return {} if profile.static else {name: {0: symbol} for name in inputs}


def _refuse(field: RadianceField, profile: Profile, chosen: FieldExport) -> None:
    """Reject unsupported combinations before tracing.

    Raises:
        PlanError: the profile lacks bitwise operators for hash tables, or a requested GridSample.
    """
    hashes = profile.max_opset >= 18 and profile.allows("BitwiseXor", "BitwiseAnd") and profile.index_dtype == "int64"
    if "hash" in field.arch and not hashes:
        raise PlanError(
            f"a field of hash tables needs BitwiseXor on 64-bit integers (opset 18), but the export profile "
            f"{profile.name!r} has opset {profile.max_opset} and {profile.index_dtype} indices",
            "convert it first: `xarch convert --teacher field:RUN --to mlp --set student.options.preset=npu-mlp "
            f"--set export.profiles=[{profile.name}]` (RUN is this run; `--to vm` with npu-vm works too)",
        )
    if chosen.grids == "grid_sample" and not profile.allows("GridSample"):
        raise PlanError(
            f"export.options.grids is `grid_sample`, but the export profile {profile.name!r} has no GridSample",
            "use `auto` or `gather`",
        )
