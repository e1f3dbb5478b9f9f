"""Arms times axes: names, controls, and the configuration of every run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from xarch.config.study import StudyConfig, load_study
from xarch.errors import UsageError
from xarch.run.study.arms import arms_of, runs_of

BASE = {
    "teacher": "stack:3",
    "student": {"target": "low"},
    "data": {"ref": "noise:8"},
    "stages": {
        "s": {
            "matches": {"kd": {"student": "output", "objective": "mse"}, "l": {"student": "output", "objective": "l2"}},
            "trains": {"all": {}},
        }
    },
}


def written(tmp_path: Path, **study: Any) -> dict[str, dict[str, Any]]:
    config = StudyConfig.model_validate({"base": BASE, **study})
    runs = runs_of(config, arms_of(config), tmp_path, tmp_path / "out")
    return {f"{r.arm}/{r.seed}": yaml.safe_load(r.config.read_text()) for r in runs}


def test_axes_multiply_and_name_their_arms() -> None:
    axes = {"stages.s.optimiser.lr": [0.1, 0.01], "budget": [1, 2]}
    arms = arms_of(StudyConfig(base=BASE, axes=axes))
    assert [a.name for a in arms] == ["lr=0.1,budget=1", "lr=0.1,budget=2", "lr=0.01,budget=1", "lr=0.01,budget=2"]
    assert arms[2].sets == {"stages.s.optimiser.lr": 0.01, "budget": 1}


def test_every_point_of_the_axes_has_its_own_control() -> None:
    study = StudyConfig.model_validate(
        {"base": BASE, "arms": {"none": {}, "kd": {"set": {"budget": 3}}}, "axes": {"tiny": [False]}, "control": "none"}
    )
    assert [(a.name, a.control) for a in arms_of(study)] == [
        ("none,tiny=False", ""),
        ("kd,tiny=False", "none,tiny=False"),
    ]


def test_an_axis_may_have_named_values_that_set_several_keys(tmp_path: Path) -> None:
    axes = {"pair": {"a": {"set": {"teacher": "stack:2", "budget": 5}}, "b": {"set": {"budget": 7}}}}
    found = written(tmp_path, arms={"x": {}, "y": {"set": {"budget": 1}}}, axes=axes, seeds=[0])
    assert set(found) == {"x,a/0", "x,b/0", "y,a/0", "y,b/0"}
    assert (found["y,a/0"]["teacher"], found["y,a/0"]["budget"]) == ("stack:2", 5)


def test_further_keys_may_follow_the_seed(tmp_path: Path) -> None:
    found = written(tmp_path, arms={"x": {}}, seeds=[3], seeded=["data.options.subset"])["x/3"]
    assert (found["seed"], found["data"]["options"]["subset"]) == (3, 3)


def test_texts_may_name_the_seed(tmp_path: Path) -> None:
    arms = {"x": {"set": {"teacher": "stack:{seed}", "data.options.of": ["{seed}", 5, "{i}"]}}}
    found = written(tmp_path, arms=arms, seeds=[3, 4])
    assert [found[f"x/{n}"]["teacher"] for n in (3, 4)] == ["stack:3", "stack:4"]
    assert found["x/4"]["data"]["options"]["of"] == ["4", 5, "{i}"]


def test_any_key_can_be_set_and_null_removes(tmp_path: Path) -> None:
    sets = {"stages.s.matches.l": None, "stages.s.optimiser": {"lr": 0.5}, "student.options": {"a": 1}}
    found = written(tmp_path, arms={"x": {"set": sets}}, seeds=[4])["x/4"]
    assert found["stages"]["s"]["matches"]["l"] is None
    assert found["stages"]["s"]["matches"]["kd"]["objective"] == "mse"
    assert found["stages"]["s"]["optimiser"] == {"lr": 0.5}
    assert found["student"] == {"target": "low", "options": {"a": 1}}
    assert found["seed"] == 4
    assert found["runtime"] == {"cache": "shared", "threads": 1}


def test_the_base_may_be_a_file_or_a_name(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**BASE, "runtime": {"threads": 2}}))
    found = written(tmp_path, base="base.yaml", arms={"x": {}}, seeds=[0])["x/0"]
    assert found["runtime"]["threads"] == 2
    with pytest.raises(UsageError, match="arm 'x': there is no method or recipe 'no-such-recipe'"):
        written(tmp_path, base="no-such-recipe", arms={"x": {}}, seeds=[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "give `arms`, `axes` or both"),
        ({"arms": {"a b": {}}}, "a name is letters"),
        ({"arms": {"a": {"set": {"seed": 1}}}}, "use `seeds`"),
        ({"axes": {"budget": []}}, "has no value"),
        ({"arms": {"a": {}}, "seeds": [1, 1]}, "a seed is listed twice"),
        ({"arms": {"a": {}}, "sedes": [1]}, "sedes"),
        ({"arms": {"a": {}}, "executor": "slurm"}, "local"),
    ],
)
def test_wrong_studies(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_study({"base": BASE, **changes})


def test_a_study_extends_another_one_key_by_key(tmp_path: Path) -> None:
    arms = {"none": {}, "kd": {"set": {"budget": 3, "student.options.x": None}}, "old": {}}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
    first = {"base": "base.yaml", "arms": arms, "control": "none", "seeds": [0, 1]}
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(first, sort_keys=False))
    own = {"extends": "../first.yaml", "arms": {"kd": {"set": {"budget": 4}}, "old": None}, "seeds": [7]}
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "second.yaml").write_text(yaml.safe_dump(own))
    study, name, folder = load_study(tmp_path / "own" / "second.yaml")
    assert (name, study.control, study.seeds) == ("second", "none", [7])
    assert study.arms["kd"].set == {"budget": 4, "student.options.x": None}, "an arm's null is the arm's"
    runs = runs_of(study, arms_of(study), folder, tmp_path / "out")
    assert [(r.arm, r.seed) for r in runs] == [("none", 7), ("kd", 7)]
    assert yaml.safe_load(runs[0].config.read_text())["teacher"] == "stack:3", "the base lies beside the first"


@pytest.mark.parametrize(("other", "message"), [("second.yaml", "extend each other"), (3, "give a study file")])
def test_a_study_that_extends_nothing_sensible(tmp_path: Path, other: Any, message: str) -> None:
    (tmp_path / "second.yaml").write_text(yaml.safe_dump({"extends": other}))
    with pytest.raises(UsageError, match=message):
        load_study(tmp_path / "second.yaml")


def test_a_control_that_is_no_arm() -> None:
    with pytest.raises(UsageError, match="no arm 'kd'"):
        arms_of(StudyConfig(base=BASE, axes={"budget": [1]}, control="kd"))


def test_a_misspelt_key_is_found_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"arm 'x'.*optimizer"):
        written(tmp_path, arms={"x": {"set": {"stages.s.optimizer.lr": 1}}})


def test_arms_are_evaluated_on_the_same_samples(tmp_path: Path) -> None:
    """A method's 400 held-out rows were compared with 16 of a control that took the default."""
    arms = {"a": {"set": {}}, "b": {"set": {"evaluate.samples": 400}}}
    with pytest.raises(UsageError, match=r"arm 'b': evaluate\.samples is 400, but 16 in arm 'a'"):
        written(tmp_path / "own", arms=arms)
