"""Evaluation of a finished student against its teacher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from xarch.contracts.batch import Batch
from xarch.contracts.model import TapModel


@dataclass
class Evaluation:
    """What ``eval.json`` holds.

    ``teacher``, ``student`` and each baseline map metric names to numbers; the headline metric is among them.
    ``gated`` are the numbers a quality gate may name (ratios, KL, agreement).
    """

    metric: str
    higher_is_better: bool
    unit: str
    teacher: dict[str, float]
    student: dict[str, float]
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    gated: dict[str, float] = field(default_factory=dict)
    n: int = 0
    samples: list[dict[str, Any]] = field(default_factory=list)
    """A few inputs and both outputs for a person to read, e.g. generated text."""


class Metric(ABC):
    """Evaluates models of one family.

    A run keeps one object for all its evaluations, so it may remember what the teacher made of a batch.
    """

    @abstractmethod
    def evaluate(
        self,
        teacher: TapModel,
        students: Mapping[str, TapModel],
        batches: Callable[[], Iterable[Batch]],
        *,
        processor: Any,
        progress: Callable[[int], None],
    ) -> Evaluation:
        """Compare on held-out batches. ``students`` has "student" and may have baselines under other names.

        ``progress`` is called with the units of each batch done.
        """
