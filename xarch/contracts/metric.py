"""Evaluation of a finished student against its teacher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import BaseModel

from xarch.contracts.batch import Batch
from xarch.contracts.model import TapModel
from xarch.contracts.options import Options
from xarch.errors import PluginError


@dataclass
class Evaluation:
    """Content of ``eval.json``. A metric puts every model except teacher and student into ``baselines`` under its name;
    the engine moves the student's operating points to ``variants`` and adds the figures of exported files by profile as
    ``exports``.

    ``unit`` is that of the headline metric, ``units`` those of further figures ("kl": "nats/token"). ``directions``
    says whether a higher value of a further figure is better; a stage keeps weights only by the headline and by these.
    ``teacher``, ``student`` and each baseline map metric names to numbers; they include the headline metric, and every
    model has the same names. ``teacher`` is empty without a teacher. ``gated`` holds numbers that a quality gate may
    use besides the student's (ratios, KL, agreement). The engine adds ``controls``, what those baselines keep that are
    controls (see :class:`xarch.Control`), and to ``gated`` the student's figures divided by the best control's.
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
    controls: dict[str, dict[str, Any]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    directions: dict[str, bool] = field(default_factory=dict)
    n: int = 0
    samples: list[dict[str, Any]] = field(default_factory=list)
    """A few inputs with both outputs for inspection: texts, and images as PNG files in the run folder."""

    def of(self, model: str) -> Mapping[str, float]:
        """Return the figures of "student" (with those that compare it with its teacher), "teacher" or a baseline; none
        if it was not evaluated."""
        if model == "student":
            return {**self.gated, **self.student}
        return self.teacher if model == "teacher" else self.baselines.get(model, {})

    def higher(self, figure: str) -> bool:
        """Return whether a higher value of a figure is better.

        Raises:
            PluginError: it is not the headline, and ``directions`` does not list it.
        """
        if figure == self.metric:
            return self.higher_is_better
        if figure not in self.directions:
            known = ", ".join([self.metric, *sorted(self.directions)])
            raise PluginError(
                f"metric {self.metric!r} does not say whether a higher {figure!r} is better",
                f"keep weights by {known}, or by the loss; its author can add {figure!r} to Evaluation.directions",
            )
        return self.directions[figure]


def named_figure(
    name: str, model: str, measured: Callable[[str | None], Evaluation | None], asked: Sequence[str | None]
) -> tuple[float, Evaluation, str | None] | None:
    """Find a figure: of the run's metric, or the headline of the metric of that name.

    Args:
        model: "student", "teacher" or a baseline.
        measured: metric -> its evaluation; None as the metric is the run's, as the result that there is none.
        asked: metrics to ask in order: None, then ``name``; or only the one that gave the figure before.

    Returns:
        The figure, its evaluation and the metric that gave it; None if none does.
    """
    for metric in asked:
        found = measured(metric)
        figures = {} if found is None else found.of(model)
        key = name if name in figures or found is None or metric is None else found.metric
        if found is not None and key in figures:
            return figures[key], found, metric
    return None


@dataclass(frozen=True)
class EvaluationRequest:
    """Arguments of a metric, as one object so that new fields break no metric.

    Attributes:
        teacher: None where there is none.
        students: "student" and other models evaluated in the same pass (baselines, variants, exported files).
        batches: returns a fresh iterator over the held-out batches, whole and with all views; ``Batch.seen_by`` selects
            the views of one side.
        processor: tokenizer or image processor of the student.
        data: facts of the data set.
        options: validated by the metric's ``Options``.
        progress: called with the units of each completed batch.
        wants_samples: whether anybody will see ``Evaluation.samples``. Making them may take as long as the figures, and
            a trial, a curve and exported files show none.
    """

    teacher: TapModel | None
    students: Mapping[str, TapModel]
    batches: Callable[[], Iterable[Batch]]
    processor: Any = None
    data: Mapping[str, Any] = field(default_factory=dict)
    options: Any = None
    progress: Callable[[int], None] = lambda units: None
    wants_samples: bool = True


class Metric(ABC):
    """Evaluates models of the families it is registered for. A run uses one instance for all its evaluations, so it may
    cache the teacher's outputs.
    """

    Options: ClassVar[type[BaseModel]] = Options
    figures: ClassVar[tuple[str, ...]] = ()
    """Names of all figures that it may give, those that only gates use included; ``*`` stands for what depends on the
    data ("recall.*"). With them the plan refuses figures that nothing measures; without them it cannot."""

    @abstractmethod
    def evaluate(self, request: EvaluationRequest) -> Evaluation:
        """Compare on held-out batches."""
