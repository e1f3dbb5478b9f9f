"""What a run tells whoever watches it (terminal, log file, hooks). Every method may be left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Reporter:
    """Base with no-op methods; a user interface overrides what it shows."""

    def plan_ready(self, plan: Any) -> None:
        """The plan that is about to run."""

    def phase(self, name: str, detail: str = "") -> None:
        """A part of the run outside stages starts: load, evaluate, export, bench, report."""

    def stage_started(self, index: int, total: int, name: str, kind: str, steps: int) -> None:
        """Stage ``index`` of ``total`` (from 1) starts; ``steps`` is 0 when not known."""

    def step(self, step: int, steps: int, metrics: Mapping[str, float], units: int) -> None:
        """Optimiser step ``step`` of ``steps`` is done; it read ``units`` tokens, images or rays."""

    def progress(self, done: int, total: int, message: str = "") -> None:
        """Progress inside a phase or a stage without optimiser steps."""

    def stage_finished(self, name: str, outcome: Any) -> None:
        """The stage's outcome (metrics, tables, decisions)."""

    def message(self, text: str) -> None:
        """One line for a person."""

    def finished(self, status: Mapping[str, Any]) -> None:
        """The run ended; ``status`` is the content of status.json."""


class Many(Reporter):
    """Passes every event on to several reporters, in order."""

    def __init__(self, *reporters: Reporter) -> None:
        self.reporters = [r for r in reporters if r is not None]

    def __getattribute__(self, name: str) -> Any:
        if name in Reporter.__dict__ and not name.startswith("_"):
            reporters = object.__getattribute__(self, "reporters")

            def fan_out(*args: Any, **kwargs: Any) -> None:
                for reporter in reporters:
                    getattr(reporter, name)(*args, **kwargs)

            return fan_out
        return object.__getattribute__(self, name)
