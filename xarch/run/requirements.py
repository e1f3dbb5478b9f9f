"""What a stage requires before it starts: figures of teachers or student on the validation split."""

from __future__ import annotations

from collections.abc import Mapping

from xarch.config.schema import Limit
from xarch.contracts.metric import Evaluation
from xarch.contracts.model import Student, TapModel
from xarch.errors import PlanError
from xarch.planning.plan import PlannedStage
from xarch.run.evaluate import Evaluator
from xarch.run.sides import RunSides

STUDENT = "student"
TEACHER = "teacher"


def check_requirements(planned: PlannedStage, student: Student, sides: RunSides, evaluator: Evaluator) -> None:
    """Whether a stage may start.

    Raises:
        PlanError: a figure is not what it has to be, or is not measured at all.
    """
    requires: Mapping[str, Limit] = planned.config.requires
    names = {key.partition(".")[0] for key in requires}
    models: dict[str, TapModel] = {STUDENT: student}
    models |= {name: sides.teachers[name] for name in sorted(names) if name in sides.teachers}
    found: dict[str | None, Evaluation | None] = {}
    for key, limit in requires.items():
        side, _, figure = key.partition(".")
        where = f"stages.{planned.name}.requires.{key}"
        seen = None
        # The run's metric knows most figures; another one is asked for those that carry its name.
        for metric in (None, figure):
            if metric not in found:
                known = metric is None or any(s.name == metric for s in evaluator.registry.specs("metric"))
                measured = evaluator.measure(models, metric=metric, split="validation", quiet=True) if known else None
                found[metric] = measured
            seen = _figures(found[metric], side).get(figure)
            if seen is not None:
                break
        if seen is None:
            first = found[None]
            raise PlanError(
                f"{where}: no metric gives {figure!r} of {side}",
                f"figures: {', '.join(sorted(_figures(first, side))) or 'none'}",
            )
        if (limit.min is not None and not seen >= limit.min) or (limit.max is not None and not seen <= limit.max):
            wanted = " and ".join(
                text
                for text, bound in (
                    (f"at least {limit.min:g}" if limit.min is not None else "", limit.min),
                    (f"at most {limit.max:g}" if limit.max is not None else "", limit.max),
                )
                if bound is not None
            )
            raise PlanError(
                f"{where}: {figure} of {side} is {seen:.5g} on the validation data, wanted {wanted}",
                "use a better model, or change the limit with `--set`",
            )


def _figures(found: Evaluation | None, side: str) -> Mapping[str, float]:
    if found is None:
        return {}
    if side == STUDENT:
        return found.student
    return found.teacher if side == TEACHER else found.baselines.get(side, {})
