"""Edited scenes, converted: what was erased stays empty, the rest looks as the edited teacher (acceptance A14).

    python benchmarks/fields/edited.py

For each seed a hash field is trained from pictures of the procedural scene and baked into voxels. Three edits of the
voxels become planes times lines, each by a whole ``xarch.convert`` without export:

* ``erase``: the slab and all below it. ``alpha`` is the opacity of the erased box alone along the rays of held-out
  views that cross it; ``before`` has it for a student of the scene as it was.
* ``affine``: half the size, turned and shifted. ``psnr_moved`` compares the edited field, seen by cameras that moved
  along, with the field as it was: no density or direction may have changed.
* ``compose``: the scene without its slab, and the hash field half as large on top of it.

``psnr`` is that of whole held-out views against the edited teacher, ``psnr_matter`` counts only pixels in which the
teacher shows matter. Seconds are CPU seconds. Points are written as they are measured, and an interrupted run
resumes.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "plugins")]

import xarch  # noqa: E402
from benchmarks import page  # noqa: E402
from benchmarks.fields.pictures import procedural  # noqa: E402
from benchmarks.store import Store, add_options, header  # noqa: E402
from xarch_field import Camera, RadianceField, render  # noqa: E402
from xarch_field.model.rendering import ray_points, ray_weights  # noqa: E402
from xarch_pvd.data.views import fixed_cameras  # noqa: E402
from xarch_pvd.editing.fields import Moved  # noqa: E402
from xarch_pvd.evaluate.metric import psnr  # noqa: E402
from xarch_pvd.source.field_file import save_field_file  # noqa: E402
from xarch_pvd.source.reference import field_of, open_field  # noqa: E402
from xarch_pvd.targets.baking import baked  # noqa: E402
from xarch_pvd.targets.representations import OPTIONS, build_field  # noqa: E402
from xarch_pvd.targets.representations.records import to_file  # noqa: E402
from xarch_pvd.train import scene  # noqa: E402
from xarch_pvd.train.training import Pixels, TrainingOptions, train_field  # noqa: E402

SEEDS = (0, 1, 2)
ERASED = [[-0.8, -0.8, -1.0], [0.8, 0.8, -0.34]]
ERASE = {"erase": {"box": ERASED}}
AFFINE = {"affine": {"scale": 0.5, "rotate": {"x": 40, "z": 30}, "translate": [0.4, -0.2, 0.3]}}
SAMPLES = 192
LIMITS = {"alpha": 0.02, "psnr": 27.0}


def main() -> None:
    """Train, edit, convert, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=100, help="picture side in pixels")
    parser.add_argument("--steps", type=int, default=1000, help="training steps of the hash fields")
    parser.add_argument("--resolution", type=int, default=96, help="samples an axis of the voxels")
    parser.add_argument("--budget", type=int, default=2_400_000, help="points and rays of a conversion")
    parser.add_argument("--views", type=int, default=6, help="held-out views")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--work", type=Path, default=Path("fields-edited"), help="folder for teachers and runs")
    add_options(parser, "fields_edited")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = {k: getattr(arguments, k) for k in ("size", "steps", "resolution", "budget", "views")}
    store = Store(arguments.out, header("fields_edited", settings, threads=1), arguments.fresh)
    arguments.work /= store.key
    arguments.work.mkdir(parents=True, exist_ok=True)
    store.note(limits=LIMITS)
    for seed in arguments.seeds:
        known = store.facts.get("teachers", {})
        if str(seed) not in known or not all(file.is_file() for file in files(arguments.work, seed)):
            store.note(teachers={**known, str(seed): teacher(seed, arguments)})
        for name, edits in cases(arguments.work, seed).items():
            case = {"seed": seed, "edit": name}
            if store.find(**case) is None:
                print(store.add({**case, **measure(name, edits, seed, arguments)}), flush=True)
    page.show(store.finish())


def cases(work: Path, seed: int) -> dict[str, list[dict[str, Any]]]:
    """The edits that are measured, by name; "before" has none."""
    small = {"affine": {"scale": 0.5, "rotate": {"x": 90}, "translate": [0, 0, 0.75]}}
    other = {"compose": {"with": str(work / f"hash-{seed}.safetensors"), "mode": "sum", "edits": [ERASE, small]}}
    return {"before": [], "erase": [ERASE], "affine": [AFFINE], "compose": [ERASE, other]}


def files(work: Path, seed: int) -> list[Path]:
    """The hash field of a seed and its voxels."""
    return [work / f"{kind}-{seed}.safetensors" for kind in ("hash", "voxels")]


def teacher(seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train a hash field and bake it into voxels."""
    torch.manual_seed(seed)
    pictures = procedural(arguments.size)
    options = OPTIONS["hash"].model_validate({})
    field = build_field("hash", options, aabb=scene.BOX)
    spent = train_field(
        field, Pixels.of(pictures.cameras, pictures.picture), TrainingOptions(steps=arguments.steps, seed=seed)
    )
    voxels = baked(field.eval(), resolution=arguments.resolution)
    for file, kept in zip(files(arguments.work, seed), (field, voxels), strict=True):
        save_field_file(file, to_file(kept), pictures.views, {"seed": seed})
    scores = {k: round(pictures.score(f), 2) for k, f in (("hash", field), ("voxels", voxels))}
    return {"cpu_seconds": round(spent, 1), "psnr_truth": scores}


def measure(name: str, edits: list, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Convert an edited field to planes times lines and compare."""
    ref = str(arguments.work / f"voxels-{seed}.safetensors")
    load = os.getloadavg()[0]
    overrides: dict[str, Any] = {
        "recipe": "pvd",
        "teacher": f"field:{ref}",
        "teacher_options.edits": edits,
        "student.target": "vm",
        "export.profiles": [],
        "runtime.threads": 1,
        "runtime.tensorboard": False,
        "seed": seed,
        "evaluate.samples": 1,
        "evaluate.baseline": False,
        "budget": arguments.budget,
    }
    started = time.process_time()
    run = xarch.convert(
        overrides=overrides,
        out=arguments.work / f"{name}-{seed}-{time.time_ns()}",
    )
    row: dict[str, Any] = {"cpu_seconds": round(time.process_time() - started, 1), "load": round(load, 1)}
    student, opened = xarch.load(run.path), open_field(ref, edits=edits)
    field = field_of(opened.record)
    assert isinstance(student, RadianceField)
    cameras = fixed_cameras(opened.views, arguments.views, "heldout")
    pairs = [(picture(student, c), picture(field, c)) for c in cameras]
    matter = [seen["acc"] > 0.01 for _, seen in pairs]
    row["psnr"] = mean([psnr(one["rgb"], two["rgb"]) for one, two in pairs])
    row["psnr_matter"] = mean([psnr(a["rgb"][m], b["rgb"][m]) for (a, b), m in zip(pairs, matter, strict=True)])
    if name in ("before", "erase"):
        row["alpha"] = alpha_of(student, torch.tensor(ERASED), cameras)
    if name == "affine":
        row["psnr_moved"] = moved_along(field, field_of(open_field(ref).record), opened.views.width)
    return row


def picture(field: RadianceField, camera: Camera) -> dict[str, Tensor]:
    """A view of a field over its own background."""
    with torch.no_grad():
        seen = render(field, *camera.rays(), samples=SAMPLES)
    return {**seen, "rgb": seen["rgb"].clamp(0, 1)}


@torch.no_grad()
def alpha_of(field: RadianceField, box_23: Tensor, cameras: list[Camera]) -> dict[str, float]:
    """Opacity of what lies in a box alone, over the rays that cross it: mean, 99th percentile and largest."""
    values = []
    for camera in cameras:
        origins, dirs = camera.rays()
        # A box in the field of occupied cells: rays are sampled as they are rendered, only these samples count.
        points = ray_points(field, origins, dirs, SAMPLES)
        inside = ((points.x_N3 > box_23[0]) & (points.x_N3 < box_23[1])).all(dim=-1)
        sigma_N = field.query(points.x_N3, None, ("sigma",))["sigma"] * inside
        _, acc = ray_weights(points.unpack(sigma_N) * points.delta_RK)
        x_RK3 = origins[:, None] + points.t_RK[:, :, None] * dirs[:, None]
        crossing = ((x_RK3 > box_23[0]) & (x_RK3 < box_23[1])).all(dim=-1).any(dim=-1)
        values.append(acc[crossing])
    acc = torch.cat(values)
    return {
        "mean": round(float(acc.mean()), 5),
        "p99": round(float(acc.quantile(0.99)), 5),
        "max": round(float(acc.max()), 5),
        "rays": len(acc),
    }


def moved_along(field: RadianceField, before: RadianceField, size: int) -> float:
    """PSNR between a moved field seen by moved cameras and the field as it was."""
    assert isinstance(field, Moved)
    turn = torch.linalg.inv(field.back)
    scale = float(torch.linalg.det(turn) ** (1 / 3))
    values = []
    for camera in scene.random_cameras(3, size, torch.Generator().manual_seed(7)):
        c2w = camera.c2w.clone()
        c2w[:3, :3] = turn / scale @ c2w[:3, :3]
        c2w[:3, 3] = turn @ camera.c2w[:3, 3] + field.shift
        there = picture(field, replace(camera, c2w=c2w))["rgb"]
        values.append(psnr(there, picture(before, camera)["rgb"]))
    return mean(values)


def mean(values: list[float]) -> float:
    """Rounded mean."""
    return round(sum(values) / len(values), 2)


if __name__ == "__main__":
    main()
