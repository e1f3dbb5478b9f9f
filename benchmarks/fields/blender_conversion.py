"""Path-traced pictures to a hash field, and that field to layers and to planes times lines: PSNR on held-out pictures.

    python benchmarks/fields/blender_conversion.py FOLDER

FOLDER holds posed pictures, for instance those of ``blender_scene.py``. The teacher is what ``xarch pvd train FOLDER``
writes; each student is a whole ``xarch.convert`` from it, without export, judged on the held-out pictures that neither
side was trained on. Students are trained on the teacher's renders alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "plugins")]

import xarch  # noqa: E402
from benchmarks.fields.pictures import posed  # noqa: E402
from xarch.bench.machine import load_average, machine  # noqa: E402
from xarch_pvd.train import train_from_pictures  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "fields_blender_scene.json"
FIGURES = ("psnr", "ssim", "psnr_teacher", "worst_psnr_teacher", "bytes")


def main() -> None:
    """Train the teacher once, convert it into every student, print and store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--teacher", default="hash")
    parser.add_argument("--students", nargs="+", default=["vm", "mlp"])
    parser.add_argument("--steps", type=int, default=1500, help="training steps of the teacher")
    parser.add_argument("--budget", type=int, help="points and rays of a conversion; default the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("fields-blender-scene"), help="folder for teacher and runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    said = parser.parse_args()
    torch.set_num_threads(1)
    pictures = posed(said.folder)
    camera = pictures.cameras[0]
    file = said.work / f"{said.teacher}-{said.steps}-{said.seed}.safetensors"
    spent = train_from_pictures(
        str(said.folder), arch=said.teacher, options={}, steps=said.steps, seed=said.seed, out=file
    )
    data: dict[str, Any] = {
        "scene": pictures.name,
        "pictures": {"training": len(pictures.cameras), "heldout": len(pictures.truth)},
        "size": [camera.width, camera.height],
        "machine": machine(),
        "threads": 1,
        "seed": said.seed,
        "teacher": {"target": said.teacher, "steps": said.steps, "cpu_seconds": round(spent, 1)},
        "students": {},
    }
    for target in said.students:
        run = said.work / f"{said.teacher}-{target}-{os.getpid()}"
        figures, teacher = convert(file, said.folder, target, run, len(pictures.truth), said.seed, said.budget)
        data["teacher"].update(teacher)
        data["students"][target] = figures
        print(target, json.dumps(figures), flush=True)
        said.out.parent.mkdir(parents=True, exist_ok=True)
        said.out.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print("teacher", json.dumps(data["teacher"]))


def convert(
    file: Path, folder: Path, target: str, run: Path, views: int, seed: int, budget: int | None
) -> tuple[dict[str, float], dict[str, float]]:
    """One conversion: figures of the student, figures of the teacher. CPU seconds are those of planning, start and
    stages together with the evaluation."""
    overrides: dict[str, Any] = {
        "teacher": f"field:{file}",
        "student.target": target,
        "data.ref": f"views:{folder}",
        "export.targets": [],
        "runtime.threads": 1,
        "runtime.tensorboard": False,
        "evaluate.samples": views,
        "evaluate.baseline": False,
        "seed": seed,
        **({"budget": budget} if budget else {}),
    }
    load, started = load_average(), time.process_time()
    xarch.convert(overrides=overrides, out=run)
    spent = time.process_time() - started
    found = json.loads((run / "eval.json").read_text(encoding="utf-8"))
    sides = [{k: round(found[side][k], 3) for k in FIGURES if k in found[side]} for side in ("student", "teacher")]
    return {"cpu_seconds": round(spent, 1), "load_average": load, **sides[0]}, sides[1]


if __name__ == "__main__":
    main()
