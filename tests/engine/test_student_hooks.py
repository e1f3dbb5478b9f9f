"""Students that depend on the running stage (W15), and students that draw random numbers while memory runs out
(W22)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine import lab
from xarch.errors import PluginError
from xarch.run.deliver import Delivery

PULL = {"matches": {"end": {"student": "layers.2.output", "objective": "sabotage"}}, "batch": 4}


@pytest.fixture
def stack() -> Any:
    """The plugin of the stack of layers."""
    lab.registry()
    return sys.modules["xarch_plugin_file_stack_plugin"]


@pytest.fixture
def told(stack: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the student is told, and at what times it is looked at: whether a stage is on."""
    seen: list[Any] = []
    evaluate, run = stack.StackMetric.evaluate, stack.StackStudent.run

    def begin(self: Any, stage: str, options: Any) -> None:
        self.stage = stage
        seen.append(("begin", stage, dict(options)))

    def end(self: Any, outcome: Any) -> None:
        self.stage = None
        seen.append(("end", "loss" in outcome.metrics))

    def measured(self: Any, request: Any) -> Any:
        seen.append(("measured", getattr(request.students["student"], "stage", None)))
        return evaluate(self, request)

    def trained(self: Any, batch: Any, wanted: Any, sink: Any) -> None:
        if self.module.training and batch["x"].device.type != "meta":
            assert self.stage == "s"
        run(self, batch, wanted, sink)

    monkeypatch.setattr(stack.StackStudent, "begin", begin)
    monkeypatch.setattr(stack.StackStudent, "end", end)
    monkeypatch.setattr(stack.StackMetric, "evaluate", measured)
    monkeypatch.setattr(stack.StackStudent, "run", trained)
    return seen


def test_w15_a_student_knows_the_stage_and_is_measured_without_one(told: list[Any], tmp_path: Path) -> None:
    """ "Before training" was measured with the random gates of a stage that had not begun."""
    lab.run(tmp_path, PULL, evaluate__baseline=True)
    assert told[:2] == [("measured", None)] * 2, "one sample to try the metric, and the figures before training"
    assert told[2:] == [("begin", "s", {}), ("end", True), ("measured", None)]


def test_w15_a_finished_stage_is_told_again_when_it_is_restored(
    told: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise ZeroDivisionError

    save = Delivery.save
    monkeypatch.setattr(Delivery, "save", stop)
    with pytest.raises(ZeroDivisionError):
        lab.run(tmp_path, PULL)
    monkeypatch.setattr(Delivery, "save", save)
    told.clear()
    lab.resume(tmp_path)
    assert told == [("begin", "s", {}), ("end", True), ("measured", None)]


def test_w15_an_error_of_a_hook_is_its_plugins(stack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(self: Any, stage: str, options: Any) -> None:
        raise LookupError(f"no gates for {stage}")

    monkeypatch.setattr(stack.StackStudent, "begin", begin)
    with pytest.raises(PluginError, match=r"target 'low', stage hooks: LookupError: no gates for s"):
        lab.run(tmp_path, PULL)


@pytest.mark.parametrize("draws", [True, False])
def test_w22_a_run_says_that_smaller_parts_draw_other_numbers(
    draws: bool, stack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stack.StackStudent.run

    def noisy(self: Any, batch: Any, wanted: Any, sink: Any) -> None:
        noise = draws and self.module.training
        run(self, batch, wanted, lambda name, v: sink(name, v + 0.1 * torch.randn_like(v) if noise else v))

    monkeypatch.setattr(stack.StackStudent, "run", noisy)
    monkeypatch.setenv("SABOTAGE", "oom@2")
    log = lab.run(tmp_path, PULL).log
    assert log.count("retrying with micro-batches of 2") == 1
    said = "stage s draws random numbers in its forward passes: micro-batches of 2 draw others than whole batches"
    assert log.count(said) == (1 if draws else 0)


def test_w22_without_a_shortage_nothing_is_said(stack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = stack.StackStudent.run
    noisy = lambda self, batch, wanted, sink: run(  # noqa: E731
        self, batch, wanted, lambda name, value: sink(name, torch.dropout(value, 0.1, self.module.training))
    )
    monkeypatch.setattr(stack.StackStudent, "run", noisy)
    assert "draws random numbers" not in lab.run(tmp_path, PULL).log
