"""Quality of the SmolLM2-135M demo over seeds, with the teacher and the untrained start evaluated in the same runs.

    python benchmarks/smollm2_hybrid.py --runs runs/quality

One conversion per seed without export, about 25 CPU minutes each. An interrupted one is resumed; runs in the
folder are reused only if this code made them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import page
from benchmarks.store import Store, add_options, header

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
        "git": environment["git"],
    }
    before = evaluation["baselines"].get("before training")  # a rehearsal (--tiny) has none
    if before is not None:
        row["before_training"] = {name: before[name] for name in FIGURES}
    for choice in folder.glob("stages/*-choose/summary.json"):
        row |= json.loads(choice.read_text())["decisions"]  # the layers, where some were chosen
    return row


def measure(
    store: Store, runs: Path, seeds: Sequence[int], recipe: str, options: Sequence[str], *, data: str | None = None
) -> None:
    """Add one run a seed to a result.

    Args:
        data: text that existing runs must have been trained on.
    """
    for seed in seeds:
        if store.find(seed=seed) is not None:
            continue
        folder = runs / store.key / f"seed{seed}"
        if not (folder / "eval.json").is_file():
            convert(seed, folder, recipe, options)
        used = json.loads((folder / "plan.json").read_text())["config"]["data"]["ref"]
        if data is not None and used != data:
            raise SystemExit(f"{folder} was trained on {used}, not on {data}")
        row = read(folder)
        assert row["seed"] == seed, f"{folder} is a run of seed {row['seed']}"
        store.add(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add_options(parser, "smollm2_hybrid")
    arguments = parser.parse_args()
    settings = {"recipe": "smollm2-hybrid"}
    store = Store(arguments.out, header("smollm2_hybrid", settings, threads=os.cpu_count() or 1), arguments.fresh)
    measure(store, arguments.runs, arguments.seeds, "smollm2-hybrid", ["--set", "export.profiles=[]"])
    page.show(store.finish())


if __name__ == "__main__":
    main()
