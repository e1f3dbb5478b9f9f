"""What the stages of a conversion are worth: all of them against rendered rays alone, at equal CPU time.

    python benchmarks/fields/staged.py

Both sides start alike: the teacher's occupancy, its blocks of equal shape and whatever else the start takes from it;
``plain`` variants inherit the occupancy alone. Budgets are set by the cost of a point and of a ray, measured first in
the same process, so that start and stages take 5, 10 or 20 CPU seconds of one thread; what they took is stored. PSNR is
that of four held-out views against the teacher's renders. The teacher is the demo's. Points are written as they are
measured, and an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "plugins")]

import xarch  # noqa: E402
from benchmarks import page  # noqa: E402
from benchmarks.fields.stopwatch import timed  # noqa: E402
from benchmarks.store import Store, add_options, header  # noqa: E402
from xarch_field.student import FieldStudent  # noqa: E402
from xarch_field.teacher import FieldTeacher  # noqa: E402
from xarch_pvd.targets.representations import build_field  # noqa: E402
from xarch_pvd.train import demo  # noqa: E402

SECONDS = (5.0, 10.0, 20.0)
STAGED, RAYS = "staged", "rays"
TRIAL = 0.1
"""Share of the recipe's budget by which costs are measured."""
RAYS_ALONE = {
    "stages.volume.skip": True,
    "stages.points.skip": True,
    "stages.rays.share": 1.0,
    "stages.rays.matches": {"density": None, "colour": None},
}
"""Rays alone: the colour of the ray is all that is matched, at the learning rates of the stage of points."""


def main() -> None:
    """Measure what is missing, print and store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--students", default="vm,mlp", help="comma-separated")
    parser.add_argument("--seconds", default=",".join(f"{s:g}" for s in SECONDS), help="comma-separated")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plain", action="store_true", help="also without inheritance, one seed")
    parser.add_argument("--work", type=Path, default=Path("fields-staged"), help="folder for teacher and runs")
    add_options(parser, "fields_staged")
    said = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["XARCH_HOME"] = str(said.work.resolve())
    file, store = demo.demo_field(), Store(said.out, header("fields_staged", {}, threads=1), said.fresh)
    for arch in said.students.split(","):
        for seconds in map(float, said.seconds.split(",")):
            for seed in range(said.seeds):
                for way in (STAGED, RAYS):
                    for plain in (False, True) if said.plain and seed == 0 else (False,):
                        case = {"student": arch, "way": way, "plain": plain, "seconds": seconds, "seed": seed}
                        if store.find(**case) is None:
                            found = measured(arch, way, seconds, seed, plain, file, said.work, store)
                            print(store.add({**case, **found}), flush=True)
    page.show(store.finish())


def measured(
    arch: str, way: str, seconds: float, seed: int, plain: bool, file: Path, work: Path, store: Store
) -> dict[str, Any]:
    """One conversion of so many seconds."""
    chosen: dict[str, Any] = {"teacher": f"field:{file}", "student.target": arch, "seed": seed}
    planned = xarch.plan(overrides=chosen).config
    # By name, so that what is said of single stages changes the recipe's.
    chosen["recipe"] = planned.recipe
    if way == RAYS:
        peak = planned.stages["points"].optimiser.lr
        trains = {name: group.model_dump() for name, group in planned.stages["points"].trains.items()}
        chosen |= {**RAYS_ALONE, "stages.rays.optimiser.lr": peak, "stages.rays.trains": trains}
    costs = store.facts.get("costs", {})
    key = f"{arch}/{way}"
    if key not in costs:
        # Twice: the first conversion of a process also imports what the others find.
        for trial in range(2):
            share = TRIAL if way == STAGED else 0.005
            budget = int(planned.budget * share)
            _, row = timed({**chosen, "budget": budget}, work / f"cost-{arch}-{way}-{os.getpid()}-{trial}")
            stages = sum(row["parts"].get(stage, 0.0) for stage in ("volume", "points", "rays"))
            costs = {**costs, key: {"start": row["cpu_seconds"] - stages, "unit": stages / budget}}
        store.note(costs=costs)
    chosen["budget"] = int((seconds - costs[key]["start"]) / costs[key]["unit"])
    with ExitStack() as stack:
        if plain:
            stack.enter_context(occupancy_alone())
        run, row = timed(chosen, work / f"{arch}-{way}-{seconds:g}-{seed}-{plain}-{os.getpid()}")
    found = json.loads((run.path / "eval.json").read_text())["student"]
    return {"psnr_teacher": round(found["psnr_teacher"], 2), "budget": chosen["budget"], **row}


@contextmanager
def occupancy_alone() -> Iterator[None]:
    """Within the block a student takes nothing but box and occupancy from its teacher."""

    def planned(facts: Any, student: FieldStudent) -> xarch.Initialisation:
        return xarch.Initialisation(copied=(), mapped=(), new=tuple(n for n, _ in student.field.named_parameters()))

    def start(teacher: FieldTeacher, student: FieldStudent) -> xarch.Initialisation:
        fresh = build_field(student.field.arch, student.options, aabb=teacher.facts.aabb)
        values = dict(fresh.named_parameters())
        with torch.no_grad():
            for name, parameter in student.field.named_parameters():
                parameter.copy_(values[name])
        student.field.set_occupancy(teacher.field.occupancy.clone())
        return planned(teacher.facts, student)

    with patch("xarch_pvd.targets.target.planned_start", planned), patch("xarch_pvd.targets.target.start", start):
        yield


if __name__ == "__main__":
    main()
