"""How much time a conversion saves over training the same field from pictures, in one command.

    python benchmarks/fields/speed_up.py

For each kind of student: CPU seconds of one thread until a picture quality is reached, 1 dB below the teacher's own
against the scene, by conversion of the teacher and by training from pictures with the same optimiser and renderer. The
conversion counts planning, start and stages; evaluation is outside of both. Training from pictures is counted with an
occupancy grid of its own, given the teacher's grid, and (``mlp``) with uniform samples and no grid, as NeRFs
were trained classically; the seconds of the teacher stand apart.

Both sides are searched over the length of their schedule; the rays and samples a step of a training are fixed, so the
trainings are tuned less than they could be. A conversion is repeated with growing budgets, a training with growing
numbers of steps, each schedule ending at its own end, until one reaches the quality; only that one counts. A training
is evaluated while it runs and counts only until it reaches the quality; a conversion counts in full. Further seeds
start with the schedule of the first one. PSNR is that of every third ray of four views that nobody trained on. Points
are written as they are measured, and an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
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
STEPS = (100, 200, 400, 700, 1000, 1400, 2000)
"""Lengths of the trainings tried."""
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
    settings = {"size": demo.SIZE, "steps": arguments.steps, "cap": arguments.cap, "below": BELOW}
    store = Store(arguments.out, header("fields_speed_up", settings, threads=1), arguments.fresh)
    teacher = from_file(load_field_file(file)[0])
    quality = judge(teacher)
    taken = field_head(file)["details"]["cpu_seconds"]
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
            shares = SHARES if first is None else [s for s in SHARES if s >= first["curve"][-1]["share"]]
            row = conversion(arch, seed, file, judge, quality - BELOW, shares, arguments.work)
        elif part == "drop" and arch in ("vm", "cp"):
            reached = store.find(student=arch, part="convert", seed=seed)
            if reached is None:
                parser.error("--parts drop needs convert, measured before or in the same command")
            rate = reached["curve"][-1]
            share = rate["share"] * DROP_SECONDS / rate["cpu_seconds"]
            row = converted(arch, seed, file, judge, share, arguments.work)
            row["drop"] = round(quality - row["psnr"], 2)
        elif part in ("own", "given") or (part == "uniform" and arch == "mlp"):
            given = teacher.occupancy if part == "given" else None
            chosen = tuple(int(n) for n in arguments.steps.split(","))
            lengths = chosen if first is None else tuple(n for n in chosen if n >= first["steps"])
            goal = (quality - BELOW, arguments.cap)
            attempt = functools.partial(trained, arch, seed, pixels, judge, goal, part, given)
            row = training(attempt, lengths, arguments.cap)
        else:
            continue
        store.add({**case, **row})
        print({**case, **{k: v for k, v in row.items() if k not in ("curve", "parts")}}, flush=True)
    page.show(store.finish())


def conversion(
    arch: str, seed: int, file: Path, judge: Judge, wanted: float, shares: Sequence[float], work: Path
) -> dict[str, Any]:
    """Growing budgets until one reaches the quality."""
    curve = []
    for share in shares:
        curve.append(converted(arch, seed, file, judge, share, work))
        if curve[-1]["psnr"] >= wanted:
            break
    return {"reached": curve[-1]["psnr"] >= wanted, "cpu_seconds": curve[-1]["cpu_seconds"], "curve": curve}


def converted(arch: str, seed: int, file: Path, judge: Judge, share: float, work: Path) -> dict[str, Any]:
    """One whole conversion with a share of the recipe's budget."""
    chosen: dict[str, Any] = {"teacher": f"field:{file}", "student.target": arch, "seed": seed}
    chosen["budget"] = max(1, int(xarch.plan(overrides=chosen).config.budget * share))
    run, row = timed(chosen, work / f"{arch}-{seed}-{share:.3f}-{os.getpid()}")
    found = json.loads((run.path / "eval.json").read_text())["student"]
    field: Any = xarch.load(run.path)
    return {"share": share, "psnr": round(judge(field), 2), "psnr_teacher": round(found["psnr_teacher"], 2), **row}


def training(attempt: Callable[[int], dict[str, Any]], lengths: Sequence[int], cap: float) -> dict[str, Any]:
    """Trainings of growing length until one reaches the goal, or the seconds after which it is given up."""
    tried: list[dict[str, Any]] = []
    for steps in lengths:
        tried.append(attempt(steps))
        if tried[-1]["reached"] or tried[-1]["cpu_seconds"] >= cap:
            break
    return {**tried[-1], "tried": [{k: t[k] for k in ("steps", "cpu_seconds", "psnr")} for t in tried]}


def trained(
    arch: str,
    seed: int,
    pixels: Pixels,
    judge: Judge,
    goal: tuple[float, float],
    part: str,
    given: Tensor | None,
    steps: int,
) -> dict[str, Any]:
    """One training from pictures."""
    torch.manual_seed(seed)
    field = build_field(arch, OPTIONS[arch].model_validate({}), aabb=scene.BOX)
    if given is not None:
        field.set_occupancy(given)
    curve: list[tuple[float, float]] = []

    def look(step: int, seconds: float) -> bool:
        if step % max(steps // LOOKS, 1) and seconds < goal[1]:
            return False
        curve.append((round(seconds, 1), round(judge(field), 2)))
        return curve[-1][1] >= goal[0] or seconds >= goal[1]

    state = machine_state()
    options = TrainingOptions(steps=steps, seed=seed, occupancy=OCCUPANCY[part])
    train_field(field, pixels, options, until=look)
    seconds, psnr_reached = curve[-1]
    reached = psnr_reached >= goal[0]
    return {
        "reached": reached,
        "cpu_seconds": seconds,
        "psnr": psnr_reached,
        "steps": steps,
        "cap": goal[1],
        "curve": curve,
        **state,
    }


if __name__ == "__main__":
    main()
