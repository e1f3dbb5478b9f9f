"""What a plan promises against what the run takes: seconds of every stage and of the whole, and the peak of memory.

    python benchmarks/plan_accuracy.py --runs runs/plan

Every case is planned and converted in processes of their own, with a small budget; the bar is a factor of 1.5 either
way. Case by case: ``--cases field``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import page
from benchmarks.store import Store, add_options, header

CASES: dict[str, list[str]] = {
    "language": ["smollm2-hybrid", "--set", "budget=20k", "--set", "export.bench=false"],
    "field": ["pvd-demo", "--set", "budget=400k"],
}
"""Name -> arguments of ``xarch convert``."""


def convert(arguments: list[str], folder: Path) -> tuple[float, int]:
    """(seconds, peak bytes) of the conversion's process; missing a gate is a result here, not a failure."""
    command = [sys.executable, "-m", "xarch", "convert", *arguments, "--yes", "--out", str(folder)]
    started = time.monotonic()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, 7):
        raise SystemExit(f"{' '.join(command)} ended with exit code {code}")
    scale = 1 if sys.platform == "darwin" else 1024
    return time.monotonic() - started, usage.ru_maxrss * scale


def compare(name: str, arguments: list[str], folder: Path) -> dict[str, Any]:
    """Plan and run of one case."""
    seconds, peak = convert(arguments, folder)
    plan = json.loads((folder / "plan.json").read_text())
    stages = []
    for stage in plan["stages"]:
        summary = json.loads((folder / "stages" / stage["folder"] / "summary.json").read_text())
        stages.append({"stage": stage["name"], "planned": stage["seconds"], "took": summary["seconds"]})
    estimates = plan["estimates"]
    return {
        "case": name,
        "planned_seconds": estimates["seconds"],
        "seconds": seconds,
        "planned_bytes": estimates["peak_bytes"],
        "bytes": peak,
        "parts": estimates["parts"],
        "stages": stages,
        "notes": [note for stage in plan["stages"] for note in stage["notes"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/plan"), help="folder of the runs")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    add_options(parser, "plan_accuracy")
    arguments = parser.parse_args()
    settings = {"cases": CASES}
    store = Store(arguments.out, header("plan_accuracy", settings, threads=os.cpu_count() or 1), arguments.fresh)
    for name in arguments.cases:
        if store.find(case=name) is None:
            store.add(compare(name, CASES[name], arguments.runs / store.key / name))
    page.show(store.finish())


if __name__ == "__main__":
    main()
