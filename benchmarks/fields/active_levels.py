"""What drawing the worst poses and rays again is worth (PVD-AL, arXiv 2304.04012): recipe ``pvd-active`` against itself
without its levels, at the same budget.

    python benchmarks/fields/active_levels.py

The teacher is the demo's, students are made over seeds. Mean and worst PSNR over held-out views against the teacher's
renders, CPU seconds of one thread. Rows are written as they are measured, and an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "plugins")]

import xarch  # noqa: E402
from benchmarks.fields.rows import Rows  # noqa: E402
from benchmarks.fields.stopwatch import timed  # noqa: E402
from xarch_pvd.train import demo  # noqa: E402

RESULTS = Path(__file__).parent.parent / "results" / "fields_active_levels.json"
VIEWS = 12
"""Held-out views: the worst of four says little."""


def main() -> None:
    """Measure what is missing, print and store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--students", default="mlp,vm", help="comma-separated")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("fields-active-levels"), help="folder for teacher and runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    said = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["XARCH_HOME"] = str(said.work.resolve())
    file, rows = demo.demo_field(), Rows(said.out)
    for arch in said.students.split(","):
        for seed in range(said.seeds):
            for way, changes in ways(file).items():
                name = f"{arch}/{way}/{seed}"
                if name not in rows:
                    rows.add(name, measured(arch, seed, file, changes, said.work / name.replace("/", "-")))
    show(rows.data["rows"])


def ways(file: Path) -> dict[str, dict[str, Any]]:
    """The recipe as it is, and what takes its levels away."""
    chosen = {"recipe": "pvd-active", "teacher": f"field:{file}", "student.target": "mlp"}
    matches = [m.model_dump(mode="json") for m in xarch.plan(overrides=chosen).config.stages["rays"].matches]
    for match in matches:
        match["options"] = {}
        match["aux"] = {} if match["student"] == "samples.sigma_raw" else match["aux"]
    without = {"stages.rays.sample": {"kind": "rays", "levels": []}, "stages.rays.matches": matches}
    return {"levels": {}, "without": without}


def measured(arch: str, seed: int, file: Path, changes: dict[str, Any], out: Path) -> dict[str, Any]:
    """One conversion."""
    chosen = {"recipe": "pvd-active", "teacher": f"field:{file}", "student.target": arch, "seed": seed}
    run, row = timed({**chosen, "evaluate.samples": VIEWS, **changes}, out.with_name(f"{out.name}-{os.getpid()}"))
    found = json.loads((run.path / "eval.json").read_text())["student"]
    return {**{k: round(found[k], 2) for k in ("psnr_teacher", "worst_psnr_teacher")}, **row}


def show(rows: dict[str, Any]) -> None:
    """Means over the seeds, and the least and the greatest gain of a seed."""
    table = Table("student", "figure", "without, dB", "levels, dB", "gain, dB (least to most)")
    for arch in dict.fromkeys(name.split("/")[0] for name in rows):
        for figure in ("psnr_teacher", "worst_psnr_teacher"):
            values = {
                way: [r[figure] for n, r in rows.items() if n.startswith(f"{arch}/{way}/")]
                for way in ("without", "levels")
            }
            gains = [b - a for a, b in zip(values["without"], values["levels"], strict=False)]
            if gains:
                means = [f"{statistics.mean(v):.2f}" for v in values.values()]
                gain = f"{statistics.mean(gains):+.2f} ({min(gains):+.2f} to {max(gains):+.2f})"
                table.add_row(arch, figure, *means, gain)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
