"""Quality over training time: the run's metric on a few fixed samples, in curve.jsonl.

It is a separate file because its times differ between runs, and metrics.jsonl must be reproducible. The first row is
the initialised student; every stage ends with a row. Seconds count initialisation and stages so far, without
evaluations.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from xarch.config.delivery import CurveConfig
from xarch.contracts.metric import Evaluation
from xarch.contracts.model import Student
from xarch.engine.seeds import RandomState
from xarch.engine.stopwatch import Spent
from xarch.files.manifest import entry_of
from xarch.files.regular import open_regular
from xarch.files.run_dir import NO_ROWS, RunDir

START = "start"
"""Stage name in the first row."""

Measure = Callable[[Student, int], Evaluation | None]
"""(student, samples) -> figures."""


class QualityCurve:
    """Measures and writes on rank 0 only.

    Args:
        chosen: interval and number of samples; None for no curve.
        run: the run folder, or None on other ranks.
        measure: evaluates without changing RNG state or printing.

    Attributes:
        before: time spent before the running stage.
    """

    def __init__(self, chosen: CurveConfig | None, run: RunDir | None, measure: Measure) -> None:
        self.chosen, self.run, self.measure = chosen, run, measure
        self.before = Spent()

    @property
    def on(self) -> bool:
        """Whether a curve is enabled; the same on every rank."""
        return self.chosen is not None

    def begin(self, student: Student, spent: Spent) -> Mapping[str, Any]:
        """Write the first row, or reuse the one of an interrupted process with its seconds; return the position after
        it."""
        self.before = spent
        if self.run is None or self.chosen is None:
            return NO_ROWS
        try:
            with open_regular(self.run.curve) as f:
                line = f.readline()
            row = json.loads(line)
            self.before = Spent(row["seconds"], row["cpu_seconds"])
            return entry_of(self.run.curve, len(line))
        except (OSError, ValueError, KeyError, TypeError):
            self.cut(NO_ROWS)
            self.point(START, 0, 0, student, Spent())
            return self.mark()

    def due(self, step: int, before: float, now: float) -> bool:
        """Return whether a point is due after ``step``, ``now`` seconds into the stage (``before`` at the previous
        step)."""
        if self.chosen is None:
            return False
        if self.chosen.seconds is None:
            return step % self.chosen.every == 0
        return int(now // self.chosen.seconds) > int(before // self.chosen.seconds)

    def point(self, stage: str, step: int, units: int, student: Student, spent: Spent) -> None:
        """Evaluate and write one row.

        Args:
            stage: folder name of the stage.
            step: step of the stage.
            units: units read in the stage so far.
            student: unsharded, in any mode; it is left in eval mode.
            spent: time spent in the stage.
        """
        if self.run is None or self.chosen is None:
            return
        state = RandomState.now()
        student.module.eval()
        found = self.measure(student, self.chosen.samples)
        state.restore()
        if found is None:
            return
        row = {"stage": stage, "step": step, "units": units, **(self.before + spent).rounded(), "metric": found.metric}
        self.run.append_row(self.run.curve, {**row, "student": found.student, "teacher": found.teacher})

    def mark(self) -> Mapping[str, Any]:
        """Return the position in curve.jsonl and the digest of what is before it, for checkpoints."""
        return self.run.rows_mark(self.run.curve) if self.run is not None else NO_ROWS

    def cut(self, mark: Mapping[str, Any]) -> None:
        """Truncate curve.jsonl to a position.

        Raises:
            UsageError: what is before it has changed.
        """
        if self.run is not None:
            self.run.cut_rows(self.run.curve, mark)
