"""What a gradient stage does over its steps: measures, keeps, changes phases, resumes, and says whose fault it is."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.lab import LAST, Finished, planned, registry, resume, run
from xarch.engine.events import Reporter
from xarch.errors import Interrupted, PlanError, PluginError
from xarch.run.conversion import Conversion
from xarch.run.head import begin_run

EXIT = {**LAST, "through": "norm-exit"}


def same(one: Finished, other: Finished) -> bool:
    """Whether two students are the same bit for bit."""
    return all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())


@pytest.mark.parametrize("target", ["low", "normed"])
def test_measuring_leaves_no_trace(target: str, tmp_path: Path) -> None:
    """vision 2.3: a validation moved the statistics of an exit and drew from the training's random numbers."""
    stage = {"matches": {"m": EXIT}}
    plain = run(tmp_path / "a", stage, student__target=target)
    watched = run(
        tmp_path / "b",
        {**stage, "validation": {"samples": 16, "every": 2, "keep": "last"}},
        student__target=target,
        evaluate__curve={"samples": 4, "every": 3},
    )
    assert same(plain, watched)
    assert watched.rows == plain.rows
    assert len((watched.folder / "curve.jsonl").read_text().splitlines()) == 3


def test_a_validation_is_made_in_eval_mode(tmp_path: Path) -> None:
    """vision 2.3: an exit's dropout and statistics were those of training."""
    stage = {"matches": {"m": EXIT}, "optimiser": {"lr": 1e-12}}
    done = run(tmp_path, {**stage, "validation": {"samples": 16, "every": 1, "keep": "last"}})
    rows = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    found = [row["validation.loss"] for row in rows if "validation.loss" in row]
    # In train mode dropout would make each of them another; here only the running statistics move them.
    assert len(found) == 5
    assert max(abs(a - b) for a, b in itertools.pairwise(found[1:])) < 0.1 * found[0]


def test_a_stage_that_made_it_worse_is_undone_and_says_so(tmp_path: Path) -> None:
    worse = {"matches": {"m": LAST}, "optimiser": {"lr": 30.0, "clip": 0.0, "schedule": "constant", "warmup": 0.0}}
    done = run(tmp_path / "a", {**worse, "validation": {"samples": 8}})
    kept = run(tmp_path / "b", {**worse, "validation": {"samples": 8, "keep": "last"}})
    assert "got worse" in done.summary["undone"]
    assert done.summary["metrics"]["validation_kept_after"] == 0
    assert done.summary["changed_tensors"] == 0
    assert kept.summary["undone"] == ""
    assert kept.summary["changed_tensors"] > 0


@pytest.mark.parametrize("metric", [None, "mse", "stack_mse"])
def test_a_stage_ends_with_the_best_measured_weights(metric: str | None, tmp_path: Path) -> None:
    """vision 2.14: start or end was all there was, judged by the training loss."""
    stage = {
        "matches": {"m": LAST},
        "units": 8 * 4 * 20,
        "optimiser": {"lr": 0.5, "clip": 0.0, "schedule": "constant", "warmup": 0.0},
        "validation": {"samples": 8, "every": 1, "keep": "best", "metric": metric},
    }
    done = run(tmp_path, stage)
    rows = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    figure = metric or "loss"
    measured = {row["step"]: row[f"validation.{figure}"] for row in rows if f"validation.{figure}" in row}
    metrics = done.summary["metrics"]
    measured |= {0: metrics["validation_before"], 20: metrics["validation_after"]}
    assert metrics["validation_best"] == min(measured.values())
    assert metrics["validation_best_step"] == min(measured, key=lambda step: (measured[step], step)) < 20


def test_the_direction_is_that_of_the_figure_not_of_the_headline(tmp_path: Path) -> None:
    """By a share of agreement a stage kept its worst weights, because a lower perplexity is better."""
    stage = {"matches": {"m": LAST}, "validation": {"samples": 8, "every": 1, "keep": "best", "metric": "likeness"}}
    metrics = run(tmp_path, stage, evaluate__metric="two-ways").summary["metrics"]
    assert metrics["validation_best"] == metrics["validation_after"] > metrics["validation_before"]


def test_weights_are_not_kept_by_a_figure_of_unknown_direction(tmp_path: Path) -> None:
    stage = {"matches": {"m": LAST}, "validation": {"metric": "unsaid"}}
    with pytest.raises(PluginError, match=r"does not say whether a higher 'unsaid' is better") as e:
        run(tmp_path, stage, evaluate__metric="two-ways")
    assert "likeness" in str(e.value.hint)


def test_an_average_is_what_the_stage_ends_with(tmp_path: Path) -> None:
    stage = {"matches": {"m": LAST}, "units": 8 * 4 * 30}
    plain = run(tmp_path / "a", stage)
    mean = run(tmp_path / "b", {**stage, "ema": 0.9})
    followed = run(tmp_path / "c", {**stage, "ema": {"decay": 0.9, "adopt": False}})
    assert [r["loss"] for r in plain.rows] == [r["loss"] for r in mean.rows]
    assert same(plain, followed)
    assert not same(plain, mean)


JITTER = {"size": 8, "steps": {"jitter": {"size": 0.1}}}


def test_batch_steps_make_what_matches_read_in_training_and_validation(tmp_path: Path) -> None:
    """vision 2.8, encdec W6: what ``Student.prepare`` made was missing in validation."""
    made = {"student": "layers.2.output", "teacher": "batch:made", "objective": "pull"}
    stage = {"matches": {"m": made, "n": LAST}, "batch": JITTER, "validation": {"samples": 16}}
    done = run(tmp_path, stage)
    rows = done.rows
    assert [r["jitter"] for r in rows] == [0.1] * 6
    assert [r["seen_loss"] for r in rows] == [-1.0, *(r["loss"] for r in rows[:-1])]
    assert [r["at"] for r in rows] == pytest.approx([i / 5 for i in range(6)])
    assert {r["training"] for r in rows} == {1.0}
    assert done.summary["metrics"]["validation_after"] > 0


def test_phases_change_a_stage_under_one_optimiser(tmp_path: Path) -> None:
    stage = {
        "matches": {"m": LAST, "n": {"student": "layers.2.output", "objective": "pull"}},
        "trains": {"all": {}, "biases": {"lr": 1.0}},
        "batch": JITTER,
        "phases": [
            {"from": 0.3, "set": {"matches.n": None, "batch.steps.jitter.size": 0.2}},
            {"from": 0.7, "set": {"batch.steps.jitter": None, "trains.biases.lr": 0.0}},
        ],
    }
    rows = run(tmp_path, stage).rows
    assert [r.get("jitter") for r in rows] == [0.1, 0.1, 0.2, 0.2, None, None]
    assert [r["weighted.n"] == 0 for r in rows] == [False, False, True, True, True, True]
    assert all(r["match.n"] > 0 for r in rows)


def test_a_group_rests_in_a_phase(tmp_path: Path) -> None:
    def biases(name: str, phases: list[dict[str, Any]]) -> torch.Tensor:
        stage = {"matches": {"m": LAST}, "trains": {"all": {}, "biases": {"lr": 1.0}}, "phases": phases}
        return run(tmp_path / name, stage).weights["layers.2.b"]

    resting = biases("a", [{"from": 0.01, "set": {"trains.biases.lr": 0.0}}])
    waking = biases("b", [{"from": 0.01, "set": {"trains.biases.lr": 2.0}}])
    first = biases(
        "c", [{"from": 0.01, "set": {"trains.biases.lr": 0.0}}, {"from": 0.9, "set": {"trains.biases.lr": 0.0}}]
    )
    assert torch.equal(resting, first)
    assert not torch.equal(resting, waking)


def test_gradients_can_be_taken_somewhere_else(tmp_path: Path) -> None:
    """vision 2.14: SAM computes every gradient twice; running statistics move once."""
    stage = {"matches": {"m": LAST}}
    plain = run(tmp_path / "a", stage, student__target="normed")
    sharp = {**stage, "optimiser": {"lr": 0.02, "schedule": "constant", "wrap": {"sam": {"rho": 0.1}}}}
    moved = run(tmp_path / "b", sharp, student__target="normed")
    assert moved.rows[0]["loss"] == plain.rows[0]["loss"]
    assert moved.rows[0]["grad_norm"] != plain.rows[0]["grad_norm"]
    assert moved.weights["norm.num_batches_tracked"] == plain.weights["norm.num_batches_tracked"] == 6


EVERYTHING: dict[str, Any] = {
    "matches": {
        "exits": {**EXIT, "weight": {"start": 1.0, "end": 0.5}},
        "mean": {"student": "layers.2.output", "objective": "pull", "teacher": "ema:layers.2.output"},
        "start": {"student": "layers.1.output", "objective": "pull", "teacher": "self:layers.1.output", "weight": 0.1},
        "other": {"student": "layers.2.output", "objective": "pull", "teacher": "twin:layers.2.output"},
    },
    "batch": JITTER,
    "units": 8 * 4 * 10,
    "passes": 2,
    "phases": [{"from": 0.5, "set": {"matches.other": None, "batch.steps.jitter.size": 0.3}}],
    "ema": 0.8,
    "optimiser": {"algorithm": "muon", "lr": 0.5, "clip": 0.5, "wrap": {"sam": {"rho": 0.01}}},
    "validation": {"samples": 8, "every": 2, "keep": "best"},
    "checkpoint_every": 4,
}
CHANGES: dict[str, Any] = {
    "teachers": {"twin": {"ref": "stack:3"}},
    "student__target": "normed",
    "evaluate__curve": {"samples": 2, "every": 3},
}


class StopAt(Reporter):
    """Asks the run to stop, as a signal would, once a step is done."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.conversion: Conversion | None = None

    def step(self, step: int, steps: int, metrics: Any, units: int) -> None:
        if step == self.at and self.conversion is not None:
            self.conversion.stop.request("SIGTERM")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run(tmp_path_factory.mktemp("whole"), EVERYTHING, **CHANGES)


def test_validation_batches_follow_the_student(tmp_path: Path) -> None:
    """A step's validation batches were those of the student that the process began with, so that a resumed run
    validated on others."""
    said = {"student": "layers.2.output", "objective": "pull", "teacher": "batch:said"}
    stage = {
        "matches": {"m": {**LAST, "weight": 0.5}, "own": said},
        "batch": {"size": 8, "steps": {"own-output": {}}},
        "validation": {"samples": 8, "every": 2},
    }
    whole = run(tmp_path / "a", stage)
    watch = StopAt(3)
    plan = planned(stage)
    watch.conversion = Conversion(plan, begin_run(plan, tmp_path / "run"), registry(), watch)
    with pytest.raises(Interrupted):
        watch.conversion.run()
    resumed = resume(tmp_path)
    assert (resumed.folder / "metrics.jsonl").read_bytes() == (whole.folder / "metrics.jsonl").read_bytes()
    assert resumed.summary["metrics"] == whole.summary["metrics"]


@pytest.mark.parametrize("at", [1, 4, 5, 6, 9])
def test_everything_goes_on_bit_for_bit(at: int, undisturbed: Finished, tmp_path: Path) -> None:
    """Connectors, averages, phases, batch steps, wrappers, two optimisers and the best weights, across a resume."""
    watch = StopAt(at)
    plan = planned(EVERYTHING, **CHANGES)
    watch.conversion = Conversion(plan, begin_run(plan, tmp_path / "run"), registry(), watch)
    with pytest.raises(Interrupted):
        watch.conversion.run()
    resumed = resume(tmp_path)
    assert f"resumes from step {at}" in resumed.log
    metrics = [(r.folder / "metrics.jsonl").read_bytes() for r in (resumed, undisturbed)]
    assert metrics[0] == metrics[1]
    assert same(resumed, undisturbed)
    assert resumed.summary["metrics"] == undisturbed.summary["metrics"]


def test_a_stage_starts_only_if_its_requirements_hold(tmp_path: Path) -> None:
    """encdec W12, vision 2.14: an early gate on the teacher."""
    stage = {"matches": {"m": LAST}}
    run(tmp_path / "a", {**stage, "requires": {"teacher.mse": {"max": 0.1}, "student.stack_mse": {"min": 1e-6}}})
    with pytest.raises(
        PlanError, match=r"stages\.s\.requires\.student\.mse: mse of student is .* required at most 1e-09"
    ) as e:
        run(tmp_path / "b", {**stage, "requires": {"student.mse": {"max": 1e-9}}})
    assert e.value.exit_code == 3
    with pytest.raises(PlanError, match="no metric measures 'skill' of teacher"):
        run(tmp_path / "c", {**stage, "requires": {"teacher.skill": {"min": 0.6}}})


def test_a_students_bug_is_the_students(tmp_path: Path) -> None:
    """vision 2.9, house A5: it was shown as one of plugin 'core', stage 'gradient'."""
    with pytest.raises(PluginError, match=r"plugin 'lab_plugin'.*a bug of the student's author") as e:
        run(tmp_path, {"matches": {"m": LAST}}, student__target="broken")
    assert "core" not in e.value.what


@pytest.mark.parametrize("scope", ["global", "local"])
def test_a_stage_kind_of_a_plugin_trains_like_the_built_in_ones(scope: str, tmp_path: Path) -> None:
    """house 1.3, encdec W12: only the built-in kinds had matches, parameters, validation and evaluation."""
    match = LAST if scope == "global" else {"student": "output", "objective": "seen"}
    stage = {"kind": "halving", "scope": scope, "matches": {"m": match}, "units": 8 * 4 * 20}
    metrics = run(tmp_path, stage).summary["metrics"]
    assert 0 < metrics["last"] < metrics["first"]
    assert metrics["mse"] > 0
    assert metrics["held"] > 0
    assert metrics["calibration"] == 1
