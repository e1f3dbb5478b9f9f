"""Whole conversions through the command line, with a family that only a plugin file knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.cli_process import RUN, STACK, Xarch

pytestmark = pytest.mark.usefixtures("stack_run")


@pytest.fixture
def done(here: Xarch, tmp_path: Path) -> Path:
    """A finished run."""
    ended = here("convert", "run.yaml", "--out", "done")
    assert ended.code == 0, ended.err
    return tmp_path / "done"


def test_plan_shows_everything_and_loads_nothing(here: Xarch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # the estimated time of a busy machine is long and would wrap its neighbours
    human = here("plan", "run.yaml", "-v", "--set", "stages.local.units=640", "--seed", "4")
    assert human.code == 0, human.err
    for text in ("stack:3", "low, 120 parameters", "m0 x3", "all (120)", "gates: mse <= 5"):
        assert text in human.out
    assert "--set stages.local.units=640" in human.out
    assert not list(tmp_path.glob("runs/*"))
    ended = here("plan", "run.yaml", "--json", "--seed", "4", "--out", "planned")
    assert ended.code == 0, ended.err
    plan = ended.document
    assert [s["name"] for s in plan["stages"]] == ["local"]
    assert plan["config"]["seed"] == 4
    assert plan["provenance"]["seed"] == "command line"
    assert plan["provenance"]["stages.local.units"] == "run.yaml:9"
    assert plan["command"] == "xarch plan run.yaml --json --seed 4 --out planned"
    assert json.loads((tmp_path / "planned" / "plan.json").read_text()) == plan


def test_convert_as_json(xarch: Xarch, tmp_path: Path) -> None:
    ended = xarch("convert", "run.yaml", "--out", "r", "--json")
    assert ended.code == 0, ended.err
    result = ended.document
    assert result["status"]["state"] == "done"
    assert result["run"] == "r"
    assert result["gates"][0]["passed"]
    assert result["evaluation"]["student"]["mse"] < result["evaluation"]["baselines"]["before training"]["mse"]
    assert result["student"]["parameters"] == 120
    assert (tmp_path / "r" / "student" / "model.safetensors").stat().st_size == result["student"]["bytes"]
    assert "stage 1/1 local (gradient, 30 steps)" in ended.err


def test_convert_for_people(here: Xarch, done: Path) -> None:
    again = here("convert", "run.yaml", "--out", "done")
    assert again.code == 2
    assert "done already holds a run (done)" in again.err
    assert "passed" not in again.out
    shown = here("inspect", "done")
    assert shown.code == 0, shown.err
    for text in ("done: done", "gate mse", "passed", "mse, student", "done/student"):
        assert text in shown.out
    assert here("inspect", "done", "--json").document["state"] == "done"


def test_a_plan_file_is_executed_as_it_is(here: Xarch, tmp_path: Path) -> None:
    assert here("plan", "run.yaml", "--seed", "9", "--out", "p").code == 0
    changed = here("convert", "p/plan.json", "--out", "r", "--seed", "3")
    assert changed.code == 2
    assert "p/plan.json is a plan and runs unchanged" in changed.err
    assert here("convert", "p/plan.json", "--out", "r").code == 0
    assert json.loads((tmp_path / "r" / "plan.json").read_text())["config"]["seed"] == 9
    (tmp_path / "p" / "plan.json").write_text('{"format": 1}')
    broken = here("convert", "p/plan.json", "--out", "q")
    assert broken.code == 2
    assert "is not a plan of this version" in broken.err


def test_an_interrupted_run_goes_on_with_the_command_it_shows(here: Xarch, tmp_path: Path, done: Path) -> None:
    ended = here("convert", "run.yaml", "--out", "r", SABOTAGE="term@30")
    assert ended.code == 130, ended.err
    assert "error (interrupted): stopped by SIGTERM" in ended.err
    assert "help: xarch convert --resume --out r" in ended.err
    resumed = here("convert", "--resume", "--out", "r")
    assert resumed.code == 0, resumed.err
    assert (tmp_path / "r" / "metrics.jsonl").read_bytes() == (done / "metrics.jsonl").read_bytes()
    assert here("convert", "--resume", "r").code == 0


@pytest.mark.slow
def test_one_command_for_a_scheduler_that_starts_it_again(here: Xarch, tmp_path: Path) -> None:
    command = ("convert", "run.yaml", "--out", "r", "--resume")
    assert here(*command, SABOTAGE="term@30").code == 130
    other = here(*command, "--set", "stages.local.optimiser.lr=0.5")
    assert other.code == 2
    assert "r is a run with a different configuration: stages.local.optimiser.lr is 0.02 in the run" in other.err
    assert "0.5 in the request" in other.err
    assert here(*command).code == 0
    assert json.loads((tmp_path / "r" / "status.json").read_text())["state"] == "done"


def test_a_missed_gate_ends_with_seven_and_shows_what_there_is(here: Xarch) -> None:
    ended = here("convert", "run.yaml", "--out", "r", "--set", "gates.mse.max=0", "--json")
    assert ended.code == 7
    result = ended.document
    assert result["error"]["kind"] == "quality"
    assert not result["gates"][0]["passed"]
    assert "error (quality): the student misses a gate: mse is" in ended.err
    human = here("convert", "run.yaml", "--out", "r2", "--set", "gates.mse.max=0")
    assert human.code == 7
    assert "missed" in human.out


def test_a_bug_in_a_plugin_names_it(here: Xarch) -> None:
    ended = here("convert", "run.yaml", "--out", "r", SABOTAGE="bug@5")
    assert ended.code == 4
    assert "error (plugin): plugin 'stack_plugin'" in ended.err
    assert "objective 'sabotage', stages.local: ZeroDivisionError: planted bug" in ended.err
    assert "Traceback" not in ended.err
    loud = here("convert", "run.yaml", "--out", "r2", "-v", SABOTAGE="bug@5")
    assert 'raise ZeroDivisionError("planted bug")' in loud.err


def test_evaluate_again(here: Xarch, done: Path) -> None:
    before = (done / "eval.json").read_text()
    (done / "eval.json").unlink()
    ended = here("eval", "done", "--json")
    assert ended.code == 0, ended.err
    assert json.loads((done / "eval.json").read_text())["student"] == json.loads(before)["student"]
    assert ended.document["evaluation"]["student"] == json.loads(before)["student"]


def test_flags_instead_of_a_file(here: Xarch, tmp_path: Path) -> None:
    stages = RUN.split("stages:\n")[1].split("gates:")[0]
    (tmp_path / "stages.yaml").write_text("stages:\n" + stages)
    arguments = (
        "stages.yaml",
        "--teacher",
        "stack:3",
        "--to",
        "low",
        "--data",
        "noise:8",
        "--set",
        "export.profiles=[]",
    )
    ended = here("plan", *arguments, "--json")
    assert ended.code == 0, ended.err
    assert ended.document["teacher"]["resolved"] == "stack:3"


def test_a_plugin_file_by_flag(here: Xarch) -> None:
    without = here("plan", "run.yaml", XARCH_PLUGIN_FILES="")
    assert without.code == 2
    assert "unknown target 'low'" in without.err
    assert here("plan", "run.yaml", "--plugin", str(STACK), XARCH_PLUGIN_FILES="").code == 0


def test_a_pair_that_does_not_fit(here: Xarch) -> None:
    ended = here("plan", "run.yaml", "--set", "stages.local.matches.m0.student=nowhere")
    assert ended.code in (2, 3)
    assert "nowhere" in ended.err


def test_runs_that_are_none(here: Xarch) -> None:
    for command in (["eval", "nope"], ["report", "nope"], ["export", "nope"]):
        ended = here(*command)
        assert ended.code == 2, ended.err
        assert "nope is not a run folder" in ended.err
    ended = here("export", "nope", "--profile", "cpuu")
    assert "unknown profile 'cpuu'; did you mean 'cpu'?" in ended.err


def test_several_processes_need_one_folder(here: Xarch) -> None:
    ended = here("convert", "run.yaml", WORLD_SIZE="2")
    assert ended.code == 2
    assert "pass --out RUN" in ended.err


def test_a_family_that_shows_nothing_says_so(here: Xarch, done: Path) -> None:
    ended = here("generate", "done", "hello", "--set", "tokens=3")
    assert ended.code == 2
    assert "generate.tokens: unknown key" in ended.err
    ended = here("generate", "done", "hello")
    assert ended.code == 3
    assert "StackFamily does not support `xarch generate`" in ended.err
    assert here("generate", "done", "--set", "a.b=3").code == 2
