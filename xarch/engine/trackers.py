"""Experiment trackers that get a run's figures: wandb, mlflow, trackio, ..., through accelerate."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from xarch.engine.distributed import open_tracker
from xarch.planning.plan import Plan

QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}
"""A tracker gets the figures of a run; nothing about its use goes to its makers, unless the environment says so."""


class Trackers:
    """The trackers of a run. They are observers: one that fails later is dropped with a message, and training goes on.

    Args:
        plan: names the project, and gives the settings that are stored with the run.
        folder: where trackers that write files do so.
        say: displays a line.

    Raises:
        UsageError: a tracker is unknown, not installed, or does not start.
    """

    def __init__(self, plan: Plan, folder: Path, say: Callable[[str], None]) -> None:
        self.say = say
        self.before = dict(zip((s.folder for s in plan.stages), _sums([s.steps for s in plan.stages]), strict=True))
        self.last = sum(s.steps for s in plan.stages)
        self.open: dict[str, Any] = {}
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        for name, options in plan.config.runtime.trackers.items():
            tracker = open_tracker(name, plan.name, folder, options)
            self.open[name] = tracker
            self._try(name, partial(tracker.store_init_configuration, _settings(plan)))

    def summary(self, figures: Mapping[str, float]) -> None:
        """Send the evaluated figures of the student, after the last step."""
        values = {f"evaluation/{name}": float(value) for name, value in figures.items()}
        self._send(values, self.last)

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Send one row; steps of a run are those of all stages before, by the plan, and of this one."""
        values = {f"{stage}/{name}": value for name, value in metrics.items()}
        self._send(values, self.before.get(stage, 0) + step)

    def finish(self) -> None:
        """End all trackers; safe to call twice."""
        for name, tracker in list(self.open.items()):
            self._try(name, tracker.finish)
        self.open.clear()

    def _send(self, values: Mapping[str, float], step: int) -> None:
        for name, tracker in list(self.open.items()):
            self._try(name, partial(tracker.log, dict(values), step=step))

    def _try(self, name: str, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as e:
            del self.open[name]
            self.say(f"tracker {name} gets no more figures: {type(e).__name__}: {' '.join(str(e).split())[:200]}")


def _sums(steps: list[int]) -> list[int]:
    return [sum(steps[:i]) for i in range(len(steps))]


def _settings(plan: Plan) -> dict[str, Any]:
    """Return settings that all trackers can store."""
    config = plan.config
    return {
        "teacher": config.teacher,
        "target": plan.student.target,
        "parameters": plan.student.parameters,
        "data": config.data.ref,
        "recipe": config.recipe or "",
        "budget": config.budget,
        "seed": config.seed,
        "tiny": config.tiny,
    }
