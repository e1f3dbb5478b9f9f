"""A stage kind: one way of bringing the student closer to the teacher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from xarch.contracts.batch import Batch
from xarch.contracts.data import BatchStream
from xarch.contracts.model import Student, Teacher


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
        per_site: named per-site figures, e.g. ``{"relative_error": {"blocks.3": 0.4}}``; the report draws them.
        ended: if it ended early, where and why.
        training: seconds of its optimiser steps, ``seconds`` on the clock and ``cpu_seconds``.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    decisions: dict[str, Any] = field(default_factory=dict)
    per_site: dict[str, dict[str, float]] = field(default_factory=dict)
    ended: EarlyEnd | None = None
    training: dict[str, float] = field(default_factory=dict)


class StageContext(ABC):
    """What a stage kind may use. The engine implements it."""

    name: str
    options: Mapping[str, Any]
    seed: int
    student: Student
    teacher: Teacher

    @abstractmethod
    def batches(self) -> BatchStream:
        """The stage's training batches, on the run's device."""

    @abstractmethod
    def log(self, step: int, **metrics: float) -> None:
        """Write one line of ``metrics.jsonl`` and show it."""

    @abstractmethod
    def progress(self, done: int, total: int, message: str = "") -> None:
        """Report progress inside the stage; also the place where a pending interrupt is honoured."""

    @abstractmethod
    def solver(self, site: str) -> Any:
        """The target's closed-form solver for ``site``."""


class StageKind(ABC):
    """Registered by plugins under a name; ``gradient`` and ``closed_form`` come with xarch.

    A kind registered by a plugin is run as a whole: when it is interrupted it starts again from the stage's
    beginning, so it should take minutes, not hours.
    """

    Options: ClassVar[Any] = None

    @abstractmethod
    def run(self, context: StageContext) -> StageOutcome:
        """Do the work of the stage on ``context.student``."""

    def units(self, options: Mapping[str, Any]) -> int:
        """How many units (tokens, images) it reads, for the plan's estimate."""
        return 0


__all__ = ["Batch", "StageContext", "StageKind", "StageOutcome"]
