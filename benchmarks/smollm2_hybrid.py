"""Quality of the SmolLM2-135M demo over seeds, with the teacher and the untrained start evaluated in the same runs.

    python benchmarks/smollm2_hybrid.py --runs runs/quality

One conversion per seed without export, about ten minutes each on two cores. Finished runs in the folder are read, not
made again; an interrupted one is resumed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FIGURES = ("perplexity_ratio", "kl", "top1_agreement")


def convert(seed: int, folder: Path, recipe: str, options: Sequence[str]) -> None:
    """Finish the run of a seed. Missing a quality gate is a result here, not a failure."""
    command = [sys.executable, "-m", "xarch", "convert"]
    if (folder / "plan.json").is_file():
        command += ["--resume", "--out", str(folder)]
    else:
        command += [recipe, "--seed", str(seed), *options, "--yes", "--out", str(folder)]
    code = subprocess.run(command).returncode
    if code not in (0, 7):
        raise SystemExit(f"seed {seed} ended with exit code {code}")


def read(folder: Path) -> dict[str, Any]:
    """Figures of a finished run."""
    evaluation = json.loads((folder / "eval.json").read_text())
    environment = json.loads((folder / "run.json").read_text())
    row: dict[str, Any] = {
        "seed": environment["seed"],
        "student": {name: evaluation["student"][name] for name in FIGURES},
        "teacher_perplexity": evaluation["teacher"]["perplexity"],
        "tokens": evaluation["n"],
        "environment": {k: environment[k] for k in ("platform", "threads", "versions", "git")},
    }
    before = evaluation["baselines"].get("before training")  # a rehearsal (--tiny) has none
    if before is not None:
        row["before_training"] = {name: before[name] for name in FIGURES}
    for choice in folder.glob("stages/*-choose/summary.json"):
        row |= json.loads(choice.read_text())["decisions"]  # the layers, where some were chosen
    return row


def spread(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean, least and most of every figure over the seeds."""
    found = {}
    for name in FIGURES:
        values = [row["student"][name] for row in rows]
        found[name] = {"mean": statistics.mean(values), "min": min(values), "max": max(values)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "smollm2_hybrid.json")
    arguments = parser.parse_args()
    rows = []
    for seed in arguments.seeds:
        folder = arguments.runs / f"seed{seed}"
        if not (folder / "eval.json").is_file():
            convert(seed, folder, "smollm2-hybrid", ["--set", "export.profiles=[]"])
        rows.append(read(folder))
        assert rows[-1]["seed"] == seed, f"{folder} is a run of seed {rows[-1]['seed']}"
    found = spread(rows)
    for name, row in found.items():
        print(f"{name:18s} mean {row['mean']:.4f}  min {row['min']:.4f}  max {row['max']:.4f}")
    arguments.out.write_text(json.dumps({"spread": found, "runs": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
