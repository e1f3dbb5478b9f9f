"""CPU seconds of the parts of a conversion, and the speed of the machine meanwhile."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

import xarch
from xarch.engine.events import Reporter
from xarch.hardware import load_average

METHOD = ("planning", "start")
"""Parts before the first stage; every stage is a part of its own name."""
AFTER = ("save", "evaluate", "report")


class Stopwatch(Reporter):
    """Splits the CPU time of this process by the phases the run reports.

    Attributes:
        parts: part -> CPU seconds: planning, start (the teacher is loaded, what it gives is copied, mapped or baked),
            the stages, save, evaluate, report.
    """

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self._part, self._since = "planning", time.process_time()

    def plan_ready(self, plan: Any) -> None:
        self._next("start")

    def phase(self, name: str, detail: str = "") -> None:
        self._next("start" if name == "load" else name)

    def stage_started(self, index: int, total: int, name: str, kind: str, steps: int) -> None:
        self._next(name)

    def finished(self, status: Any) -> None:
        self._next("rest")

    def method(self) -> float:
        """Seconds of planning, start and stages."""
        return sum(seconds for part, seconds in self.parts.items() if part not in AFTER)

    def _next(self, part: str) -> None:
        now = time.process_time()
        self.parts[self._part] = self.parts.get(self._part, 0.0) + now - self._since
        self._part, self._since = part, now


def timed(overrides: dict[str, Any], out: Path) -> tuple[xarch.Run, dict[str, Any]]:
    """A conversion without export, and its row: ``cpu_seconds`` of the method, the parts, the machine's state."""
    fixed = {
        "export.profiles": [],
        "runtime.threads": 1,
        "runtime.tensorboard": False,
        "evaluate.samples": 4,
        "evaluate.baseline": False,
    }
    watch = Stopwatch()
    run = xarch.convert(overrides={**fixed, **overrides}, out=out, reporter=watch)
    row = {
        "cpu_seconds": round(watch.method(), 1),
        "parts": {name: round(seconds, 2) for name, seconds in watch.parts.items()},
        **machine_state(),
    }
    return run, row


def machine_state() -> dict[str, float | None]:
    """Load average, and GFLOP per CPU second of a product of matrices.

    Where two hardware threads share a core a CPU second does less work while the other one is busy; the second figure
    shows by how much.
    """
    a = torch.ones(512, 512)
    best = 0.0
    for _ in range(5):
        started = time.process_time()
        for _ in range(4):
            a @ a
        best = max(best, 8 * 512**3 / max(time.process_time() - started, 1e-9) / 1e9)
    return {"load_average": load_average(), "gflops": round(best)}
