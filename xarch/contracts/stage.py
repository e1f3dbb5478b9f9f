"""Stage kind: one way of training or fitting the student. The built-in kinds use only this public API."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from xarch.contracts.batch import Batch
from xarch.contracts.data import BatchStream
from xarch.contracts.metric import Evaluation
from xarch.contracts.model import Sink, Student, TapModel, Teacher
from xarch.contracts.options import Options


@dataclass(frozen=True)
class EarlyEnd:
    """Record of a stage that ended before its budget was used up.

    Attributes:
        step: optimiser steps taken.
        steps: planned optimiser steps. units: tokens, images or rays read.
        reason: "plateau" or "time".
    """

    step: int
    steps: int
    units: int
    reason: str


@dataclass
class StageOutcome:
    """Result of a finished stage.

    Attributes:
        metrics: figures for the report (``{"kl": 0.08}``).
        decisions: JSON facts that change the student's structure, passed to ``Student.decide`` and saved with it.
        per_site: named figures per site or match, ``{"relative_error": {"blocks.3": 0.4}}``; the report draws them.
        ended: where and why it ended early, if it did.
        training: time of its optimiser steps: wall-clock ``seconds`` and ``cpu_seconds``.
        undone: why its changes were undone (validation got worse), "" if kept.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    decisions: dict[str, Any] = field(default_factory=dict)
    per_site: dict[str, dict[str, float]] = field(default_factory=dict)
    ended: EarlyEnd | None = None
    training: dict[str, float] = field(default_factory=dict)
    undone: str = ""


class StageMatches(ABC):
    """Checked matches of a stage with their objectives, connectors, weights, masks and denominators.

    Attributes:
        module: all objectives and connectors, for optimisers and checkpoints.
        names: match names in configuration order.
        coupled: why a batch may not be split into micro-batches or across processes, "" if it may.
    """

    module: nn.Module
    names: Sequence[str]
    coupled: str

    @abstractmethod
    def backward(self, batch: Batch, progress: float, *, monitored: bool = True) -> dict[str, float]:
        """Add the gradients of the weighted loss of a whole batch to ``.grad``; handles micro-batches, processes,
        teachers, masks and denominators.

        Args:
            batch: the whole batch, after its batch steps.
            progress: position in the stage's schedules and phases, 0 to 1.
            monitored: whether :meth:`monitor` is read before the next call.

        Returns:
            "loss" and, for every match, "match.NAME" (raw) and "weighted.NAME"; in local stages also "site.SITE".
        """

    @abstractmethod
    def measure(self, batches: Iterable[Batch], progress: float = 1.0) -> dict[str, float]:
        """Return the same figures as means over batches, in eval mode; changes neither weights, buffers nor random
        state."""

    @abstractmethod
    def monitor(self) -> dict[str, float]:
        """Return further figures of the objectives, "monitor.FIGURE.MATCH" (or ".SITE"), of the last pass that was
        monitored."""

    @abstractmethod
    def after_step(self) -> None:
        """Notify objectives of a completed optimiser step."""

    @abstractmethod
    def losses(self) -> dict[str, Tensor]:
        """Return match -> loss of every sample of the last whole batch, float32 on the CPU, on every rank."""


class StageTrainable(ABC):
    """Trainable parameters of a stage (of student, connectors and objectives) with their optimiser.

    Attributes:
        named: name -> parameter; those of connectors and objectives begin with ``connectors.`` and ``objectives.``.
    """

    named: Mapping[str, nn.Parameter]

    @abstractmethod
    def zero_grad(self) -> None:
        """Drop all gradients."""

    @abstractmethod
    def clip(self) -> float:
        """Clip gradients as configured (connectors together with the student; each site of a local stage separately)
        and return the norm before clipping."""

    @abstractmethod
    def again(self) -> Sequence[AbstractContextManager[None]]:
        """Return contexts of the optimiser wrappers that need the gradient at another point (SAM), in order. Within
        each, the parameters are perturbed, and the gradients of the same batch must be recomputed."""

    @abstractmethod
    def step(self, factor: float) -> float:
        """Update at ``factor`` times the stage's learning rate; return the learning rate."""

    @abstractmethod
    def snapshot(self) -> dict[str, Tensor]:
        """Return copies of the values and buffers the stage would end with now: averaged if it adopts its EMA."""

    @abstractmethod
    def restore(self, values: Mapping[str, Tensor]) -> None:
        """Restore a :meth:`snapshot`; moments are dropped and an EMA restarts from it."""

    @abstractmethod
    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return (trained values and all buffers, optimiser moments and EMA), unsharded, for a checkpoint."""

    @abstractmethod
    def load(self, values: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        """Restore the result of :meth:`state`."""


@dataclass(frozen=True)
class SavedStep:
    """Checkpoint of a running stage: tensors and JSON facts as saved."""

    step: int
    model: Mapping[str, Tensor]
    trainer: Mapping[str, Tensor]
    facts: Mapping[str, Any]


class StageCheckpoints(ABC):
    """Checkpoints of the running stage: written atomically, verified when read."""

    @abstractmethod
    def latest(self) -> SavedStep | None:
        """Return the newest checkpoint if the stage was interrupted, and reset random state, clock and log to it.
        Without one, truncate the log to the stage's beginning."""

    @abstractmethod
    def save(
        self, step: int, *, model: Mapping[str, Tensor], trainer: Mapping[str, Tensor], facts: Mapping[str, Any]
    ) -> None:
        """Save a checkpoint; the engine adds random state, clock and log position."""


class StageContext(ABC):
    """Context available to a stage kind.

    Attributes:
        name: name of the stage.
        options: validated with the kind's ``Options``.
        settings: the stage's configuration (``xarch.config.schema.Stage``).
        steps: planned optimiser steps. sites: names of the selected sites of a local stage.
        seed: seed of this stage.
        student: the model being trained.
        teacher: the main teacher; None with ``teacher: none``.
        teachers: further teachers by name; includes ``ema`` and ``self`` if the stage uses them.
        data: facts of the data set.
        device: device of the run.
        processes: the process group of the run: ``processes.world``, ``.rank``,
            ``.main``, ``.sum(tensor)``, ``.any(flag)``, ``.barrier()``.
        checkpoints: checkpoints of this stage.
        rate: learning-rate schedule, ``xarch.optim.LearningRate``; ``rate.factor(step, steps)`` is relative to the
            peak.
        clock: training time excluding evaluations, ``clock.spent.seconds``; continues after a resume.
        retry: whether to retry a step with non-finite values (``runtime.on_nan``).
    """

    name: str
    options: Any
    settings: Any
    steps: int
    sites: Sequence[str]
    seed: int
    student: Student
    teacher: Teacher | None
    teachers: Mapping[str, TapModel]
    data: Mapping[str, Any]
    device: torch.device
    processes: Any
    checkpoints: StageCheckpoints
    rate: Any
    clock: Any
    retry: bool

    @abstractmethod
    def matches(self) -> StageMatches:
        """Return the stage's matches, built once."""

    @abstractmethod
    def trainable(self) -> StageTrainable:
        """Return what the stage trains, built once; everything else is frozen and stays in eval mode."""

    @abstractmethod
    def batches(self) -> BatchStream:
        """Return the stage's training batches, on the run's device, before batch steps."""

    @abstractmethod
    def prepare(self, batch: Batch, step: int, progress: float | None = None) -> Batch:
        """Apply the stage's batch steps to a training batch at this step; ``progress`` as in ``StageMatches.backward``,
        by default the share of steps completed."""

    @abstractmethod
    def run_teacher(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        """Push teacher taps into ``sink`` in forward order, without gradients, from the cache if there is one."""

    @abstractmethod
    def validation(self, samples: int) -> list[Batch]:
        """Return fixed batches of the validation split, after batch steps (``training=False``)."""

    @abstractmethod
    def calibration(self, samples: int) -> list[Batch]:
        """Return fixed batches of the calibration split, for tables and ranges."""

    @abstractmethod
    def evaluate(
        self, samples: int | None = None, *, metric: str | None = None, split: str = "validation"
    ) -> Evaluation:
        """Evaluate the student as the stage would leave it now, with the run's metric or another one; changes neither
        weights, buffers nor random state.

        Raises:
            PlanError: there is no metric.
        """

    @abstractmethod
    def log(self, step: int, **metrics: float) -> None:
        """Write one line to ``metrics.jsonl`` and display it."""

    @abstractmethod
    def step_done(self, step: int, steps: int, figures: Mapping[str, float], *, read: int, units: int) -> None:
        """Report a completed optimiser step: write its line in ``metrics.jsonl`` (every ``log_every`` steps, and the
        last), update the display, call hooks, and add a point to the quality curve if due.

        Args:
            step, steps: optimiser steps completed, and total of the stage as currently known.
            figures: figures of the step.
            read, units: units in the step's batch, and in the stage so far.
        """

    @abstractmethod
    def stopping(self) -> bool:
        """Return whether a stop was requested: save a checkpoint, then :meth:`progress` ends the stage."""

    @abstractmethod
    def progress(self, done: int, total: int, message: str = "") -> None:
        """Report progress within the stage; also raises on a pending interrupt."""

    @abstractmethod
    def say(self, text: str) -> None:
        """Write one line to the display and the log."""

    @abstractmethod
    def solver(self, site: str) -> Any:
        """Return the target's closed-form solver for ``site``."""


@dataclass(frozen=True)
class StageRequest:
    """Planning request to a stage kind.

    Attributes:
        options: validated.
        settings: the stage's configuration.
        units_per_sample: budget units per sample.
        budget: units from ``share``, ``units`` or ``epochs``; None if the stage sets none of them.
        sites: names of the selected sites.
    """

    options: Any
    settings: Any
    units_per_sample: int
    budget: int | None
    sites: Sequence[str]


class StageKind(ABC):
    """Base of stage kinds, registered with ``registry.stage``; the built-in ``gradient`` and ``closed_form`` use the
    same interface.

    Class attributes:
        Options: options of the kind.
        trains: whether it optimises matches: ``matches`` and ``trains`` are then required, otherwise rejected.
        solves: whether it uses the target's solvers (``StageContext.solver``); the stage's options are then those of
            ``TargetAdapter.solver_options``.
        resumes: whether it saves checkpoints. If not, an interrupted stage restarts from its beginning, so it should
            take only minutes.
    """

    Options: ClassVar[type[BaseModel]] = Options
    trains: ClassVar[bool] = False
    solves: ClassVar[bool] = False
    resumes: ClassVar[bool] = False

    @abstractmethod
    def run(self, context: StageContext) -> StageOutcome:
        """Run the stage on ``context.student``."""

    def units(self, request: StageRequest) -> int:
        """Return how many units it reads, for the plan; by default its budget, or none."""
        return request.budget or 0

    def work(self, request: StageRequest, *, student: float, teacher: float) -> float:
        """Return the multiply-adds per unit read, for the plan's time estimate; not used for kinds that train, whose
        steps the plan estimates itself.

        Args:
            student, teacher: multiply-adds of a forward pass; by default one of each.
        """
        return student + teacher
