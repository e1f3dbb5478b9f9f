"""A batch step: what happens to a batch before teacher and student see it."""

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
    """The moment at which a batch step runs.

    Attributes:
        student: in eval mode, without gradients.
        teacher, teachers: the teacher the student comes from, as the target views it (None with ``teacher: none``),
            and the others by name.
        step, steps: optimiser steps done, and of the stage.
        at: ``progress``, where it is not their quotient.
        training: False while validation batches are made, which get a generator of their own.
        generator: random numbers of this step, from the run's seed and the step's number: the same after a resume and
            for any number of processes.
        figures: the last step's figures by name, e.g. "loss" and "match.kd".
        log: log(name=value, …) adds figures to the step's row.
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
        """Share of the stage that is done, 0 to 1: where its schedules stand, also in a stage that ends early."""
        return min(self.step / max(self.steps, 1), 1.0) if self.at is None else self.at


class BatchStep(ABC):
    """Registered by ``registry.batch_step``; a stage lists steps under ``batch.steps`` in their order.

    Class attributes:
        Options: its options.
    """

    Options: ClassVar[type[BaseModel]] = Options

    def __init__(self, options: BaseModel, data: Mapping[str, Any]) -> None:
        """``data`` are the facts of the data set, see ``DataInfo.facts``."""
        self.options: Any = options
        self.data = data

    def reads(self) -> Mapping[str, str]:
        """Batch key -> layout ("*" for any) of the tensors it needs; the plan proves that they are there."""
        return {}

    def makes(self, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        """Batch key -> ``TensorInfo`` of the tensors it adds or changes, given those that are there before it."""
        return {}

    def taps(self) -> Mapping[str, Collection[str]]:
        """Taps that it reads of models: "student", "" for the teacher the student comes from, or a further teacher's
        name; the plan proves that they are there."""
        return {}

    def work(self, sample: Mapping[str, Any], *, student: float, teacher: float) -> float:
        """Multiply-adds per budget unit, for the plan; ``student`` and ``teacher`` are those of a forward pass."""
        return 0.0

    @abstractmethod
    def __call__(self, batch: Batch, context: StepContext) -> Batch:
        """The changed batch; the number of samples may change. Runs without gradients on the whole batch."""
