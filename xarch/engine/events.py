"""Events of a run, for observers such as the terminal and the log file. Every method is optional."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Reporter:
    """Base class with no-op methods; a user interface overrides those it needs."""

    def plan_ready(self, plan: Any) -> None:
        """The plan is ready to run."""

    def phase(self, name: str, detail: str = "") -> None:
        """A phase outside the stages starts: load, evaluate, export, bench, report."""

    def stage_started(self, index: int, total: int, name: str, kind: str, steps: int) -> None:
        """Stage ``index`` (from 1) of ``total`` starts; ``steps`` is 0 if unknown."""

    def step(self, step: int, steps: int, metrics: Mapping[str, float], units: int) -> None:
        """Optimiser step ``step`` of ``steps`` is complete; it read ``units`` tokens, images or rays."""

    def progress(self, done: int, total: int, message: str = "") -> None:
        """Progress within a phase, or within a stage without optimiser steps."""

    def stage_finished(self, name: str, outcome: Any) -> None:
        """The stage is complete, with its outcome (metrics, per_site, decisions)."""

    def message(self, text: str) -> None:
        """One line to display."""

    def finished(self, status: Mapping[str, Any]) -> None:
        """The run ended; ``status`` is the content of status.json."""


class Reporters(Reporter):
    """Forwards every event to several reporters, in order."""

    def __init__(self, *reporters: Reporter) -> None:
        self.reporters = reporters

    def plan_ready(self, plan: Any) -> None:
        for reporter in self.reporters:
            reporter.plan_ready(plan)

    def phase(self, name: str, detail: str = "") -> None:
        for reporter in self.reporters:
            reporter.phase(name, detail)

    def stage_started(self, index: int, total: int, name: str, kind: str, steps: int) -> None:
        for reporter in self.reporters:
            reporter.stage_started(index, total, name, kind, steps)

    def step(self, step: int, steps: int, metrics: Mapping[str, float], units: int) -> None:
        for reporter in self.reporters:
            reporter.step(step, steps, metrics, units)

    def progress(self, done: int, total: int, message: str = "") -> None:
        for reporter in self.reporters:
            reporter.progress(done, total, message)

    def stage_finished(self, name: str, outcome: Any) -> None:
        for reporter in self.reporters:
            reporter.stage_finished(name, outcome)

    def message(self, text: str) -> None:
        for reporter in self.reporters:
            reporter.message(text)

    def finished(self, status: Mapping[str, Any]) -> None:
        for reporter in self.reporters:
            reporter.finished(status)
