"""Remaining time of a run: measured for the running stage, scaled plan estimates for later stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

SMOOTH = 0.2
"""Weight of the latest step in the moving average of the step time."""


class Eta:
    """Estimates the remaining time of a run.

    Args:
        planned: stage name -> planned seconds, in order.
        clock: returns seconds; replaced in tests.
    """

    def __init__(self, planned: Mapping[str, float], clock: Callable[[], float] = time.monotonic) -> None:
        self.planned = dict(planned)
        self.clock = clock
        self.stage = ""
        self.started = clock()
        self.last_time: float | None = None
        self.last_step = 0
        self.step_seconds: float | None = None
        self.rate: float | None = None
        self.ratios: list[tuple[float, float]] = []
        self.remaining_steps = 0
        self.total_steps = 0
        self.ended = False

    def begin(self, stage: str) -> None:
        """Start timing a stage."""
        self.stage, self.started = stage, self.clock()
        self.last_time, self.last_step, self.step_seconds, self.rate = None, 0, None, None
        self.remaining_steps = self.total_steps = 0
        self.ended = False

    def step(self, step: int, steps: int, units: int) -> None:
        """Record a step that read ``units``. The first one only starts the clock, because it includes the warm-up."""
        now = self.clock()
        if self.last_time is not None and step > self.last_step:
            seconds = max((now - self.last_time) / (step - self.last_step), 1e-9)
            old = self.step_seconds
            self.step_seconds = seconds if old is None else (1 - SMOOTH) * old + SMOOTH * seconds
            self.rate = units / self.step_seconds
        self.last_time, self.last_step = now, step
        self.remaining_steps, self.total_steps = steps - step, steps

    def end(self) -> None:
        """End the stage; its actual time relative to the plan scales the estimates of later stages."""
        self.ended = True
        planned = self.planned.get(self.stage, 0.0)
        if planned > 0:
            self.ratios.append((self.clock() - self.started, planned))

    def stage_seconds(self) -> float | None:
        """Return the seconds left in this stage, None until two steps are done."""
        return None if self.step_seconds is None else self.remaining_steps * self.step_seconds

    def run_seconds(self) -> float | None:
        """Return the seconds left in all stages, None while unknown."""
        own = self.stage_seconds()
        names = list(self.planned)
        if own is None or self.stage not in names:
            return None
        later = sum(self.planned[n] for n in names[names.index(self.stage) + 1 :])
        return own + later * self._scale()

    def share(self) -> float:
        """Return the share of the run that is done, by the planned seconds of its parts; 0 without a plan. What counts
        no steps goes by the clock."""
        names, total = list(self.planned), sum(self.planned.values())
        if self.stage not in names or total <= 0:
            return 0.0
        done = sum(self.planned[n] for n in names[: names.index(self.stage)])
        own = float(self.ended)
        if self.total_steps:
            own = 1 - self.remaining_steps / self.total_steps
        elif not self.ended and self.planned[self.stage] > 0:
            own = min((self.clock() - self.started) / (self.planned[self.stage] * self._scale()), 0.99)
        return (done + own * self.planned[self.stage]) / total

    def _scale(self) -> float:
        """Return actual over planned seconds, for finished stages and, if known, the running one."""
        seen = list(self.ratios)
        planned = self.planned.get(self.stage, 0.0)
        if self.step_seconds is not None and planned > 0 and self.total_steps:
            seen.append((self.step_seconds * self.total_steps, planned))
        total = sum(p for _, p in seen)
        return sum(s for s, _ in seen) / total if total > 0 else 1.0
