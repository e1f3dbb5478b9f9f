"""Batch step: changes a batch before teacher and student read it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pydantic import BaseModel

from xarch.contracts.batch import Batch
from xarch.contracts.model import Student, Teacher
from xarch.contracts.options import Options


@dataclass(frozen=True)
class StepContext:
    """Context in which a batch step runs.

    Attributes:
        student: in eval mode, without gradients.
        teacher, teachers: the main teacher, as the target views it (None with ``teacher: none``), and the others by
            name.
        step, steps: optimiser steps completed, and total of the stage.
        at: ``progress``, if it is not their quotient.
        training: False for validation batches, which use a separate generator.
        generator: random number generator of this step, derived from the run's seed and the step number, so it is the
            same after a resume and for any number of processes.
        figures: figures of the last step by name, e.g. "loss" and "match.kd".
        log: ``log(name=value, …)`` adds figures to the step's row.
    """

    student: Student
    teacher: Teacher | None
    teachers: Mapping[str, Any] = field(default_factory=dict)
    step: int = 0
    steps: int = 1
    training: bool = True
    generator: torch.Generator = field(default_factory=torch.Generator)
    figures: Mapping[str, float] = field(default_factory=dict)
    log: Callable[..., None] = lambda **figures: None
    at: float | None = None

    @property
    def progress(self) -> float:
        """Completed share of the stage's schedules, 0 to 1, also in a stage that ends early."""
        return min(self.step / max(self.steps, 1), 1.0) if self.at is None else self.at


class BatchStep(ABC):
    """Base of batch steps, registered with ``registry.batch_step``; a stage lists them in order under ``batch.steps``.

    Class attributes:
        Options: options of the step.
    """

    Options: ClassVar[type[BaseModel]] = Options

    def __init__(self, options: BaseModel, data: Mapping[str, Any]) -> None:
        """``data`` are the facts of the data set, see ``DataInfo.facts``."""
        self.options: Any = options
        self.data = data

    def reads(self) -> Mapping[str, str]:
        """Return batch key -> layout ("*" for any) of the tensors it needs; the plan checks that they exist."""
        return {}

    def makes(self, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return batch key -> ``TensorInfo`` of the tensors it adds or changes, given those that exist before it."""
        return {}

    def taps(self) -> Mapping[str, Collection[str]]:
        """Return model -> taps that it reads: "student", "" for the main teacher, or a further teacher's name; the plan
        checks that they exist."""
        return {}

    def work(self, sample: Mapping[str, Any], *, student: float, teacher: float) -> float:
        """Return the multiply-adds per budget unit, for the plan; ``student`` and ``teacher`` are those of a forward
        pass."""
        return 0.0

    @abstractmethod
    def __call__(self, batch: Batch, context: StepContext) -> Batch:
        """Return the changed batch; the number of samples may change. Runs on the whole batch without gradients."""
