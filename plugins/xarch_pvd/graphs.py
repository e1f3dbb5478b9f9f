"""The graphs a field leaves as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from xarch import ExportGraph, Profile, UsageError
from xarch.families.field import PointsGraph, RaysGraph, example_points
from xarch.families.field.model import FieldStudent

RAYS = 1024
"""Rays of a call with a profile of static shapes."""


def field_graphs(student: FieldStudent, profile: Profile, options: Mapping[str, Any]) -> Sequence[ExportGraph]:
    """``points`` (xyz, dir -> sigma, rgb) and ``rays`` (origins, directions, background -> rgb, depth, acc).

    Options:
        samples: steps along a ray in the ``rays`` graph; default the scene's.
        points, rays: with a profile of static shapes, how many of them a call takes (4096 and 1024).

    Raises:
        UsageError: an option is unknown.
    """
    unknown = sorted(set(options) - {"samples", "points", "rays"})
    if unknown:
        raise UsageError(f"export.options has no {unknown[0]!r} for fields", "options: samples, points, rays")
    samples = int(options.get("samples", student.facts.samples))
    lowering = "gather" if "gather" in profile.lowerings else "grid_sample"
    metadata = facts_of_use(student)
    xyz, dirs = example_points(int(options.get("points", 4096)) if profile.static else 7)
    rays = int(options.get("rays", RAYS)) if profile.static else 5
    origins = torch.zeros(rays, 3) + torch.tensor([0.0, 0.0, 4.0])
    ahead = torch.nn.functional.normalize(torch.randn(rays, 3, generator=torch.Generator().manual_seed(1)), dim=-1)
    free_points = {} if profile.static else {"xyz": {0: "points"}, "dir": {0: "points"}}
    free_rays = {} if profile.static else {"origins": {0: "rays"}, "directions": {0: "rays"}}
    return [
        ExportGraph(
            "points",
            PointsGraph(student.field, lowering),
            {"xyz": xyz, "dir": dirs},
            ("sigma", "rgb"),
            free_points,
            metadata,
        ),
        ExportGraph(
            "rays",
            RaysGraph(student.field, samples, lowering),
            {"origins": origins, "directions": ahead, "background": torch.ones(3)},
            ("rgb", "depth", "acc"),
            free_rays,
            {**metadata, "samples": samples},
        ),
    ]


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
