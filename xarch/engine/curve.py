"""Quality over training time: the run's metric on a few fixed held-out samples, in curve.jsonl.

A file of its own, because its seconds differ from run to run and metrics.jsonl must not. The first row is the student
as it was initialised; every stage ends with one. Seconds are those of initialisation and stages so far, without any
evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from xarch.config.schema import CurveConfig
from xarch.contracts.metric import Evaluation
from xarch.contracts.model import Student
from xarch.engine.seeds import restore_rng, rng_state
from xarch.engine.stopwatch import Spent
from xarch.files.run_dir import RunDir

START = "start"
"""Stage of the first row."""

Measure = Callable[[Student, int], Evaluation | None]
"""(student, samples) -> figures."""


class QualityCurve:
    """Measures and writes in the main process only.

    Args:
        chosen: how often and on how much; None: no curve.
        run: the run folder, or None in other processes.
        measure: evaluates without a trace in the generators' state or on the screen.

    Attributes:
        before: spent before the running stage.
    """

    def __init__(self, chosen: CurveConfig | None, run: RunDir | None, measure: Measure) -> None:
        self.chosen, self.run, self.measure = chosen, run, measure
        self.before = Spent()

    @property
    def on(self) -> bool:
        """Whether a curve is wanted, in every process."""
        return self.chosen is not None

    def begin(self, student: Student, spent: Spent) -> int:
        """Write the first row, unless an interrupted process did: then its seconds count. Returns the position after
        it."""
        self.before = spent
        if self.run is None or self.chosen is None:
            return 0
        try:
            with open(self.run.curve, "rb") as f:
                line = f.readline()
            row = json.loads(line)
            self.before = Spent(row["seconds"], row["cpu_seconds"])
            return len(line)
        except (OSError, ValueError, KeyError):
            self.cut(0)
            self.point(START, 0, 0, student, Spent())
            return self.size()

    def due(self, step: int, before: float, now: float) -> bool:
        """Whether a point belongs after ``step``, ``now`` seconds into the stage, ``before`` at the step before it."""
        if self.chosen is None:
            return False
        if self.chosen.seconds is None:
            return step % self.chosen.every == 0
        return int(now // self.chosen.seconds) > int(before // self.chosen.seconds)

    def point(self, stage: str, step: int, units: int, student: Student, spent: Spent) -> None:
        """Evaluate and write one row.

        Args:
            stage: folder of the stage.
            step: of the stage.
            units: read in the stage so far.
            student: whole, in any mode; it is left in eval mode.
            spent: in the stage.
        """
        if self.run is None or self.chosen is None:
            return
        state = rng_state()
        student.module.eval()
        found = self.measure(student, self.chosen.samples)
        restore_rng(*state)
        if found is None:
            return
        row = {"stage": stage, "step": step, "units": units, **(self.before + spent).rounded(), "metric": found.metric}
        self.run.append_row(self.run.curve, {**row, "student": found.student, "teacher": found.teacher})

    def size(self) -> int:
        """Position in curve.jsonl, for checkpoints."""
        return self.run.rows_size(self.run.curve) if self.run is not None else 0

    def cut(self, size: int) -> None:
        """Back to a position."""
        if self.run is not None:
            self.run.cut_rows(self.run.curve, size)
