"""The first files of a run folder: its configuration, its plan, and where it runs."""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from xarch.engine.distributed import open_run
from xarch.files.atomic import json_text
from xarch.files.run_dir import PLAN, RunDir
from xarch.planning.plan import Plan
from xarch.run.environment import environment


def begin_run(plan: Plan, out: Path | str | None) -> RunDir:
    """Create the run folder of a plan; it appears in one step.

    Args:
        out: by default a new folder under ``runs/``.

    Raises:
        UsageError: the folder already holds a run or other files.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    config = {**plan.config.model_dump(mode="json"), "recipe": None}
    head = {
        "config.yaml": yaml.safe_dump(config, sort_keys=False),
        PLAN: json_text(plan.model_dump(mode="json")),
        "run.json": json_text(environment(plan, world)),
    }
    return open_run(out, plan.name, head)
