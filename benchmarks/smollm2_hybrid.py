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
from pathlib import Path
from typing import Any

FIGURES = ("perplexity_ratio", "kl", "top1_agreement")


def convert(seed: int, folder: Path) -> None:
    """Finish the run of a seed. Missing a quality gate is a result here, not a failure."""
    command = [sys.executable, "-m", "xarch", "convert"]
    if (folder / "plan.json").is_file():
        command += ["--resume", "--out", str(folder)]
    else:
        command += ["smollm2-hybrid", "--seed", str(seed), "--set", "export.targets=[]", "--yes", "--out", str(folder)]
    code = subprocess.run(command).returncode
    if code not in (0, 7):
        raise SystemExit(f"seed {seed} ended with exit code {code}")


def read(seed: int, folder: Path) -> dict[str, Any]:
    """Figures of a finished run."""
    evaluation = json.loads((folder / "eval.json").read_text())
    environment = json.loads((folder / "run.json").read_text())
    choice = json.loads((folder / "stages" / "02-choose" / "summary.json").read_text())
    before = evaluation["baselines"]["before training"]
    return {
        "seed": environment["seed"],
        "student": {name: evaluation["student"][name] for name in FIGURES},
        "before_training": {name: before[name] for name in FIGURES},
        "teacher_perplexity": evaluation["teacher"]["perplexity"],
        "tokens": evaluation["n"],
        "layers": choice["decisions"]["layers"],
        "environment": {k: environment[k] for k in ("platform", "threads", "versions", "git")},
    }


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
            convert(seed, folder)
        rows.append(read(seed, folder))
        assert rows[-1]["seed"] == seed, f"{folder} is a run of seed {rows[-1]['seed']}"
    spread = {
        name: {
            "mean": statistics.mean(r["student"][name] for r in rows),
            "min": min(r["student"][name] for r in rows),
            "max": max(r["student"][name] for r in rows),
        }
        for name in FIGURES
    }
    for name, row in spread.items():
        print(f"{name:18s} mean {row['mean']:.4f}  min {row['min']:.4f}  max {row['max']:.4f}")
    arguments.out.write_text(json.dumps({"spread": spread, "runs": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
