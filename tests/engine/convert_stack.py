"""Runs one stack conversion in its own process: ``convert_stack.py OUT [--resume] [key=value ...]``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

STAGES = {
    "fit": {"kind": "closed_form", "units": 32, "batch": 4},
    "local": {
        "matches": [{"student": "output", "objective": "sabotage"}],
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
        "matches": [{"student": "layers.2.output", "objective": "sabotage"}],
        "trains": {"all": {}},
        "units": 240,
        "batch": 4,
        "checkpoint_every": 3,
        "optimiser": {"lr": 0.01, "schedule": "cosine"},
        "validation": {"samples": 4},
    },
}


def main() -> int:
    from xarch import errors
    from xarch.config.load import load_config
    from xarch.engine.distributed import open_run
    from xarch.engine.runner import Conversion
    from xarch.planning.build import build_plan
    from xarch.planning.plan import Plan
    from xarch.plugins.loader import load_registry
    from xarch.store.atomic import read_json
    from xarch.store.run_dir import RunDir

    torch.set_num_threads(1)
    out, *rest = sys.argv[1:]
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
                    "export.targets": [],
                    "runtime.device": "cpu",
                    "runtime.threads": 1,
                    "runtime.tensorboard": False,
                },
            )
            run = open_run(out, "stack")
            plan = build_plan(resolved.config, registry, name="stack", provenance={}, command="", say=print)
        Conversion(plan, run, registry).go()
    except errors.XarchError as e:
        print(f"{e.kind}: {e}", file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
