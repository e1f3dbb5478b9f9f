"""Evaluation of a finished student against its teacher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import BaseModel

from xarch.contracts.batch import Batch
from xarch.contracts.model import TapModel
from xarch.contracts.options import Options


@dataclass
class Evaluation:
    """What ``eval.json`` holds. A metric puts every model but teacher and student into ``baselines`` under its name;
    the engine takes the student's operating points out into ``variants``, and adds the figures of exported files by
    profile as ``exports``.

    ``unit`` is that of the headline metric, ``units`` those of further figures ("kl": "nats/token").
    ``teacher``, ``student`` and each baseline map metric names to numbers; the headline metric is among them, and every
    model is judged by the same names. ``teacher`` is empty where there is none. ``gated`` are the numbers a quality
    gate may name besides those of the student (ratios, KL, agreement).
    """

    metric: str
    higher_is_better: bool
    unit: str
    teacher: dict[str, float]
    student: dict[str, float]
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    gated: dict[str, float] = field(default_factory=dict)
    variants: dict[str, dict[str, float]] = field(default_factory=dict)
    exports: dict[str, dict[str, float]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    n: int = 0
    samples: list[dict[str, Any]] = field(default_factory=list)
    """A few inputs and both outputs for a person to look at: texts, and pictures as PNG files of the run folder."""


@dataclass(frozen=True)
class EvaluationRequest:
    """What is asked of a metric; one object, so that later fields break no metric.

    Attributes:
        teacher: None where there is none.
        students: "student" and whatever else is judged in the same pass (baselines, variants, exported files).
        batches: makes the held-out batches anew at every call, whole, with all views; ``Batch.seen_by`` gives a side's.
        processor: tokenizer or image processor of the student.
        data: facts of the data set.
        options: validated by the metric's ``Options``.
        progress: called with the units of each batch done.
    """

    teacher: TapModel | None
    students: Mapping[str, TapModel]
    batches: Callable[[], Iterable[Batch]]
    processor: Any = None
    data: Mapping[str, Any] = field(default_factory=dict)
    options: Any = None
    progress: Callable[[int], None] = lambda units: None


class Metric(ABC):
    """Evaluates models of the families it is registered for.

    A run keeps one object for all its evaluations, so it may remember what the teacher made of a batch.
    """

    Options: ClassVar[type[BaseModel]] = Options

    @abstractmethod
    def evaluate(self, request: EvaluationRequest) -> Evaluation:
        """Compare on held-out batches."""
