"""Runs one stack conversion in its own process: ``convert_stack.py OUT [--resume] [key=value ...]``.

``convert_stack.py --serve`` reads requests, a line of JSON each, and answers with exit codes. Every request is run in a
fork of a process that has nothing but imported its modules, which is most of what so small a conversion takes.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

import torch

STAGES = {
    "fit": {"kind": "closed_form", "units": 32, "batch": 4},
    "local": {
        "matches": {"out": {"student": "output", "objective": "sabotage"}},
        "trains": {"all": {}},
        "units": 480,
        "batch": 4,
        "passes": 2,
        "checkpoint_every": 4,
        "optimiser": {"lr": 0.02},
    },
    "nothing": {"kind": "nothing", "units": 0},
    "global": {
        "scope": "global",
        "matches": {"end": {"student": "layers.2.output", "objective": "sabotage"}},
        "trains": {"all": {}},
        "units": 240,
        "batch": 4,
        "checkpoint_every": 3,
        "optimiser": {"lr": 0.01, "schedule": "cosine"},
        "validation": {"samples": 4},
    },
}

MODULES = (
    "accelerate",
    "matplotlib.pyplot",
    "torch._dynamo",
    "xarch.engine.distributed",
    "xarch.engine.gradient",
    "xarch.run.conversion",
    "xarch.planning.build",
    "xarch.report.build",
)


def main(arguments: list[str]) -> int:
    from xarch import errors
    from xarch.config.load import load_config
    from xarch.files.bounded_json import read_json
    from xarch.files.run_dir import RunDir
    from xarch.planning.build import build_plan
    from xarch.planning.plan import Plan
    from xarch.registry.loader import load_registry
    from xarch.run.conversion import Conversion
    from xarch.run.head import begin_run

    torch.set_num_threads(1)
    out, *rest = arguments
    registry = load_registry([str(Path(__file__).with_name("stack_plugin.py"))])
    try:
        if "--resume" in rest:
            run = RunDir.open(out)
            plan = Plan.model_validate(read_json(run.plan))
        else:
            resolved = load_config(
                None,
                sets=[r for r in rest if "=" in r],
                overrides={
                    "teacher": "stack:3",
                    "student.target": "low",
                    "data.ref": "noise:8",
                    "stages": STAGES,
                    "export.profiles": [],
                    "runtime.device": "cpu",
                    "runtime.threads": 1,
                    "runtime.tensorboard": False,
                },
            )
            plan = build_plan(resolved.config, registry, name="stack", provenance={}, command="", say=print)
            run = begin_run(plan, out)
        Conversion(plan, run, registry).run()
    except errors.XarchError as e:
        print(f"{e.kind}: {e}", file=sys.stderr)
        return e.exit_code
    return 0


def serve() -> int:
    """Answer requests until there are none; in a fork, return the exit code of the one it is there for."""
    for module in MODULES:
        importlib.import_module(module)
    # So are the machine's rates, measured once for all plans.
    torch.set_num_threads(1)
    importlib.import_module("xarch.planning.estimate").measure_rates(torch.device("cpu"), torch.float32, 1)
    # Half of so small a conversion's time is drawing, and nobody looks at these pictures.
    canvas = importlib.import_module("xarch.report.plots.canvas")
    canvas.FigureCanvasSVG.print_svg = lambda paper, file, **options: file.write('<svg viewBox="0 0 1 1"></svg>')
    for line in sys.stdin:
        request = json.loads(line)
        fork = os.fork()
        if fork == 0:
            os.environ.clear()
            os.environ.update(request["environment"])
            for number, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
            return main(request["arguments"])
        _, status = os.waitpid(fork, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(serve() if sys.argv[1:] == ["--serve"] else main(sys.argv[1:]))
