"""The graphs a field leaves as."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field

from xarch import ExportGraph, Options, PlanError, Profile, Throughput
from xarch_field import PointsGraph, RadianceField, RaysGraph, example_points, forms_of
from xarch_field.student import FieldStudent
from xarch_field.teacher import FieldTeacher
from xarch_pvd.export.encoded import encoded_graph
from xarch_pvd.export.parity import POINT_TAPS, RAY_TAPS

MEASURED, RAYS = 16_384, 256
"""Points and rays of a call when a bench measures graphs whose number is free."""


class FieldExport(Options):
    """Export options of a field."""

    samples: int | None = Field(None, ge=2, description="steps per ray; default the scene's")
    points: int = Field(4096, ge=1, description="points of a call where shapes are static")
    rays: int = Field(256, ge=1, description="rays of a call where shapes are static")
    grids: Literal["auto", "grid_sample", "gather"] = Field(
        "auto",
        description="operators of planes and lines: GridSample, or Gather and arithmetic; auto: the first that fits",
    )
    hash: Literal["loop", "batched"] = Field("loop", description="hash levels one by one, or all at once: fewer nodes")
    encoding: Literal["graph", "input"] = Field(
        "graph", description="mlp: `input` exports `encoded`, whose caller makes the positional encoding"
    )


def field_graphs(student: FieldStudent, profile: Profile, chosen: FieldExport) -> Sequence[ExportGraph]:
    """``points`` (xyz, dir -> sigma, rgb) and ``rays`` (origins, directions, background -> rgb, depth, acc); with
    ``encoding: input`` only ``encoded`` (pe, dir -> sigma, rgb).

    Raises:
        PlanError: the profile lacks what the representation needs.
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
            RaysGraph(student.field, samples, forms),
            {"origins": origins, "directions": ahead, "background": torch.ones(3)},
            ("rgb", "depth", "acc"),
            _free(profile, "rays", "origins", "directions"),
            {**metadata, "samples": samples},
            Throughput("rays", rays if profile.static else RAYS, {"rays": RAYS}),
            reads={"origins": "origins", "directions": "dirs", "background": "background"},
            # with another number of samples the graph is compared in cases that ask the student for as many
            gives=RAY_TAPS if samples == student.facts.samples else {},
        ),
    ]


def teacher_points(teacher: FieldTeacher, profile: Profile, chosen: FieldExport) -> Sequence[ExportGraph]:
    """The teacher's own ``points``: what a representation costs is told by its points.

    Raises:
        PlanError: the profile lacks what the teacher needs.
    """
    inside = chosen.model_copy(update={"encoding": "graph"})
    return field_graphs(FieldStudent(teacher.field, teacher.facts), profile, inside)[:1]


def facts_of_use(student: FieldStudent) -> dict[str, Any]:
    """What a user of the file needs to know."""
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
    """Say what does not fit before anything is traced.

    Raises:
        PlanError: hash tables without bitwise operators, or GridSample asked for where there is none.
    """
    hashes = profile.max_opset >= 18 and profile.allows("BitwiseXor", "BitwiseAnd") and profile.index_dtype == "int64"
    if "hash" in field.arch and not hashes:
        raise PlanError(
            f"a field of hash tables needs BitwiseXor on 64-bit integers (opset 18), and the export profile "
            f"{profile.name!r} has opset {profile.max_opset} and {profile.index_dtype} indices",
            "convert it first: `xarch convert --teacher field:RUN --to mlp --set student.options.preset=npu-mlp "
            f"--set export.profiles=[{profile.name}]` (RUN is this run; `--to vm` with npu-vm works too)",
        )
    if chosen.grids == "grid_sample" and not profile.allows("GridSample"):
        raise PlanError(
            f"export.options.grids is `grid_sample`, and the export profile {profile.name!r} has no GridSample",
            "take `auto` or `gather`",
        )
