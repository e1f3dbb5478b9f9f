"""The plan and the engine give one answer: what trains, what couples a batch, and which models batch steps run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.engine.lab import LAST, planned, registry, run
from xarch.errors import OutOfMemoryError, PlanError, PluginError, UsageError
from xarch.matching.coupling import cuttable


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
    ("stage", "said"),
    [
        ({"optimiser": {"algorithm": "adam"}}, r"stages\.s\.optimiser\.algorithm: unknown optimiser 'adam'"),
        ({"optimiser": {"schedule": "cosin"}}, r"stages\.s\.optimiser\.schedule: unknown schedule 'cosin'"),
        ({"optimiser": {"wrap": {"sma": {}}}}, r"stages\.s\.optimiser\.wrap: unknown optimiser wrapper 'sma'"),
        ({"batch": {"size": 8, "steps": {"mixp": {}}}}, r"stages\.s\.batch\.steps: unknown batch step 'mixp'"),
        ({"kind": "gradeint"}, r"stages\.s\.kind: unknown stage kind 'gradeint'"),
        ({"matches": {"m": {**LAST, "objective": "sen"}}}, r"matches\.m\.objective: unknown objective 'sen'"),
        ({"matches": {"m": {**LAST, "through": "lne"}}}, r"matches\.m\.through: unknown connector 'lne'"),
        ({"matches": {"m": {**LAST, "teacher": "twn:same"}}}, r"names the model 'twn'"),
        ({"phases": [{"from": 0.5, "set": {"matches.m.options.x": 1}}]}, r"phases\[0\]: .*m\.options\.x: unknown key"),
    ],
)
def test_a_misspelt_name_is_shown_where_it_stands(stage: dict[str, Any], said: str) -> None:
    """ "unknown objective 'mes'" did not say which of twenty matches it was."""
    with pytest.raises(UsageError, match=said) as e:
        planned({"matches": {"m": LAST}, **stage})
    assert "random, random" not in str(e.value.hint)


def test_a_stage_is_not_validated_by_a_metric_of_another_family() -> None:
    stage = {"matches": {"m": LAST}, "validation": {"metric": "perplexity"}}
    with pytest.raises(PlanError, match=r"stages\.s\.validation\.metric: 'perplexity' is for decoder"):
        planned(stage)


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


def test_a_figure_that_does_not_exist_ends_the_run_before_its_first_stage(tmp_path: Path) -> None:
    """A misspelt figure of the third stage was found when the third stage began."""
    stage = {"matches": {"m": LAST}, "validation": {"metric": "msee"}}
    with pytest.raises(UsageError, match=r"stages\.s\.validation\.metric: there is no figure 'msee'") as e:
        run(tmp_path, stage)
    assert "mse" in str(e.value.hint)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_statistics_of_the_batch_alone_couple_it_too() -> None:
    """BatchNorm without running statistics was cut into micro-batches, frozen or not."""
    target = registry().create("target", "normed")
    facts = registry().create("source", "stack").describe("3", None).facts
    student = target.build(facts, None, None, device="cpu")
    student.module.norm = nn.BatchNorm1d(8, track_running_stats=False)
    layers = student.param_groups()["layers"]
    assert student.couples_batch
    assert cuttable(student, layers, []) == "the student's module norm computes statistics over the batch"
    student.module.norm = nn.BatchNorm1d(8)
    assert cuttable(student, layers, []) is None


def test_teachers_without_any_weight_cannot_be_averaged() -> None:
    """It was an empty list in the first step."""
    teachers = {"a": {"ref": "stack:3", "weight": 0.0}, "b": {"ref": "random", "weight": 0.0}}
    match = {"student": "layers.2.output", "objective": "kl", "teacher": "*:layers.2.output"}
    with pytest.raises(PlanError, match=r"matches\.m\.teacher: .* all have the weight 0"):
        planned({"matches": {"m": match}}, teachers=teachers)


def test_no_figure_is_required_of_an_average() -> None:
    with pytest.raises(UsageError, match=r"stages\.s\.requires: 'mean\.mse' is not SIDE\.FIGURE"):
        planned({"matches": {"m": LAST}, "requires": {"mean.mse": {"max": 1}}}, teachers={"mean": "ema"})


def test_a_stage_that_changed_nothing_is_not_shown_as_done(tmp_path: Path) -> None:
    """design §6: a stage whose matches had no weight was "✓"."""
    found = run(tmp_path, {"matches": {"m": {**LAST, "weight": 0.0}}})
    assert found.summary["undone"] == "it changed no tensor of the student"
    assert "↶ s" in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ("nothing", PluginError, r"steps\.faulty: it declares the tensor 'made' \(BLD\) and made nothing"),
        ("layout", PluginError, r"steps\.faulty: .* made a tensor of shape \[8, 8\]"),
        ("memory", OutOfMemoryError, "out of memory: planted"),
    ],
)
def test_a_faulty_batch_step_is_named(how: str, kind: type[Exception], said: str, tmp_path: Path) -> None:
    """It was a KeyError of plugin 'core', a shape error of an objective, and a crash with exit code 1."""
    stage = {"matches": {"m": LAST}, "batch": {"size": 8, "steps": {"faulty": {"how": how}}}}
    with pytest.raises(kind, match=said):
        run(tmp_path, stage)


def test_an_objective_without_a_loss_per_sample_is_named(tmp_path: Path) -> None:
    """The run ended with an error of torch.cat in plugin 'core'."""
    match = {"student": "layers.2.output", "objective": "mean"}
    with pytest.raises(PluginError, match=r"'mean'.*matches\.m: forward\(\) returned a loss of shape \[\]"):
        run(tmp_path, {"matches": {"m": match}})


@pytest.mark.parametrize("teacher", ["ema:same", "mean:layers.2.output"])
def test_an_average_that_no_stage_keeps_is_refused_by_the_plan(teacher: str) -> None:
    """It was found when the stage began."""
    match = {"student": "layers.2.output", "objective": "pull", "teacher": teacher}
    with pytest.raises(PlanError, match=r"stages\.s\.matches\.m reads the averaged student") as e:
        planned({"matches": {"m": match}}, teachers={"mean": "ema"})
    assert "stages.s.ema" in str(e.value.hint)
    planned({"matches": {"m": match}, "ema": 0.9}, teachers={"mean": "ema"})
