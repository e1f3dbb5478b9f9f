"""A stage kind: one way of bringing the student closer to the teacher. The built-in kinds use what is public here."""

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
    """A stage that ended before its budget was read.

    Attributes:
        step: optimiser steps it took.
        steps: optimiser steps of the plan.
        units: tokens, images or rays it read.
        reason: "plateau" or "time".
    """

    step: int
    steps: int
    units: int
    reason: str


@dataclass
class StageOutcome:
    """What a finished stage leaves behind.

    Attributes:
        metrics: figures for the report (``{"kl": 0.08}``).
        decisions: JSON facts that change the student's structure, handed to ``Student.decide`` and saved with it.
        per_site: named figures per site or match, ``{"relative_error": {"blocks.3": 0.4}}``; the report draws them.
        ended: if it ended early, where and why.
        training: seconds of its optimiser steps, ``seconds`` on the clock and ``cpu_seconds``.
        undone: why its changes were undone (validation got worse), "" if they were kept.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    decisions: dict[str, Any] = field(default_factory=dict)
    per_site: dict[str, dict[str, float]] = field(default_factory=dict)
    ended: EarlyEnd | None = None
    training: dict[str, float] = field(default_factory=dict)
    undone: str = ""


class StageMatches(ABC):
    """The proven matches of a stage with their objectives, connectors, weights, masks and denominators.

    Attributes:
        module: every objective and connector, for optimisers and checkpoints.
        names: names of the matches in the order of the configuration.
        coupled: why a batch may not be cut into micro-batches or spread over processes, "" if it may.
    """

    module: nn.Module
    names: Sequence[str]
    coupled: str

    @abstractmethod
    def backward(self, batch: Batch, progress: float) -> dict[str, float]:
        """Gradients of the weighted loss of a whole batch, added to ``.grad``: micro-batches, processes, teachers,
        masks and denominators are taken care of.

        Args:
            batch: the whole batch, after its batch steps.
            progress: 0 to 1, where schedules and phases of the stage stand.

        Returns:
            "loss" and, for every match, "match.NAME" (raw) and "weighted.NAME"; in local stages also "site.SITE".
        """

    @abstractmethod
    def measure(self, batches: Iterable[Batch], progress: float = 1.0) -> dict[str, float]:
        """The same figures as means over batches, in eval mode; changes neither weights, buffers nor random state."""

    @abstractmethod
    def monitor(self) -> dict[str, float]:
        """Further figures of the objectives, "monitor.FIGURE.MATCH" (or ".SITE")."""

    @abstractmethod
    def after_step(self) -> None:
        """Tell objectives that an optimiser step is done."""

    @abstractmethod
    def losses(self) -> dict[str, Tensor]:
        """Match -> loss of every sample of the last whole batch, float32 on the CPU, in every process."""


class StageTrainable(ABC):
    """What a stage trains: chosen parameters of the student, its connectors and objectives, with their optimiser.

    Attributes:
        named: name -> parameter; those of connectors and objectives begin with ``connectors.`` and ``objectives.``.
    """

    named: Mapping[str, nn.Parameter]

    @abstractmethod
    def zero_grad(self) -> None:
        """Drop all gradients."""

    @abstractmethod
    def clip(self) -> float:
        """Clip gradients as the stage says (connectors together with the student; each site of a local stage alone)
        and return their norm before."""

    @abstractmethod
    def again(self) -> Sequence[AbstractContextManager[None]]:
        """Wrappers of the optimiser that take the gradient somewhere else (SAM), in order: inside each of them the
        parameters are moved, and the gradients of the same batch are to be computed once more."""

    @abstractmethod
    def step(self, factor: float) -> float:
        """One update at ``factor`` times the stage's learning rate; returns the learning rate."""

    @abstractmethod
    def snapshot(self) -> dict[str, Tensor]:
        """Copies of the values and buffers that the stage would end with now: averaged ones where it adopts its EMA."""

    @abstractmethod
    def restore(self, values: Mapping[str, Tensor]) -> None:
        """Put a :meth:`snapshot` back; moments are dropped and an average starts again from it."""

    @abstractmethod
    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(trained values and every buffer, moments of optimiser and EMA), whole, for a checkpoint."""

    @abstractmethod
    def load(self, values: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`state`."""


@dataclass(frozen=True)
class SavedStep:
    """A checkpoint of a running stage: tensors and JSON facts as they were saved."""

    step: int
    model: Mapping[str, Tensor]
    trainer: Mapping[str, Tensor]
    facts: Mapping[str, Any]


class StageCheckpoints(ABC):
    """Checkpoints of the running stage: written whole or not at all, verified when read."""

    @abstractmethod
    def latest(self) -> SavedStep | None:
        """The newest one of this stage, if it was interrupted: random state, clock and log are set back to it. Without
        one the log is cut back to the stage's beginning."""

    @abstractmethod
    def save(
        self, step: int, *, model: Mapping[str, Tensor], trainer: Mapping[str, Tensor], facts: Mapping[str, Any]
    ) -> None:
        """Save; random state, clock and the position of the log are added by the engine."""


class StageContext(ABC):
    """What a stage kind may use.

    Attributes:
        name: of the stage.
        options: validated by the kind's ``Options``.
        settings: the stage's configuration (``xarch.config.schema.Stage``).
        steps: optimiser steps of the plan.
        sites: names of the chosen sites of a local stage.
        seed: of this stage.
        student: what is trained.
        teacher: what the student comes from; None with ``teacher: none``.
        teachers: further teachers by name; ``ema`` and ``self`` among them where the stage uses them.
        data: facts of the data set.
        device: where it runs.
        processes: how many processes run this stage together, and which this is: ``processes.world``, ``.rank``,
            ``.main``, ``.sum(tensor)``, ``.any(flag)``, ``.barrier()``.
        checkpoints: of this stage.
        rate: the learning rate's schedule, ``xarch.optim.LearningRate``: ``rate.factor(step, steps)`` on the peak.
        clock: seconds of training without what is measured in between, ``clock.spent.seconds``; it goes on after a
            resume.
        retry: whether a step whose numbers are not finite is to be tried again (``runtime.on_nan``).
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
        """The stage's matches, built once."""

    @abstractmethod
    def trainable(self) -> StageTrainable:
        """What the stage trains, built once; everything else is frozen and stays in eval mode."""

    @abstractmethod
    def batches(self) -> BatchStream:
        """The stage's training batches, on the run's device, before batch steps."""

    @abstractmethod
    def prepare(self, batch: Batch, step: int, progress: float | None = None) -> Batch:
        """A training batch after the stage's batch steps at this step; ``progress`` as in ``StageMatches.backward``, by
        default the share of steps done."""

    @abstractmethod
    def run_teacher(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        """Push taps of the teacher into ``sink`` in forward order, without gradients, from the cache where there is
        one."""

    @abstractmethod
    def validation(self, samples: int) -> list[Batch]:
        """Fixed batches of the validation split, after batch steps (``training=False``)."""

    @abstractmethod
    def calibration(self, samples: int) -> list[Batch]:
        """Fixed batches of the calibration split, for tables and ranges."""

    @abstractmethod
    def evaluate(
        self, samples: int | None = None, *, metric: str | None = None, split: str = "validation"
    ) -> Evaluation:
        """The run's metric, or another one, of the student as the stage would leave it now; changes neither weights,
        buffers nor random state.

        Raises:
            PlanError: there is no metric.
        """

    @abstractmethod
    def log(self, step: int, **metrics: float) -> None:
        """Write one line of ``metrics.jsonl`` and show it."""

    @abstractmethod
    def step_done(self, step: int, steps: int, figures: Mapping[str, float], *, read: int, units: int) -> None:
        """Tell that an optimiser step is done: its line in ``metrics.jsonl`` (every ``log_every`` steps, and the last),
        the display, hooks, and a point of the quality curve where one is due.

        Args:
            step, steps: optimiser steps done, and of the stage as far as is known.
            figures: of the step.
            read, units: units of the step's batch, and of the stage so far.
        """

    @abstractmethod
    def stopping(self) -> bool:
        """Whether somebody asked the run to stop: save a checkpoint, then :meth:`progress` ends the stage."""

    @abstractmethod
    def progress(self, done: int, total: int, message: str = "") -> None:
        """Report progress inside the stage; also the place where a pending interrupt is honoured."""

    @abstractmethod
    def say(self, text: str) -> None:
        """One line for a person and the log."""

    @abstractmethod
    def solver(self, site: str) -> Any:
        """The target's closed-form solver for ``site``."""


@dataclass(frozen=True)
class StageRequest:
    """What a kind is asked while planning.

    Attributes:
        options: validated.
        settings: the stage's configuration.
        units_per_sample: budget units of one sample.
        budget: units that ``share``, ``units`` or ``epochs`` give; None if the stage says none of them.
        sites: names of the chosen sites.
    """

    options: Any
    settings: Any
    units_per_sample: int
    budget: int | None
    sites: Sequence[str]


class StageKind(ABC):
    """Registered by ``registry.stage``; ``gradient`` and ``closed_form`` come with xarch and use nothing else.

    Class attributes:
        Options: its options.
        trains: whether it optimises matches: then ``matches`` and ``trains`` are needed, otherwise refused.
        solves: whether it uses the target's solvers (``StageContext.solver``): then the stage's options are those of
            ``TargetAdapter.solver_options``.
        resumes: whether it saves checkpoints of its own; without, an interrupted stage starts again from its
            beginning, so it should take minutes.
    """

    Options: ClassVar[type[BaseModel]] = Options
    trains: ClassVar[bool] = False
    solves: ClassVar[bool] = False
    resumes: ClassVar[bool] = False

    @abstractmethod
    def run(self, context: StageContext) -> StageOutcome:
        """Do the work of the stage on ``context.student``."""

    def units(self, request: StageRequest) -> int:
        """How many units it reads, for the plan; by default the budget it was given, or none."""
        return request.budget or 0

    def work(self, request: StageRequest, *, student: float, teacher: float) -> float:
        """Multiply-adds for each unit it reads, for the plan's estimate of time; of a kind that trains the plan knows
        the steps itself.

        Args:
            student, teacher: those of a forward pass; by default one of each.
        """
        return student + teacher
