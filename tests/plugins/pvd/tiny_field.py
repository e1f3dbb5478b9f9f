"""A small trained field, made in seconds."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path

import torch

from xarch_field import RadianceField
from xarch_field.facts import ViewFacts
from xarch_pvd.source.field_file import save_field_file
from xarch_pvd.targets.representations import OPTIONS, build_field
from xarch_pvd.targets.representations.records import to_file
from xarch_pvd.train import scene
from xarch_pvd.train.training import Pixels, TrainingOptions, train_field

SIZE = 24
OPTIONS_OF = {
    "hash": {"levels": 4, "log2_size": 10, "finest": 48, "hidden": 16},
    "mlp": {"layers": 2, "width": 32, "frequencies": 4},
    "vm": {"resolution": 24, "density_rank": 4, "colour_rank": 6},
    "cp": {"resolution": 24, "density_rank": 8, "colour_rank": 12},
    "hash+vm": {
        "levels": 3,
        "log2_size": 10,
        "finest": 40,
        "hidden": 16,
        "resolution": 20,
        "density_rank": 3,
        "colour_rank": 5,
    },
    "tensors": {"resolution": 32, "degree": 2},
}


@cache
def _trained(arch: str, steps: int) -> RadianceField:
    # Without the fork, numbers drawn after this call would depend on whether an earlier test has made the field.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cameras = scene.random_cameras(10, SIZE, torch.Generator().manual_seed(0))
        pixels = Pixels.of(cameras, lambda i: scene.render_view(cameras[i]))
        field = build_field(arch, OPTIONS[arch].model_validate(OPTIONS_OF[arch]), aabb=scene.BOX)
        options = TrainingOptions(steps=steps, rays=256, samples=48, resolution=16, warmup=32, every=32)
        train_field(field, pixels, options)
    return field


def trained(arch: str = "vm", steps: int = 120) -> RadianceField:
    """A field of the procedural scene from ten small pictures; a copy, so that no test changes another's."""
    return deepcopy(_trained(arch, steps))


def write_teacher(file: Path, arch: str = "vm", steps: int = 120) -> str:
    """The field as a file; returns its reference."""
    options = OPTIONS[arch].model_validate(OPTIONS_OF[arch]).model_dump(mode="json")
    views = ViewFacts(width=SIZE, height=SIZE, focal=1.39, radius=(scene.RADIUS, scene.RADIUS))
    save_field_file(file, to_file(trained(arch, steps), options), views, {})
    return f"field:{file}"
