"""Context of a running stage."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from xarch.config.intervals import log_every
from xarch.config.schema import RunConfig, Stage
from xarch.contracts.adapters import TargetAdapter
from xarch.contracts.batch import Batch
from xarch.contracts.batch_step import StepContext
from xarch.contracts.data import BatchStream
from xarch.contracts.local import Solver
from xarch.contracts.metric import Evaluation
from xarch.contracts.model import Sink, Student, TapModel, Teacher
from xarch.contracts.stage import StageContext, StageMatches, StageTrainable
from xarch.engine.assembly import Assembled
from xarch.engine.batches import DeviceStream, apply_steps
from xarch.engine.checkpoint import CheckpointFolder
from xarch.engine.curve import QualityCurve
from xarch.engine.distributed import Distributed
from xarch.engine.events import Reporter
from xarch.engine.metrics import MetricsLog
from xarch.engine.modes import Modes
from xarch.engine.seeds import generator
from xarch.engine.signals import StopRequest
from xarch.engine.stage_checkpoints import EngineCheckpoints
from xarch.engine.stopwatch import Stopwatch
from xarch.engine.teacher import TeacherFeed
from xarch.engine.terms import phase_of
from xarch.errors import Interrupted, PlanError, PluginError
from xarch.optim.schedules import LearningRate
from xarch.planning.batches import PlannedBatches
from xarch.planning.plan import PlannedStage

OpenStream = Callable[[str, int, Mapping[str, Any], int], BatchStream]
"""(split, samples, sample, seed) -> stream."""

Evaluate = Callable[[TapModel, int | None, str | None, str], Evaluation | None]
"""(student, samples, metric, split) -> figures; None without a metric."""


@dataclass
class EngineContext(StageContext):
    """The engine's implementation of :class:`StageContext`; all stage kinds use only its public part.

    Attributes:
        planned, config, adapter: those of the run's plan.
        phases, prepared: the stage's settings before the first phase and in each phase, and the batches of each.
        put_together: builds matches and trainable parameters on first use.
        whole: the unsharded student; ``student`` may be a sharded copy of it.
        feed: the teachers.
        folder: checkpoints.
        metrics, curve, reporter, stop: those of the run.
        open_stream, measure: open data, and evaluate the run's metric.
        on_step: calls the step hooks.
        metrics_start, curve_start: positions of the two logs at the stage's beginning.
        data_counters: counters of the stage's stream.
        figures: finite figures of the last step.
        cutting: how batches are split after running out of memory.
    """

    name: str
    options: Any
    steps: int
    sites: Sequence[str]
    seed: int
    student: Student
    teacher: Teacher | None
    teachers: Mapping[str, TapModel]
    data: Mapping[str, Any]
    device: torch.device
    processes: Distributed
    rate: LearningRate
    retry: bool
    planned: PlannedStage
    config: RunConfig
    adapter: TargetAdapter
    phases: Sequence[Stage]
    prepared: Sequence[PlannedBatches]
    put_together: Callable[[], Assembled]
    whole: Student
    feed: TeacherFeed
    folder: CheckpointFolder
    metrics: MetricsLog
    curve: QualityCurve
    reporter: Reporter
    stop: StopRequest
    open_stream: OpenStream
    measure: Evaluate
    on_step: Callable[[int, Mapping[str, float]], object]
    metrics_start: Mapping[str, Any]
    curve_start: Mapping[str, Any]
    data_counters: dict[str, int]
    clock: Stopwatch = field(default_factory=Stopwatch)
    figures: dict[str, float] = field(default_factory=dict)
    cutting: dict[str, Any] = field(default_factory=dict)
    _assembled: Assembled | None = None
    _read: dict[tuple[str, int], list[Batch]] = field(default_factory=dict)
    _noted: dict[str, float] = field(default_factory=dict)
    _seconds: float = 0.0

    def __post_init__(self) -> None:
        self.settings = self.phases[0]
        self.checkpoints = EngineCheckpoints(self.folder, self)

    def matches(self) -> StageMatches:
        return self._parts().matches

    def trainable(self) -> StageTrainable:
        return self._parts().trainable

    def _parts(self) -> Assembled:
        if self._assembled is None:
            self._assembled = self.put_together()
        return self._assembled

    @property
    def _modes(self) -> Modes:
        if self._assembled is not None:
            return self._assembled.modes
        return Modes([self.student.module], [self.student.module])

    def batches(self) -> BatchStream:
        stream = self.open_stream("train", self.settings.batch.size, self.settings.sample, self.seed)
        return DeviceStream(stream, self.device, self.data_counters)

    def prepare(self, batch: Batch, step: int, progress: float | None = None) -> Batch:
        at = min(step / max(self.steps, 1), 1.0) if progress is None else progress
        return self._prepared(batch, at, step, training=True, seed=(self.seed, "step", step))

    def _prepared(self, batch: Batch, at: float, step: int, *, training: bool, seed: Sequence[object]) -> Batch:
        planned = self.prepared[phase_of(self.phases, at)]
        if not planned.steps:
            return batch
        moment = StepContext(
            student=self.student,
            teacher=self.teacher,
            teachers=self.teachers,
            step=step,
            steps=self.steps,
            training=training,
            generator=generator(*seed),
            figures=self.figures,
            log=self._note if training else lambda **figures: None,
            at=at,
        )
        with self._modes.evaluating():
            made = apply_steps(batch, planned.steps, moment)
        for key, maker in planned.made.items():
            value, layout = made.get(key), planned.tensors[key].layout
            if value is None or value.ndim != len(layout):
                seen = "nothing" if value is None else f"a tensor of shape {list(value.shape)}"
                raise PluginError(
                    f"stages.{self.name}.batch.steps.{maker}: it declares the tensor {key!r} ({layout}) and made "
                    f"{seen}",
                    "what makes() declares is what a call has to put into the batch",
                )
        return made

    def _note(self, **figures: float) -> None:
        self._noted |= {name: float(value) for name, value in figures.items()}

    def run_teacher(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        self.feed.run(batch, wanted, sink)

    def validation(self, samples: int) -> list[Batch]:
        return self._fixed("validation", samples)

    def calibration(self, samples: int) -> list[Batch]:
        return self._fixed("calibration", samples)

    def _fixed(self, split: str, samples: int) -> list[Batch]:
        """Return batches of a finite split in its fixed order; only a few in a trial run.

        They are read once and prepared again at every call: a batch step may depend on the current student, and a
        resumed stage does not have earlier ones.
        """
        samples = min(samples, 2) if self.config.tiny else samples
        with self._modes.undisturbed(), self._averaged():
            if (split, samples) not in self._read:
                self._read[split, samples] = self._first(split, samples)
            return [
                self._prepared(batch, 1.0, self.steps, training=False, seed=(self.seed, split, number))
                for number, batch in enumerate(self._read[split, samples])
            ]

    def _first(self, split: str, samples: int) -> list[Batch]:
        stream = self.open_stream(split, self.settings.batch.size, self.settings.sample, self.seed)
        out: list[Batch] = []
        for batch in stream:
            out.append(batch.to(self.device))
            if sum(len(b) for b in out) >= samples:
                break
        else:
            found = sum(len(b) for b in out)
            self.say(f"stage {self.name}: the {split} split has {found} samples, fewer than the {samples} asked for")
        return out

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        return self._assembled.trainable.averaged() if self._assembled else contextlib.nullcontext()

    def evaluate(
        self, samples: int | None = None, *, metric: str | None = None, split: str = "validation"
    ) -> Evaluation:
        with self._measured() as student:
            found = self.measure(student, samples, metric, split)
        if found is None:
            raise PlanError(f"stages.{self.name}: no metric to evaluate with", "set one: `--set evaluate.metric=NAME`")
        return found

    @contextlib.contextmanager
    def _measured(self) -> Iterator[Student]:
        """Provide the student as the stage would leave it now, unsharded and in eval mode; restore everything on
        exit."""
        with self.clock.paused(), self._modes.undisturbed(), self._averaged():
            if self.whole is not self.student:
                self.processes.collect_into(self.student, self.whole)
                self.whole.module.eval()
            yield self.whole

    def log(self, step: int, **metrics: float) -> None:
        self.metrics.row(self.planned.folder, step, metrics)

    def step_done(self, step: int, steps: int, figures: Mapping[str, float], *, read: int, units: int) -> None:
        row = {**figures, **self._noted}
        self._noted = {}
        self.figures = {name: value for name, value in row.items() if math.isfinite(value)}
        if step % log_every(self.settings, self.planned.steps) == 0 or step >= steps:
            self.metrics.row(self.planned.folder, step, row, units)
            if self.processes.main:
                self.on_step(step, row)
        self.reporter.step(step, steps, row, read)
        if self.curve.on and step < steps:
            self._add_point(step, units)

    def _add_point(self, step: int, units: int) -> None:
        """Add a point to the quality curve if one is due by rank 0's clock."""
        spent = self.clock.spent
        due = self.curve.due(step, self._seconds, spent.seconds)
        self._seconds = spent.seconds
        if not self.processes.any(due and self.processes.main):
            return
        with self._measured() as student:
            self.curve.point(self.planned.folder, step, units, student, spent)
            self.processes.barrier()

    def stopping(self) -> bool:
        return self.processes.any(self.stop.received is not None)

    def progress(self, done: int, total: int, message: str = "") -> None:
        self.reporter.progress(done, total, message)
        if self.stopping():
            raise Interrupted(f"stopped by {self.stop.received or 'another rank'} in stage {self.name}")

    def say(self, text: str) -> None:
        self.reporter.message(text)

    def solver(self, site: str) -> Solver:
        return self.adapter.solver(self.student, site, self.options)

    def finish(self) -> None:
        """End the stage: adopt averages, freeze all parameters, and unshard the student."""
        if self._assembled is not None:
            self._assembled.trainable.finish()
        for parameter in self.student.module.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        if self.whole is not self.student:
            self.processes.collect_into(self.student, self.whole)
            self.processes.drop_shards()
        self.whole.module.eval().requires_grad_(False)
