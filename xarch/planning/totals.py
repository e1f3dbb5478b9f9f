"""Time, memory and disk of a whole run: stages, evaluation, export with its parity gate, and bench."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

from xarch.planning.plan import Estimates, PlannedExport, PlannedStage
from xarch.planning.sides import Sides

BENCH_SECONDS = 3.0
"""Longest time a graph is measured for."""
BENCH_CALLS = 52
FILE_BYTES_PER_SECOND = 1.5e8
"""Weights of a graph are written, read back, checked and loaded into a runtime."""


class Totals:
    """Adds up what a plan knows.

    Args:
        sides: of the plan.
        rate: multiply-adds per second of a forward pass.
    """

    def __init__(self, sides: Sides, rate: float) -> None:
        self.sides, self.config, self.rate = sides, sides.config, rate
        self.trials: dict[str, float] = {}
        sample = {**self.config.data.sample, **self.config.evaluate.sample}
        with sides.registry.attributed("while estimating"):
            each = sides.data.adapter.adapter.units_per_sample(sample)
            self.student = sides.student.work(sample) * each
            self.teacher = sides.teacher.info.facts.work(sample) * each if sides.teacher is not None else 0.0

    @contextlib.contextmanager
    def trial(self, profile: str) -> Iterator[None]:
        """Around the export of a small copy: what it takes is what translating the student's graphs takes."""
        started = time.perf_counter()
        yield
        self.trials[profile] = time.perf_counter() - started

    def estimates(
        self, stages: Sequence[PlannedStage], exports: Sequence[PlannedExport], metric: str | None
    ) -> Estimates:
        """Sums over the run."""
        parts = {
            "stages": sum(s.seconds for s in stages),
            "evaluation": self._evaluation(stages) if metric is not None else 0.0,
            "export": sum(self._export(e) for e in exports),
            "bench": sum(self._bench(e) for e in exports) if self.config.export.bench else 0.0,
        }
        parameters = self.sides.parameters
        held = self.sides.teacher.info.parameters if self.sides.teacher is not None else 0
        held += sum(t.info.parameters for t in self.sides.teachers.values())
        caches = max([s.cache.bytes for s in stages if s.cache.use], default=0)
        return Estimates(
            seconds=sum(parts.values()),
            parts=parts,
            peak_bytes=max([s.memory_bytes for s in stages], default=4 * (held + parameters)),
            disk_bytes=4 * parameters * (1 + len(exports)) + caches,
        )

    def _evaluation(self, stages: Sequence[PlannedStage]) -> float:
        """Teacher, student and its variants once; the student before training; the points of the curve."""
        chosen = self.config.evaluate
        samples = min(chosen.samples, 2) if self.config.tiny else chosen.samples
        models = 1 + len(self.sides.student.variants())
        done = samples * (self.teacher + models * self.student)
        if chosen.baseline and not self.config.tiny:
            done += samples * (self.teacher + self.student)
        if chosen.curve is not None:
            points = 1 + sum(1 + s.steps // chosen.curve.every for s in stages)
            done += points * chosen.curve.samples * (self.teacher + self.student)
        return done / self.rate

    def _export(self, export: PlannedExport) -> float:
        """Translation as of the small copy, files, and the student and its graphs on the samples of the parity gate."""
        files = 4 * self.sides.parameters / FILE_BYTES_PER_SECOND
        parity = self.config.export.parity_samples * self.student * (1 + len(export.graphs)) / self.rate
        return self.trials.get(export.profile, 0.0) + files + parity

    def _bench(self, export: PlannedExport) -> float:
        """Every graph of the student and, where it has one, of the teacher."""
        calls = [min(BENCH_SECONDS, BENCH_CALLS * work / self.rate) for work in (self.student, self.teacher)]
        return len(export.graphs) * (sum(calls) + 4 * self.sides.parameters / FILE_BYTES_PER_SECOND)
