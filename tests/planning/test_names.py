"""Names in a configuration that nothing reads: figures, keys, teachers, and samples that a split does not have."""

from __future__ import annotations

from typing import Any

import pytest

from tests.run.conftest import stack  # noqa: F401
from tests.run.stack_case import StackCase
from xarch.errors import PlanError, UsageError

LAST = {"student": "layers.2.output", "objective": "mse"}
DECLARING = """
class Declared(stack.StackMetric):
    figures = ("mse", "gain", "of.*")

class Counted(stack.NoiseData):
    def describe(self, request):
        return dataclasses.replace(super().describe(request), facts={"samples": {"validation": 5, "heldout": 6}})

@hookimpl
def xarch_register(registry):
    registry.metric("declared", load=f"{__name__}:Declared", accepts=["stack"])
    registry.data("counted", load=f"{__name__}:Counted")
"""


@pytest.fixture
def case(stack: StackCase) -> StackCase:  # noqa: F811
    stack.use("import dataclasses\n" + DECLARING)
    return stack


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        ({"requires": {"teacher.msee": {"max": 1}}}, {}, r"stages\.end\.requires\.teacher\.msee: no metric"),
        ({"validation": {"metric": "gian"}}, {}, r"stages\.end\.validation\.metric: no metric measures 'gian'"),
        ({}, {"gates": {"mze": {"max": 1}}}, r"gates\.mze: no such figure"),
        ({}, {"gates": {"variants.half.mze": {"max": 1}}}, r"gates\.variants\.half\.mze: no such figure"),
    ],
)
def test_a_figure_that_nothing_measures_is_a_plan_error(
    case: StackCase, stage: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        case.plan(evaluate__metric="declared", stages={"end": case.stage(**stage)}, **changes)
    assert "mse" in str(caught.value.hint), "known figures are named"


def test_declared_figures_and_names_of_metrics_are_accepted(case: StackCase) -> None:
    stage = case.stage(
        requires={"teacher.mse": {"max": 1}, "student.of.a": {"max": 1}, "student.gain": {"max": 1}},
        validation={"metric": "declared"},
    )
    case.plan(evaluate__metric="declared", stages={"end": stage}, gates={"of.x": {"max": 1}, "variants.h.mse": {}})


def test_teachers_that_nothing_reads_are_told(case: StackCase) -> None:
    teachers = {"old": {"ref": "stack:3", "weight": 0.5}, "idle": {"ref": "stack:3"}}
    stages = {"end": case.stage(matches={"m": {**LAST, "teacher": "old:layers.2.output"}})}
    told = case.plan(teachers=teachers, stages=stages).warnings
    assert [text.partition(" ")[0] for text in told] == ["teachers.old.weight", "teachers.idle"]
    needed = {"end": {**stages["end"], "requires": {"idle.mse": {"max": 9}}}}
    assert len(case.plan(teachers=teachers, stages=needed).warnings) == 1


def test_more_samples_than_a_split_has_are_told(case: StackCase) -> None:
    stages = {"end": case.stage(validation={"samples": 9}), "more": case.stage(validation={"samples": 5})}
    told = case.plan(data__ref="counted:8", stages=stages, evaluate__samples=7).warnings
    assert told == [
        "stages.end.validation.samples is 9, but the validation split has 5 samples: all of them are measured",
        "evaluate.samples is 7, but the heldout split has 6 samples: all of them are measured",
    ]


def _nested(path: str) -> dict[str, Any]:
    found: Any = 1
    for key in reversed(path.split(".")):
        found = {key: found}
    return dict(found)


@pytest.mark.parametrize(
    "path",
    [
        "options.nope",
        "sample.nope",
        "optimiser.options.nope",
        "optimiser.schedule.nope",
        "optimiser.wrap.sam.nope",
        "matches.m.options.nope",
        "matches.m.through.options.nope",
        "batch.steps.repeat.nope",
    ],
)
def test_every_untyped_setting_of_a_stage_refuses_unknown_keys(case: StackCase, path: str) -> None:
    stage = case.stage(matches={"m": dict(LAST)})
    for key, value in _nested(path).items():
        stage[key] = _merged(stage.get(key), value)
    if "through" in path:
        stage["matches"]["m"]["through"]["connector"] = "linear"
    if "schedule" in path:
        stage["optimiser"]["schedule"]["name"] = "cosine"
    with pytest.raises(UsageError, match=r"stages\.end\." + path):
        case.plan(stages={"end": stage})


@pytest.mark.parametrize(
    "key",
    [
        "teacher_options",
        "student__options",
        "data__options",
        "data__sample",
        "evaluate__sample",
        "evaluate__metric_options",
        "export__options",
    ],
)
def test_every_untyped_setting_of_a_run_refuses_unknown_keys(case: StackCase, key: str) -> None:
    with pytest.raises(UsageError, match=key.replace("__", r"\.") + r"\.nope"):
        case.plan(**{key: {"nope": 1}}, export__profiles=["cpu"])


def test_errors_of_connectors_name_the_stage(case: StackCase) -> None:
    match = {**LAST, "through": "conv1x1"}
    with pytest.raises(PlanError, match=r"^stages\.end\.matches\.m\.through: conv1x1 requires"):
        case.plan(stages={"end": case.stage(matches={"m": match})})


def test_options_of_a_further_teacher_refuse_unknown_keys(case: StackCase) -> None:
    with pytest.raises(UsageError, match=r"teacher_options\.nope|teachers\.old\.options\.nope"):
        case.plan(teachers={"old": {"ref": "stack:3", "options": {"nope": 1}}})


def _merged(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
    return new
