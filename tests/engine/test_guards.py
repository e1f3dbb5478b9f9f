"""NaN and infinity end a run with the name of what has them first, wherever they come from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.engine import lab
from xarch import Evaluation, StageOutcome
from xarch.engine.guards import FiniteValues, all_finite, first_nonfinite_tensor
from xarch.errors import DivergedError

NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [NAN, INFINITE, -INFINITE])
def test_one_bad_number_is_seen_in_every_precision(dtype: torch.dtype, bad: float) -> None:
    values = torch.full((3, 5), 60000.0).to(dtype)
    assert all_finite(values)
    values[2, 4] = bad
    assert not all_finite(values)


def test_large_and_opposite_numbers_are_finite() -> None:
    """Their sum is not, or hides what cancels."""
    assert all_finite(torch.full((4,), 3e38))
    assert not all_finite(torch.tensor([INFINITE, -INFINITE]))
    assert all_finite(torch.ones(3, dtype=torch.int64))
    assert all_finite(torch.empty(3, device="meta"))
    assert first_nonfinite_tensor([("a", torch.ones(2)), ("b", torch.tensor(NAN)), ("c", torch.tensor(NAN))]) == "b"


class Watched:
    """A model of which only the weights are asked for."""

    def __init__(self, *weights: float) -> None:
        self.module = nn.Linear(1, 1)
        with torch.no_grad():
            for parameter, value in zip(self.module.parameters(), weights, strict=False):
                parameter.fill_(value)


def test_a_value_on_the_cpu_is_checked_before_it_is_used() -> None:
    used: list[str] = []
    values = FiniteValues(lambda name, value: used.append(name), "the teacher", Watched(NAN))
    values("fine", torch.ones(2))
    with pytest.raises(DivergedError, match=r"the teacher gives .* tap bad \(weight weight holds"):
        values("bad", torch.tensor([1.0, NAN]))
    assert used == ["fine"]


def test_a_value_elsewhere_is_checked_at_the_end_and_explains_errors_before() -> None:
    def values() -> FiniteValues:
        made = FiniteValues(lambda name, value: None, "the teacher", Watched())
        made._waiting += [("fine", torch.tensor(1.0)), ("bad", torch.tensor(NAN, dtype=torch.float64))]
        return made

    with pytest.raises(DivergedError, match=r"tap bad \(all its weights are finite\)"), values().checked():
        pass
    with pytest.raises(DivergedError, match="tap bad"), values().checked():
        raise RuntimeError("not positive-definite")


FIT = {"kind": "closed_form", "trains": {}, "units": 32, "batch": 4, "scope": "local"}
PULL = {"matches": {"end": lab.LAST}}


@pytest.fixture
def stack() -> Any:
    """The plugin of the stack of layers."""
    lab.registry()
    return sys.modules["xarch_plugin_file_stack_plugin"]


@pytest.mark.parametrize("weight", ["0.0.weight", "1.0.bias", "2.0.weight"])
@pytest.mark.parametrize("value", [NAN, -INFINITE])
def test_a_weight_of_the_teacher_is_named(
    weight: str, value: float, stack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = stack.StackTeacher.__init__

    def damaged(self: Any, facts: Any) -> None:
        build(self, facts)
        self.module.get_parameter(weight).view(-1)[3] = value

    monkeypatch.setattr(stack.StackTeacher, "__init__", damaged)
    with pytest.raises(DivergedError, match=rf"the teacher stack:3 holds .*first non-finite: {weight}\n"):
        lab.run(tmp_path, PULL)
    assert '"failed"' in (tmp_path / "run" / "status.json").read_text()


@pytest.mark.parametrize("stage", [FIT, PULL], ids=["closed form", "gradient"])
def test_a_tap_of_the_teacher_is_named(
    stage: dict[str, Any], stack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = stack.StackTeacher.run

    def overflow(self: Any, batch: Any, wanted: Any, sink: Any) -> None:
        walk(self, batch, wanted, lambda name, value: sink(name, value / 0 if name == "layers.2.output" else value))

    monkeypatch.setattr(stack.StackTeacher, "run", overflow)
    with pytest.raises(DivergedError, match=r"mse of the student is inf; .* tap layers.2.output of the teacher"):
        lab.run(tmp_path / "measured", stage)
    figures = Evaluation("mse", False, "squared value", {"mse": 0.0}, {"mse": 0.0})
    monkeypatch.setattr(stack.StackMetric, "evaluate", lambda self, request: figures)
    with pytest.raises(DivergedError, match=r"the teacher gives .* tap layers.2.output \(all its weights"):
        lab.run(tmp_path / "trained", stage)


def test_a_figure_of_a_metric_is_named_with_its_model(
    stack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(self: Any, request: Any) -> Evaluation:
        return Evaluation("mse", False, "squared value", {"mse": 0.0}, {"mse": NAN})

    monkeypatch.setattr(stack.StackMetric, "evaluate", evaluate)
    with pytest.raises(DivergedError, match=r"mse of the student is nan; first non-finite: the metric"):
        lab.run(tmp_path, PULL)


@pytest.mark.parametrize(("harm", "said"), [("figure", "fit is not a number"), ("weights", "non-finite: layers.1.u")])
def test_a_stage_that_fits_nothing_leaves_nothing(
    harm: str, said: str, stack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(self: Any, context: Any) -> StageOutcome:
        if harm == "weights":
            context.student.module.layers[1].u.data[0] = NAN
        return StageOutcome(metrics={"fit": NAN if harm == "figure" else 0.0})

    monkeypatch.setattr(stack.Nothing, "run", run)
    with pytest.raises(DivergedError, match=said):
        lab.run(tmp_path, {"kind": "nothing", "units": 0, "trains": {}, "scope": "local"})
    assert not (tmp_path / "run" / "student").exists()
    assert not list((tmp_path / "run").glob("stages/*/checkpoints/step-*"))
