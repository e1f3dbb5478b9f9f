"""Time, memory and disk of a whole run: stages, evaluation, export with its parity gate, and bench."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

from xarch.hardware import process_bytes
from xarch.planning.describe import family_of
from xarch.planning.plan import Estimates, PlannedExport, PlannedStage
from xarch.planning.sides import Sides

BENCH_SECONDS = 3.0
"""Maximum measuring time per graph."""
BENCH_CALLS = 52
PROFILED_SECONDS = 1.0
"""Time for recording the nodes of a graph."""
PROCEDURE_SECONDS, PROCEDURE_RUNS = 5.0, 11
"""Time after which a procedure is not repeated, and its most repetitions with the one before measuring."""
WEIGHT_BYTES_PER_SECOND = 8e9
"""Weights that a call of a graph reads; a step over one unit does little else."""
EXPORTER_BYTES = 350_000_000
"""What the exporter and its graphs take besides weights."""
FILE_BYTES_PER_SECOND = 1.5e8
"""Number of passes over a graph's weights: written, read back, checked and loaded into a runtime."""


class Totals:
    """Totals of a plan.

    Args:
        sides: the plan's models and data.
        rate: multiply-adds per second of a forward pass.
    """

    def __init__(self, sides: Sides, rate: float) -> None:
        self.sides, self.config, self.rate = sides, sides.config, rate
        self.trials: dict[str, float] = {}
        sample = {**self.config.data.sample, **self.config.evaluate.sample}
        with sides.registry.attributed("while estimating"):
            each = sides.data.info.facts.get("heldout_units") or sides.data.adapter.adapter.units_per_sample(sample)
            self.student = sides.student.work(sample) * each
            self.teacher = sides.teacher.info.facts.work(sample) * each if sides.teacher is not None else 0.0
            self.controls = self._controls() if self.config.evaluate.controls and sides.teacher is not None else 0

    def _controls(self) -> int:
        """Return the number of controls that are evaluated beside the student."""
        names = self.sides.target.adapter.control_names(self.sides.student)
        if names is None:
            names = family_of(self.sides.registry, self.sides.student.family).control_names(self.sides.student)
        return len(names)

    @contextlib.contextmanager
    def trial(self, profile: str) -> Iterator[None]:
        """Time the export of a small copy, as an estimate of the translation time of the student's graphs."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        # Other work prolongs the first, threads of a translation the second.
        self.trials[profile] = min(time.perf_counter() - wall, time.process_time() - cpu)

    def estimates(
        self, stages: Sequence[PlannedStage], exports: Sequence[PlannedExport], metric: str | None
    ) -> Estimates:
        """Return sums over the run."""
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
            peak_bytes=max([s.memory_bytes for s in stages] + [self._after_stages(4 * held, 4 * parameters, exports)]),
            disk_bytes=4 * parameters * (1 + len(exports)) + caches,
        )

    def _after_stages(self, teachers: int, student: int, exports: Sequence[PlannedExport]) -> int:
        """Bytes of the evaluation, or of the export if there is one: it holds the student's weights, their copy in the
        graph and the file's."""
        held = process_bytes() + teachers + student
        return held + 2 * student + EXPORTER_BYTES if exports else held

    def _evaluation(self, stages: Sequence[PlannedStage]) -> float:
        """Seconds for teacher, controls, student and its variants once, the student before training, and the curve's
        points. A control is the teacher, cut: it counts as one."""
        chosen = self.config.evaluate
        samples = min(chosen.samples, 2) if self.config.tiny else chosen.samples
        models = 1 + len(self.sides.student.variants())
        done = samples * ((1 + self.controls) * self.teacher + models * self.student)
        if chosen.baseline and not self.config.tiny:
            done += samples * (self.teacher + self.student)
        if chosen.curve is not None:
            points = 1 + sum(1 + s.steps // chosen.curve.every for s in stages)
            done += points * chosen.curve.samples * (self.teacher + self.student)
        return done / self.rate

    def _export(self, export: PlannedExport) -> float:
        """Seconds for translation (as timed on the small copy), files, and the student and its graphs on the parity
        samples."""
        files = 4 * self.sides.parameters / FILE_BYTES_PER_SECOND
        parity = self.config.export.parity_samples * self.student * (1 + len(export.graphs)) / self.rate
        return self.trials.get(export.profile, 0.0) + files + parity

    def _bench(self, export: PlannedExport) -> float:
        """Seconds for benchmarking every graph of the student and, if available, of the teacher, and the procedures of
        the student's family."""
        calls = [min(BENCH_SECONDS, BENCH_CALLS * work / self.rate) for work in (self.student, self.teacher)]
        loads = 2 * 4 * self.sides.parameters / FILE_BYTES_PER_SECOND
        graphs = len(export.graphs) * (sum(calls) + loads + min(PROFILED_SECONDS, calls[0]))
        call = 4 * self.sides.parameters / WEIGHT_BYTES_PER_SECOND
        procedures = (call * n for n in family_of(self.sides.registry, self.sides.student.family).bench_calls)
        return graphs + sum(min(PROCEDURE_SECONDS + each, PROCEDURE_RUNS * each) for each in procedures)
