"""Controls in an evaluation: the student's figures divided by those of the best control."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from xarch import Control
from xarch.config.schema import RunConfig
from xarch.contracts.metric import Evaluation
from xarch.run.controls import compare
from xarch.run.evaluate import Evaluator
from xarch.run.gates import gateable


def evaluation() -> Evaluation:
    return Evaluation(
        metric="loss",
        higher_is_better=False,
        unit="nats",
        teacher={"loss": 1.0},
        student={"loss": 3.0, "hits": 0.6, "size": 7.0},
        baselines={
            "short": {"loss": 4.0, "hits": 0.5, "size": 1.0},
            "long": {"loss": 2.0, "hits": 0.8, "size": 2.0},
            "before training": {"loss": 1.0, "hits": 0.9, "size": 3.0},
        },
        gated={"loss": 3.0},
        directions={"hits": True},
    )


def test_the_best_control_counts_in_the_direction_of_each_figure():
    found = evaluation()
    controls = {"short": Control(None, {"bytes": 1}), "long": Control(None, {"bytes": 2}), "failed": Control(None)}
    compare(found, controls)
    assert found.gated == {
        "loss_to_control": pytest.approx(1.5),
        "hits_to_control": pytest.approx(0.75),
        "loss": 3.0,
    }
    assert next(iter(found.gated)) == "loss_to_control"
    assert found.controls == {"short": {"bytes": 1}, "long": {"bytes": 2}}
    assert gateable(vars(found))["loss_to_control"] == pytest.approx(1.5)


def test_without_controls_nothing_is_compared():
    found = evaluation()
    compare(found, {})
    assert found.gated == {"loss": 3.0}
    assert found.controls == {}


def test_the_trial_of_a_metric_measures_one_control():
    """It costs a pass over a sample for every model, and proves gates on figures that all controls have."""

    class Trial(Evaluator):
        def __init__(self) -> None:
            self.config = RunConfig(gates={"loss_to_control": {"max": 2.0}})
            self.plan, self.ranks = SimpleNamespace(metric="loss"), SimpleNamespace(main=True)
            self.reporter = SimpleNamespace(phase=lambda *words: None)
            self.sides = SimpleNamespace(facts={})
            self.measured: list[list[str]] = []

        def _controls(self, student):
            return {"short": Control(None), "long": Control(None)}

        def measure(self, students, *args, **options):
            self.measured.append(list(students))
            found = evaluation()
            found.baselines = {name: found.baselines[name] for name in students if name != "student"}
            return found

    trial, student = Trial(), SimpleNamespace(variants=dict)
    trial.registry = SimpleNamespace(attributed=lambda what: nullcontext())
    trial.try_out(student)
    assert trial.measured == [["student", "short"]]


def test_a_perfect_control_leaves_no_ratio():
    found = evaluation()
    found.baselines["long"]["loss"] = 0.0
    compare(found, {"long": Control(None)})
    assert "loss_to_control" not in found.gated
    assert "hits_to_control" in found.gated


def test_what_a_metric_gives_is_left_as_it_is():
    """A metric may give the same units to every evaluation of a process, and eval.json depends on their order."""
    found, units = evaluation(), {"loss": "nats"}
    found.units = units
    compare(found, {"short": Control(None)})
    assert units == {"loss": "nats"}
    assert list(found.units) == ["loss", "loss_to_control", "hits_to_control"]
