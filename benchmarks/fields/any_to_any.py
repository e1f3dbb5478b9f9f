"""Every representation into every other: PSNR to the teacher and CPU seconds, in one command.

    python benchmarks/fields/any_to_any.py [--scene FOLDER]

Teachers are trained from pictures of the procedural scene, or of a folder of posed pictures (their seconds are reported
apart); each pair is a whole ``xarch.convert`` without export, once a seed, whose CPU seconds are those of planning,
start and stages (``parts`` lists them and the rest). Points are written as they are measured, and an interrupted
run resumes. PSNR is that of whole held-out views against the teacher's renders, and against the pictures of the
scene itself (``psnr_truth``).
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "plugins")]

import xarch  # noqa: E402
from benchmarks import page  # noqa: E402
from benchmarks.fields.pictures import Pictures, posed, procedural  # noqa: E402
from benchmarks.fields.stopwatch import timed  # noqa: E402
from benchmarks.store import Store, add_options, header  # noqa: E402
from xarch_pvd.source.field_file import save_field_file  # noqa: E402
from xarch_pvd.targets.representations import OPTIONS, build_field  # noqa: E402
from xarch_pvd.targets.representations.records import to_file  # noqa: E402
from xarch_pvd.train.training import Pixels, TrainingOptions, train_field  # noqa: E402

IMPORTED = time.process_time()
ARCHS = ("hash", "mlp", "vm", "cp", "tensors")


def main() -> None:
    """Train teachers, convert all pairs, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scene", type=Path, help="folder of posed pictures in place of the procedural scene")
    parser.add_argument("--size", type=int, default=64, help="picture side of the procedural scene in pixels")
    parser.add_argument("--steps", type=int, default=900, help="training steps of each teacher")
    parser.add_argument("--budget", type=float, default=1.0, help="multiple of each recipe's budget")
    parser.add_argument("--seeds", type=int, default=3, help="conversions of every pair; teachers have one seed")
    parser.add_argument("--targets", default=",".join(ARCHS), help="students to make now, comma-separated")
    parser.add_argument("--work", type=Path, default=Path("fields-any-to-any"), help="folder for teachers and runs")
    add_options(parser, "fields_any_to_any")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pictures = posed(arguments.scene) if arguments.scene else procedural(arguments.size)
    settings = {"steps": arguments.steps, "budget": arguments.budget, "scene": pictures.name}
    settings |= {} if arguments.scene else {"size": arguments.size}
    store = Store(arguments.out, header("fields_any_to_any", settings, threads=1), arguments.fresh)
    work = arguments.work / store.key
    work.mkdir(parents=True, exist_ok=True)
    # Python and torch are imported by now; what else a conversion imports, the first one pays.
    if "import_cpu_seconds" not in store.facts:
        store.note(import_cpu_seconds=round(IMPORTED, 1))
    for arch in ARCHS:
        file, known = work / f"{arch}.safetensors", store.facts.get("teachers", {})
        if arch not in known or not file.is_file():
            store.note(teachers={**known, arch: teacher(arch, file, arguments.steps, pictures)})
    for seed, target, source in itertools.product(range(arguments.seeds), arguments.targets.split(","), ARCHS):
        pair = {"source": source, "target": target, "seed": seed}
        if store.find(**pair) is None:
            run = work / f"{source}-{target}-{seed}-{int(time.time())}"
            found = convert(work / f"{source}.safetensors", target, seed, run, arguments.budget, pictures)
            print(store.add({**pair, **found}), flush=True)
    page.show(store.finish())


def teacher(arch: str, file: Path, steps: int, pictures: Pictures) -> dict[str, float]:
    """Train a field of the scene from its pictures."""
    torch.manual_seed(0)
    pixels = Pixels.of(pictures.cameras, pictures.picture)
    options = OPTIONS[arch].model_validate({})
    field = build_field(arch, options, aabb=pictures.box)
    settings = TrainingOptions(steps=steps)
    spent = train_field(field, pixels, settings)
    save_field_file(file, to_file(field, options.model_dump(mode="json")), pictures.views, {"steps": steps})
    return {"steps": steps, "cpu_seconds": round(spent, 1), "psnr_truth": round(pictures.score(field), 2)}


def convert(file: Path, target: str, seed: int, run: Path, budget: float, pictures: Pictures) -> dict[str, Any]:
    """One conversion by the target's own recipe; its CPU seconds are those of planning, start and stages."""
    overrides: dict[str, Any] = {"teacher": f"field:{file}", "student.target": target, "seed": seed}
    if budget != 1.0:
        overrides["budget"] = int(xarch.plan(overrides=overrides).config.budget * budget)
    done, row = timed(overrides, run)
    found = json.loads((done.path / "eval.json").read_text())["student"]
    student: Any = xarch.load(done.path)
    return {
        **row,
        "psnr_teacher": round(found["psnr_teacher"], 2),
        "worst_psnr_teacher": round(found["worst_psnr_teacher"], 2),
        "psnr_truth": round(pictures.score(student), 2),
        "bytes": found["bytes"],
    }


if __name__ == "__main__":
    main()
