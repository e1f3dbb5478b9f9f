"""How much time a conversion saves over training the same field from pictures, in one command.

    python benchmarks/fields/speed_up.py

For each kind of student: CPU seconds of one thread until a picture quality is reached, 1 dB below the teacher's own
against the scene, by conversion of the teacher and by training from pictures with the same optimiser and renderer. The
conversion counts planning, start and stages; evaluation is outside of both. Training from pictures is counted with an
occupancy grid of its own, given the teacher's grid, and (``mlp``) with uniform samples and no grid, as NeRFs
were trained classically; the seconds of the teacher stand apart.

Both sides are searched: a conversion over its budget and the points of a step, a training over its steps, the rays of
a step and the samples of a ray. For each batch the schedule grows, each ending at its own end, until one reaches the
quality or takes longer than the best one so far; all that was tried is stored, and the fastest counts. A training is
evaluated while it runs and counts only until it reaches the quality; a conversion counts in full. Further seeds start
with the batch and the schedule of the first one. PSNR is that of every third ray of four views that nobody trained on.
Points are written as they are measured, and an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "plugins")]

import xarch  # noqa: E402
from benchmarks import page  # noqa: E402
from benchmarks.fields.stopwatch import machine_state, timed  # noqa: E402
from benchmarks.store import Store, add_options, header  # noqa: E402
from xarch_field import RadianceField, render  # noqa: E402
from xarch_pvd.evaluate.metric import psnr  # noqa: E402
from xarch_pvd.source.field_file import field_head, load_field_file  # noqa: E402
from xarch_pvd.targets.representations import OPTIONS, build_field  # noqa: E402
from xarch_pvd.targets.representations.records import from_file  # noqa: E402
from xarch_pvd.train import demo, scene  # noqa: E402
from xarch_pvd.train.training import Pixels, TrainingOptions, train_field  # noqa: E402

STUDENTS = ("vm", "cp", "hash", "tensors", "mlp")
BELOW = 1.0
"""dB below the teacher that have to be reached."""
SHARES = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.2, 3.0)
"""Budgets of the conversions tried, as shares of the recipe's."""
POINTS = (4096, 2048, 8192)
"""Points a step of the conversions tried; the first is the recipe's."""
STEPS = (100, 200, 400, 700, 1000, 1400, 2000)
"""Lengths of the trainings tried."""
BATCHES = ((512, 64), (512, 48), (256, 64), (1024, 64), (1024, 128))
"""Rays a step and samples a ray of the trainings tried."""
OCCUPANCY: dict[str, Literal["found", "given", "none"]] = {"own": "found", "given": "given", "uniform": "none"}
"""Source of the occupancy grid of a training, by part."""
LOOKS = 12
"""How often a training is evaluated."""
STRIDE = 3
DROP_SECONDS = 45.0
"""Time after which the drop against the scene is stated."""


class Judge:
    """Pictures of the scene from cameras that nobody trained on."""

    def __init__(self) -> None:
        cameras = scene.random_cameras(4, demo.SIZE, torch.Generator().manual_seed(1))
        self.views = []
        for camera in cameras:
            picture = scene.render_view(camera).view(-1, 4)[::STRIDE]
            origins, dirs = (part[::STRIDE] for part in camera.rays())
            self.views.append(((origins, dirs), picture[:, :3] * picture[:, 3:] + 1 - picture[:, 3:]))

    def __call__(self, field: RadianceField) -> float:
        """Mean PSNR over the views, dB, over white."""
        with torch.no_grad():
            white = torch.ones(3)
            values = [psnr(render(field, o, d, white)["rgb"].clamp(0, 1), seen) for (o, d), seen in self.views]
        return sum(values) / len(values)


def main() -> None:
    """Train the teacher, convert, train from pictures, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--students", default=",".join(STUDENTS), help="comma-separated")
    parser.add_argument("--seeds", type=int, default=3, help="seeds; the first one finds the budget and the lengths")
    parser.add_argument("--steps", default=",".join(map(str, STEPS)), help="lengths of the trainings, comma-separated")
    parser.add_argument("--cap", type=float, default=400, help="CPU seconds after which a training from pictures stops")
    parser.add_argument("--parts", default="convert,drop,own,given,uniform", help="which measurements, comma-separated")
    parser.add_argument("--work", type=Path, default=Path("fields-speed-up"), help="folder for teacher and runs")
    add_options(parser, "fields_speed_up")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["XARCH_HOME"] = str(arguments.work.resolve())
    file, judge = demo.demo_field(), Judge()
    settings = {"size": demo.SIZE, "steps": arguments.steps, "cap": arguments.cap, "below": BELOW, "batches": BATCHES}
    store = Store(arguments.out, header("fields_speed_up", settings, threads=1), arguments.fresh)
    teacher = from_file(load_field_file(file)[0])
    quality = judge(teacher)
    taken = field_head(file).details["cpu_seconds"]
    store.note(teacher={"psnr": round(quality, 2), "cpu_seconds": taken}, wanted=round(quality - BELOW, 2))
    cameras = scene.random_cameras(demo.VIEWS, demo.SIZE, torch.Generator().manual_seed(demo.SEED))
    pixels = Pixels.of(cameras, lambda i: scene.render_view(cameras[i]))
    for part, arch, seed in itertools.product(
        arguments.parts.split(","), arguments.students.split(","), range(arguments.seeds)
    ):
        case = {"student": arch, "part": part, "seed": seed}
        if store.find(**case) is not None:
            continue
        first = store.find(student=arch, part=part, seed=0)
        if part == "convert":
            convert = functools.partial(converted, arch, seed, file, judge, arguments.work)
            batches = POINTS if point_stages(conversion_of(arch, seed, file)) else POINTS[:1]
            row = fastest(
                convert, batches, SHARES, quality - BELOW, (first["points"], first["share"]) if first else None
            )
        elif part == "drop" and arch in ("vm", "cp"):
            reached = store.find(student=arch, part="convert", seed=seed)
            if reached is None:
                parser.error("--parts drop needs convert, measured before or in the same command")
            share = reached["share"] * DROP_SECONDS / reached["cpu_seconds"]
            row = converted(arch, seed, file, judge, arguments.work, reached["points"], share, math.inf)
            row["drop"] = round(quality - row["psnr"], 2)
        elif part in ("own", "given") or (part == "uniform" and arch == "mlp"):
            given = teacher.occupancy if part == "given" else None
            lengths = tuple(int(n) for n in arguments.steps.split(","))
            train = functools.partial(trained, arch, seed, pixels, judge, quality - BELOW, arguments.cap, part, given)
            start = ((first["rays"], first["samples"]), first["steps"]) if first else None
            row = fastest(train, BATCHES, lengths, quality - BELOW, start)
        else:
            continue
        store.add({**case, **row})
        print({**case, **{k: v for k, v in row.items() if k not in ("curve", "parts", "tried")}}, flush=True)
    page.show(store.finish())


def fastest(
    attempt: Callable[[Any, Any, float], dict[str, Any]],
    batches: Sequence[Any],
    lengths: Sequence[Any],
    wanted: float,
    start: tuple[Any, Any] | None,
) -> dict[str, Any]:
    """The attempt that reached the quality in the least time; without one, the one of the best quality.

    Args:
        attempt: takes a batch, a length, and seconds after which it may give up; its row has ``psnr``, ``cpu_seconds``.
        start: the only batch that is tried, and the first length; None searches all of them.
    """
    if start is not None:
        batches, lengths = [start[0]], [n for n in lengths if n >= start[1]]
    tried: list[dict[str, Any]] = []
    best: dict[str, Any] | None = None
    for batch in batches:
        for length in lengths:
            row = attempt(batch, length, math.inf if best is None else best["cpu_seconds"])
            tried.append(row)
            if best is None or row["cpu_seconds"] < best["cpu_seconds"]:
                best = row if row["psnr"] >= wanted else best
            if row["psnr"] >= wanted or row["cpu_seconds"] >= (math.inf if best is None else best["cpu_seconds"]):
                break
    kept = ("points", "share", "rays", "samples", "steps", "cpu_seconds", "psnr")
    chosen = best or max(tried, key=lambda row: row["psnr"])
    return {**chosen, "reached": best is not None, "tried": [{k: t[k] for k in kept if k in t} for t in tried]}


def converted(
    arch: str, seed: int, file: Path, judge: Judge, work: Path, points: int, share: float, _: float
) -> dict[str, Any]:
    """One whole conversion with a share of the recipe's budget; it is never given up."""
    chosen = conversion_of(arch, seed, file)
    stages = point_stages(chosen)
    chosen["budget"] = max(1, int(xarch.plan(overrides=chosen).config.budget * share))
    chosen |= {f"stages.{name}.batch": points for name in stages}
    run, row = timed(chosen, work / f"{arch}-{seed}-{points}-{share:.3f}-{os.getpid()}")
    found = json.loads((run.path / "eval.json").read_text())["student"]
    field: Any = xarch.load(run.path)
    psnrs = {"psnr": round(judge(field), 2), "psnr_teacher": round(found["psnr_teacher"], 2)}
    return {"points": points, "share": share, **psnrs, **row}


def conversion_of(arch: str, seed: int, file: Path) -> dict[str, Any]:
    return {"teacher": f"field:{file}", "student.target": arch, "seed": seed}


def point_stages(chosen: dict[str, Any]) -> list[str]:
    """Stages of a conversion that train on points."""
    stages = xarch.plan(overrides=chosen).config.stages
    return [name for name in ("volume", "points") if name in stages and not stages[name].skip]


def trained(
    arch: str,
    seed: int,
    pixels: Pixels,
    judge: Judge,
    wanted: float,
    cap: float,
    part: str,
    given: Tensor | None,
    batch: tuple[int, int],
    steps: int,
    best: float,
) -> dict[str, Any]:
    """One training from pictures, given up after ``cap`` seconds or those of the best one so far."""
    torch.manual_seed(seed)
    field = build_field(arch, OPTIONS[arch].model_validate({}), aabb=scene.BOX)
    if given is not None:
        field.set_occupancy(given)
    curve: list[tuple[float, float]] = []
    cap = min(cap, best)

    def look(step: int, seconds: float) -> bool:
        if step % max(steps // LOOKS, 1) and seconds < cap:
            return False
        curve.append((round(seconds, 1), round(judge(field), 2)))
        return curve[-1][1] >= wanted or seconds >= cap

    state = machine_state()
    rays, samples = batch
    options = TrainingOptions(steps=steps, rays=rays, samples=samples, seed=seed, occupancy=OCCUPANCY[part])
    train_field(field, pixels, options, until=look)
    seconds, psnr_reached = curve[-1]
    found = {"rays": rays, "samples": samples, "steps": steps, "cpu_seconds": seconds, "psnr": psnr_reached}
    return {**found, "curve": curve, **state}


if __name__ == "__main__":
    main()
