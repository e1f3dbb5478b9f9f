"""What a plan promises against what the run takes: CPU seconds of every stage and of the whole, and the peak of memory.

    python benchmarks/plan_accuracy.py --runs runs/plan

Every case is planned and converted in a process of its own, with a small budget and one thread: then CPU seconds are
what the run would take on an idle machine, and other programs do not change them. A plan does not count itself, so
neither does the comparison. The bar is a factor of 1.5 either way. Case by case: ``--cases field``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples" / "plugin")]

from benchmarks import page  # noqa: E402
from benchmarks.store import Store, add_options, header  # noqa: E402

CASES: dict[str, list[str]] = {
    "language": [
        *("smollm2-hybrid", "--set", "budget=20k", "--set", "stages.choose.options.tokens=512"),
        *("--set", "gates.perplexity_ratio=null", "--set", "gates.kl=null", "--set", "export.bench=false"),
    ],
    "example plugin": ["rows-kd", "--set", "stages.distil.epochs=200", "--set", "export.bench=false"],
    "field": ["pvd-demo", "--set", "budget=400k", "--set", "export.bench=false"],
}
"""Name -> arguments of ``xarch convert``. Benches are limited by seconds, not by work, and say nothing about a plan."""


def teacher(case: str, folder: Path) -> list[str]:
    """Arguments that name the teacher of a case; the one of the example plugin is trained first."""
    if case != "example plugin":
        return []
    from xarch_rows.source import train_teacher

    folder.mkdir(parents=True, exist_ok=True)
    return ["--teacher", f"rows:{train_teacher('digits', str(folder / 'teacher.safetensors'))}"]


def convert(arguments: list[str], folder: Path) -> int:
    """Peak bytes of the conversion's process; missing a gate is a result here, not a failure."""
    command = [sys.executable, "-m", "xarch", "convert", *arguments, "--yes", "--out", str(folder)]
    plugin = ROOT / "examples" / "plugin"
    environment = {
        "OMP_NUM_THREADS": "1",
        "XARCH_PLUGIN_FILES": str(plugin / "xarch_rows" / "__init__.py"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(plugin), os.environ.get("PYTHONPATH")])),
    }
    process = subprocess.Popen([*command, "--set", "runtime.threads=1"], env=os.environ | environment)
    _, status, usage = os.wait4(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, 7):
        raise SystemExit(f"{' '.join(command)} ended with exit code {code}")
    scale = 1 if sys.platform == "darwin" else 1024
    return usage.ru_maxrss * scale


def compare(name: str, arguments: list[str], folder: Path) -> dict[str, Any]:
    """Plan and run of one case."""
    peak = convert([*arguments, *teacher(name, folder.parent)], folder)
    plan = json.loads((folder / "plan.json").read_text())
    status = json.loads((folder / "status.json").read_text())
    stages = []
    for stage in plan["stages"]:
        summary = json.loads((folder / "stages" / stage["folder"] / "summary.json").read_text())
        stages.append({"stage": stage["name"], "planned": stage["seconds"], "took": summary["cpu_seconds"]})
    estimates = plan["estimates"]
    return {
        "case": name,
        "planned_seconds": estimates["seconds"],
        "seconds": status["cpu_seconds"],
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
    store = Store(arguments.out, header("plan_accuracy", settings, threads=1), arguments.fresh)
    for name in arguments.cases:
        if store.find(case=name) is None:
            store.add(compare(name, CASES[name], arguments.runs / store.key / name.replace(" ", "-")))
    page.show(store.finish())


if __name__ == "__main__":
    main()
