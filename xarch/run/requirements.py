"""Requirements of a stage before it starts: figures of teachers or student on the validation split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from xarch.contracts.metric import Evaluation, named_figure
from xarch.contracts.model import Student, TapModel
from xarch.errors import PlanError
from xarch.planning.plan import PlannedStage
from xarch.run.evaluate import Evaluator
from xarch.run.sides import RunSides

STUDENT = "student"


def check_requirements(planned: PlannedStage, student: Student, sides: RunSides, evaluator: Evaluator) -> None:
    """Check that a stage may start.

    Raises:
        PlanError: a figure is outside its limits, or is not measured at all.
    """
    names = {key.partition(".")[0] for key in planned.config.requires}
    models: dict[str, TapModel] = {STUDENT: student}
    models |= {name: sides.teachers[name] for name in sorted(names) if name in sides.teachers}
    measured = _Measured(evaluator, models)
    for key, limit in planned.config.requires.items():
        side, _, figure = key.partition(".")
        where = f"stages.{planned.name}.requires.{key}"
        seen = measured.figure(side, figure)
        if seen is None:
            raise PlanError(
                f"{where}: no metric measures {figure!r} of {side}",
                f"figures: {', '.join(sorted(measured.names(side))) or 'none'}",
            )
        low, high = limit.min, limit.max
        if (low is not None and not seen >= low) or (high is not None and not seen <= high):
            limits = [f"at least {low:g}"] if low is not None else []
            limits += [f"at most {high:g}"] if high is not None else []
            raise PlanError(
                f"{where}: {figure} of {side} is {seen:.5g} on the validation data, required {' and '.join(limits)}",
                f"use a better model, or change the limit: `--set stages.{planned.name}.requires.{key}=…`",
            )


@dataclass
class _Measured:
    """Figures of several models; each metric is evaluated once."""

    evaluator: Evaluator
    models: Mapping[str, TapModel]
    found: dict[str | None, Evaluation | None] = field(default_factory=dict)

    def by(self, metric: str | None) -> Evaluation | None:
        """Return the evaluation of a metric; None means the run's metric."""
        if metric is not None and not self.evaluator.registry.has("metric", metric):
            return None
        if metric not in self.found:
            self.found[metric] = self.evaluator.measure(self.models, metric=metric, split="validation", quiet=True)
        return self.found[metric]

    def figure(self, side: str, name: str) -> float | None:
        found = named_figure(name, side, self.by, (None, name))
        return None if found is None else found[0]

    def names(self, side: str) -> Mapping[str, float]:
        """Return the figures of the run's metric."""
        found = self.by(None)
        return {} if found is None else found.of(side)
