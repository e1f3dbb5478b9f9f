"""The plan and the engine give one answer: what trains, what couples a batch, and which models batch steps run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine.lab import LAST, planned, run
from xarch.errors import PlanError


def test_a_group_that_trains_later_couples_the_batch_from_the_start() -> None:
    """The plan looked at learning rates of the first phase only, and the engine refused what it had planned."""
    stage = {
        "matches": {"m": LAST},
        "micro_batch": 2,
        "trains": {"all": {"lr": 0.0}, "layers": {}},
        "phases": [{"from": 0.5, "set": {"trains.all.lr": 1.0}}],
    }
    with pytest.raises(PlanError, match="cannot be split into 2"):
        planned(stage, student__target="normed")


def test_a_parameter_of_two_groups_counts_once() -> None:
    stage = planned({"matches": {"m": LAST}, "trains": {"all": {}, "biases": {"lr": 2.0}}}).stages[0]
    assert stage.trains == {"all": 3 * 2 * 8 * 2, "biases": 3 * 8}


def test_an_option_of_a_phase_may_couple_the_batch(tmp_path: Path) -> None:
    """A phase that set such an option had its batches cut without a word."""
    match = {"student": "layers.2.output", "objective": "hungry"}
    phases = [{"from": 0.5, "set": {"matches.m.options.coupled": True}}]
    stage: dict[str, Any] = {"matches": {"m": match}, "phases": phases}
    with pytest.raises(PlanError, match=r"micro_batch.*Hungry"):
        planned({**stage, "micro_batch": 2})
    assert "Hungry" in planned(stage).stages[0].coupled
    assert run(tmp_path, stage).rows[-1]["monitor.rows.m"] == 8


def test_teachers_that_a_map_leaves_out_are_left_out(tmp_path: Path) -> None:
    """``*:TAP`` with a map that skips a layer compared that layer with nothing."""
    match = {"student": "layers.{j}.output", "teacher": "*:layers.{i}.output", "map": {1: 2}, "objective": "spread"}
    stage = planned({"matches": {"m": match}}, teachers={"twin": {"ref": "stack:3"}}).stages[0]
    assert [m.student for m in stage.matches] == [["layers.1.output"]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"teacher": "nobody", "tap": "layers.2.output"}, r"teacher 'nobody', which this run does not have"),
        ({"teacher": "mean", "tap": "layers.2.output"}, r"teacher 'mean', which this run does not have"),
        ({"tap": "layers.9.output"}, r"the teacher has no tap 'layers\.9\.output'"),
    ],
)
def test_what_a_batch_step_runs_is_proven_by_the_plan(options: dict[str, Any], said: str) -> None:
    """It was found while running, as a KeyError of plugin 'core'."""
    step = {"teacher-labels": {"form": "value", "layout": "BLD", **options}}
    with pytest.raises(PlanError, match=r"stages\.s\.batch\.steps\.teacher-labels: .*" + said):
        planned({"matches": {"m": LAST}, "batch": {"size": 8, "steps": step}}, teachers={"mean": {"ref": "ema"}})
