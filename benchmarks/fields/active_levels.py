"""What drawing the worst poses and rays again is worth (PVD-AL, arXiv 2304.04012): recipe ``pvd-active`` against itself
without its levels, at the same budget.

    python benchmarks/fields/active_levels.py

The teacher is the demo's, students are made over seeds. Mean and worst PSNR over held-out views against the teacher's
renders, CPU seconds of one thread. Points are written as they are measured, and an
interrupted run resumes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "plugins")]

import xarch  # noqa: E402
from benchmarks import page  # noqa: E402
from benchmarks.fields.stopwatch import timed  # noqa: E402
from benchmarks.store import Store, add_options, header  # noqa: E402
from xarch_pvd.train import demo  # noqa: E402

VIEWS = 12
"""Held-out views: the worst of four says little."""


def main() -> None:
    """Measure what is missing, print and store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--students", default="mlp,vm", help="comma-separated")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("fields-active-levels"), help="folder for teacher and runs")
    add_options(parser, "fields_active_levels")
    said = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["XARCH_HOME"] = str(said.work.resolve())
    file = demo.demo_field()
    store = Store(said.out, header("fields_active_levels", {"views": VIEWS}, threads=1), said.fresh)
    for arch in said.students.split(","):
        for seed in range(said.seeds):
            for way, changes in ways(file).items():
                case = {"student": arch, "way": way, "seed": seed}
                if store.find(**case) is None:
                    out = said.work / f"{arch}-{way}-{seed}"
                    print(store.add({**case, **measured(arch, seed, file, changes, out)}), flush=True)
    page.show(store.finish())


def ways(file: Path) -> dict[str, dict[str, Any]]:
    """The recipe as it is, and what takes its levels away."""
    chosen = {"recipe": "pvd-active", "teacher": f"field:{file}", "student.target": "mlp"}
    planned = xarch.plan(overrides=chosen).config.stages["rays"].matches
    matches = {name: match.model_dump(mode="json") | {"options": {}} for name, match in planned.items()}
    matches["density"]["aux"] = {}
    without = {"stages.rays.sample": {"kind": "rays", "levels": []}, "stages.rays.matches": matches}
    return {"levels": {}, "without": without}


def measured(arch: str, seed: int, file: Path, changes: dict[str, Any], out: Path) -> dict[str, Any]:
    """One conversion."""
    chosen = {"recipe": "pvd-active", "teacher": f"field:{file}", "student.target": arch, "seed": seed}
    run, row = timed({**chosen, "evaluate.samples": VIEWS, **changes}, out.with_name(f"{out.name}-{os.getpid()}"))
    found = json.loads((run.path / "eval.json").read_text())["student"]
    return {**{k: round(found[k], 2) for k in ("psnr_teacher", "worst_psnr_teacher")}, **row}


if __name__ == "__main__":
    main()
