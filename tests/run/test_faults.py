"""Whole conversions of a third-party family in their own process: determinism, kills, signals, planted faults."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from xarch.files.manifest import verify

PROGRAM = Path(__file__).parents[1] / "engine" / "convert_stack.py"


@functools.cache
def server() -> subprocess.Popen[str]:
    """One process that has imported what a conversion needs, for all conversions of this file."""
    command = [sys.executable, str(PROGRAM), "--serve"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    started = subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes)
    atexit.register(end, started)
    return started


def end(started: subprocess.Popen[str]) -> None:
    """Kill a process and whatever hangs in its forks."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)
    started.wait()


def convert(out: Path, *arguments: str, home: Path, sabotage: str = "") -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own; returns its exit code and output."""
    env = {**os.environ, "XARCH_HOME": str(home), "OMP_NUM_THREADS": "1", "SABOTAGE": sabotage}
    env["XARCH_DISABLE_PLUGINS"] = "hf,text,mohawk"
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = (Path(folder) / name for name in ("stdout", "stderr"))
        command = [str(out), *arguments]
        request = {"arguments": command, "environment": env, "stdout": str(stdout), "stderr": str(stderr)}
        to, back = server().stdin, server().stdout
        assert to is not None
        assert back is not None
        try:
            print(json.dumps(request), file=to, flush=True)
            code = int(back.readline())
        except BaseException:
            # A test that ran out of time: its answer would be taken for the next one's.
            end(server())
            server.cache_clear()
            raise
        return subprocess.CompletedProcess(command, code, stdout.read_text(), stderr.read_text())


def student(out: Path) -> bytes:
    """The bytes of the final weights."""
    return (out / "student" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Path:
    """An undisturbed run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done = convert(out, home=home)
    assert done.returncode == 0, done.stderr
    return out


def test_same_seed_same_metrics_and_student(whole: Path, tmp_path: Path, home: Path) -> None:
    assert convert(tmp_path / "run", home=home).returncode == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert student(tmp_path / "run") == student(whole)


@pytest.mark.slow
def test_another_seed_is_another_student(whole: Path, tmp_path: Path, home: Path) -> None:
    assert convert(tmp_path / "run", "seed=3", home=home).returncode == 0
    assert student(tmp_path / "run") != student(whole)


def test_stages_bring_the_student_closer(whole: Path) -> None:
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    local = [r["loss"] for r in rows if r["stage"] == "02-local"]
    assert local[-1] < 0.7 * local[0]
    evaluation = json.loads((whole / "eval.json").read_text())
    assert evaluation["student"]["mse"] < evaluation["baselines"]["before training"]["mse"]
    assert json.loads((whole / "status.json").read_text())["state"] == "done"


# Moments: 6 observations of the closed-form stage, 3 sites in each of 30 local steps, the stage of the plugin, the
# validations and 15 steps of the global stage, and one after every stage.
MOMENTS = [1, 6, 7, 21, 45, 70, 96, 98, 99, 100, 104, 109, 116]
QUICK = (109,)


@pytest.mark.parametrize("call", [pytest.param(m, marks=[] if m in QUICK else [pytest.mark.slow]) for m in MOMENTS])
def test_kill_anywhere_then_resume_is_bit_identical(call: int, whole: Path, tmp_path: Path, home: Path) -> None:
    out = tmp_path / "run"
    killed = convert(out, home=home, sabotage=f"kill@{call}")
    assert killed.returncode == -9
    resumed = convert(out, "--resume", home=home)
    assert resumed.returncode == 0, resumed.stderr
    assert student(out) == student(whole)
    assert (out / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_the_order_of_sets_does_not_matter(whole: Path, tmp_path: Path, home: Path) -> None:
    """Forks of one server hash strings alike; a run and its resume on a user's machine do not."""
    out = tmp_path / "run"
    env = {**os.environ, "XARCH_HOME": str(home), "OMP_NUM_THREADS": "1", "XARCH_DISABLE_PLUGINS": "hf,text,mohawk"}
    command = [sys.executable, str(PROGRAM), str(out)]
    killed = subprocess.run(command, env={**env, "SABOTAGE": "kill@45", "PYTHONHASHSEED": "1"}, capture_output=True)
    assert killed.returncode == -9
    resumed = subprocess.run([*command, "--resume"], env={**env, "PYTHONHASHSEED": "2"}, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert student(out) == student(whole)
    assert (out / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_termination_signal_checkpoints_and_resumes(whole: Path, tmp_path: Path, home: Path) -> None:
    out = tmp_path / "run"
    stopped = convert(out, home=home, sabotage="term@50")
    assert stopped.returncode == 130
    assert "--resume" in stopped.stderr
    assert json.loads((out / "status.json").read_text())["state"] == "interrupted"
    assert convert(out, "--resume", home=home).returncode == 0
    assert student(out) == student(whole)


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "where"), [(3, "fit"), (99, "nothing")])
def test_a_stage_without_checkpoints_stops_at_once(
    moment: int, where: str, whole: Path, tmp_path: Path, home: Path
) -> None:
    out = tmp_path / "run"
    stopped = convert(out, home=home, sabotage=f"term@{moment}")
    assert stopped.returncode == 130, stopped.stderr
    assert f"stopped by SIGTERM during stage {where}" in stopped.stderr
    assert "--resume" in stopped.stderr
    assert json.loads((out / "status.json").read_text())["state"] == "interrupted"
    assert convert(out, "--resume", home=home).returncode == 0
    assert student(out) == student(whole)
    assert (out / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("batch", [3, 7], ids=["before any gradient step", "of the student"])
def test_an_evaluation_can_be_interrupted(batch: int, whole: Path, tmp_path: Path, home: Path) -> None:
    """Four batches before the first gradient stage and four at the end."""
    out = tmp_path / "run"
    stopped = convert(out, home=home, sabotage=f"evaluate@{batch}")
    assert stopped.returncode == 130, stopped.stderr
    assert "stopped by SIGTERM during evaluate" in stopped.stderr
    assert json.loads((out / "status.json").read_text())["state"] == "interrupted"
    assert not (out / "eval.json").exists()
    assert convert(out, "--resume", home=home).returncode == 0
    assert student(out) == student(whole)
    for name in ("eval.json", "metrics.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


LONGER = "stages.global.validation.samples=12"
"""Three batches before the 15 steps of the global stage, moments 101 to 103, and three after them, 119 to 121."""


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Path:
    """An undisturbed run with long validations."""
    out = tmp_path_factory.mktemp("validated") / "run"
    done = convert(out, LONGER, home=home)
    assert done.returncode == 0, done.stderr
    return out


def summary(out: Path) -> dict[str, Any]:
    """What the global stage left behind, without what a clock decides."""
    found = json.loads((out / "stages" / "04-global" / "summary.json").read_text())
    return {k: v for k, v in found.items() if k not in ("seconds", "cpu_seconds", "training")}


@pytest.mark.slow
def test_a_long_validation_before_a_stage_can_be_interrupted(validated: Path, tmp_path: Path, home: Path) -> None:
    out = tmp_path / "run"
    stopped = convert(out, LONGER, home=home, sabotage="term@102")
    assert stopped.returncode == 130, stopped.stderr
    assert json.loads((out / "status.json").read_text())["reason"] == "stopped by SIGTERM in stage global"
    assert not list(out.glob("stages/04-global/checkpoints/step-*"))
    assert convert(out, "--resume", home=home).returncode == 0
    assert student(out) == student(validated)
    assert summary(out) == summary(validated)


@pytest.mark.slow
@pytest.mark.parametrize(("trouble", "code"), [("int@120", 130), ("term@120", 130), ("kill@120", -9)])
def test_a_long_validation_after_a_stage_can_be_interrupted(
    trouble: str, code: int, validated: Path, tmp_path: Path, home: Path
) -> None:
    out = tmp_path / "run"
    stopped = convert(out, LONGER, home=home, sabotage=trouble)
    assert stopped.returncode == code, stopped.stderr
    if code == 130:
        reason = json.loads((out / "status.json").read_text())["reason"]
        assert reason == f"stopped by SIG{trouble[:-4].upper()} in stage global"
    assert not verify(out / "stages/04-global/checkpoints/step-15")["final"]
    # Four moments are left: three of the validation and the stage's end. A step that is taken again makes a fifth.
    resumed = convert(out, "--resume", home=home, sabotage="kill@5")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumes from step 15" in (out / "log.txt").read_text()
    assert (out / "metrics.jsonl").read_bytes() == (validated / "metrics.jsonl").read_bytes()
    assert student(out) == student(validated)
    assert summary(out) == summary(validated)
    assert summary(out)["metrics"]["validation_after"] < summary(out)["metrics"]["validation_before"]


def test_nan_stops_without_an_update(tmp_path: Path, home: Path) -> None:
    out = tmp_path / "run"
    failed = convert(out, home=home, sabotage="nan@20")
    assert failed.returncode == 5
    assert "no update was made" in failed.stderr
    assert json.loads((out / "status.json").read_text())["state"] == "failed"


@pytest.mark.slow
def test_nan_is_retried_when_asked(tmp_path: Path, home: Path) -> None:
    done = convert(tmp_path / "run", "runtime.on_nan=retry", home=home, sabotage="nan@20")
    assert done.returncode == 0, done.stderr
    assert "half the learning rate" in (tmp_path / "run" / "log.txt").read_text()


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_result(whole: Path, tmp_path: Path, home: Path) -> None:
    out = tmp_path / "run"
    assert convert(out, home=home, sabotage="oom@2").returncode == 0
    assert "micro-batches of 2" in (out / "log.txt").read_text()
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    straight = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [r["loss"] for r in rows if "loss" in r] == pytest.approx([r["loss"] for r in straight if "loss" in r], 1e-4)


@pytest.mark.slow
def test_out_of_memory_to_the_end(tmp_path: Path, home: Path) -> None:
    failed = convert(tmp_path / "run", home=home, sabotage="oom@0")
    assert failed.returncode == 75
    assert "single sample" in failed.stderr


@pytest.mark.slow
@pytest.mark.parametrize("moment", [3, 99], ids=["in a closed form", "in the stage of a plugin"])
def test_memory_that_runs_out_outside_a_gradient_step(moment: int, tmp_path: Path, home: Path) -> None:
    failed = convert(tmp_path / "run", home=home, sabotage=f"memory@{moment}")
    assert failed.returncode == 75, failed.stderr
    assert "--resume" in failed.stderr
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("moment", [1, 30, 98, 105, 116])
def test_memory_that_really_runs_out(moment: int, whole: Path, tmp_path: Path, home: Path) -> None:
    """One MiB more than is in use: whatever asks for memory next fails, in any library."""
    out = tmp_path / "run"
    failed = convert(out, home=home, sabotage=f"space@{moment}")
    assert failed.returncode in (0, 75), failed.stderr
    assert convert(out, "--resume", home=home).returncode == 0
    if "micro-batches of" not in (out / "log.txt").read_text():
        assert student(out) == student(whole)
        return
    # Smaller micro-batches were enough: the same sums, rounded in another order.
    ours, theirs = (load_file(run / "student" / "model.safetensors") for run in (out, whole))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("moment", [20, 109, 116], ids=["local", "global", "after the last stage"])
def test_a_disk_that_fills_interrupts_and_resumes(moment: int, whole: Path, tmp_path: Path, home: Path) -> None:
    out = tmp_path / "run"
    stopped = convert(out, home=home, sabotage=f"full@{moment}")
    assert stopped.returncode == 130, stopped.stderr
    assert "(errno 27, EFBIG)" in stopped.stderr
    assert "--resume" in stopped.stderr
    status = json.loads((out / "status.json").read_text())
    assert status["state"] == "interrupted"
    assert str(out) in status["reason"]
    assert convert(out, "--resume", home=home).returncode == 0
    assert student(out) == student(whole)
    assert (out / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_a_plugins_bug_names_the_plugin(tmp_path: Path, home: Path) -> None:
    failed = convert(tmp_path / "run", home=home, sabotage="bug@20")
    assert failed.returncode == 4
    assert "planted bug" in failed.stderr
    assert "stack_plugin" in failed.stderr
    assert "sabotage" in failed.stderr


def test_a_damaged_checkpoint_is_passed_over(whole: Path, tmp_path: Path, home: Path) -> None:
    out = tmp_path / "run"
    assert convert(out, home=home, sabotage="kill@38").returncode == -9
    newest = max((out / "stages" / "02-local" / "checkpoints").iterdir(), key=lambda p: int(p.name.split("-")[1]))
    weights = bytearray((newest / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (newest / "model.safetensors").write_bytes(weights)
    assert convert(out, "--resume", home=home).returncode == 0
    assert "is damaged" in (out / "log.txt").read_text()
    assert student(out) == student(whole)


def test_missed_gate_is_exit_7_and_nothing_is_exported(tmp_path: Path, home: Path) -> None:
    failed = convert(tmp_path / "run", "gates.mse.max=1e-9", "export.profiles=[cpu]", home=home)
    assert failed.returncode == 7
    assert not (tmp_path / "run" / "export").exists()


FLAT = (
    "stages.local.until={plateau: {window: 3, change: 0.4}}",
    "stages.local.checkpoint_every=2",
    "stages.global.until={plateau: {window: 2, change: 0.1}}",
    "evaluate.curve={samples: 2, every: 4}",
)
UNTIMED = ("stage", "step", "units", "student")


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Path:
    """An undisturbed run whose two gradient stages end at a plateau."""
    out = tmp_path_factory.mktemp("short") / "run"
    done = convert(out, *FLAT, home=home)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_a_plateau_ends_a_stage_and_is_told_everywhere(short: Path) -> None:
    rows = [json.loads(line) for line in (short / "metrics.jsonl").read_text().splitlines()]
    log, page = ((short / name).read_text() for name in ("log.txt", "report.md"))
    for folder, planned in (("02-local", 30), ("04-global", 15)):
        summary = json.loads((short / "stages" / folder / "summary.json").read_text())
        mine = [r for r in rows if r["stage"] == folder and "loss" in r]
        taken = summary["steps"]
        assert taken == len(mine) < planned
        assert summary["ended"] == {"step": taken, "steps": planned, "units": taken * 16, "reason": "plateau"}
        assert mine[-1]["lr"] < 0.5 * max(r["lr"] for r in mine)
        assert rows[rows.index(mine[-1]) + 1]["planned_steps"] == planned
        assert f"ended at step {taken} of {planned}: plateau" in log
        assert f"{taken} of {planned} (plateau)" in page
        assert (short / "stages" / folder / "checkpoints" / f"step-{taken}").is_dir()
        assert summary["training"]["seconds"] > 0


def curve(out: Path) -> list[dict[str, Any]]:
    """The rows of curve.jsonl without what a clock decides."""
    rows = [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]
    seconds = [r["seconds"] for r in rows]
    assert seconds == sorted(seconds)
    assert seconds[-1] > seconds[0] >= 0
    return [{k: r[k] for k in UNTIMED} for r in rows]


def test_a_curve_has_a_row_at_the_start_on_the_way_and_after_every_stage(short: Path) -> None:
    rows = curve(short)
    seen = [(r["stage"], r["step"]) for r in rows]
    ends = {s.parent.name: json.loads(s.read_text())["steps"] for s in short.glob("stages/*/summary.json")}
    assert seen[0] == ("start", 0)
    assert set(ends.items()) <= set(seen)
    local = [step for stage, step in seen if stage == "02-local"]
    assert local == [*range(4, ends["02-local"], 4), ends["02-local"]]
    assert rows[-1]["student"]["mse"] < rows[0]["student"]["mse"]
    assert "Quality over time" in (short / "report.md").read_text()


@pytest.mark.slow
def test_a_curve_leaves_no_trace_in_the_training(whole: Path, tmp_path: Path, home: Path) -> None:
    out = tmp_path / "run"
    done = convert(out, "evaluate.curve={samples: 3, seconds: 0.05}", home=home)
    assert done.returncode == 0, done.stderr
    assert student(out) == student(whole)
    assert (out / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert len(curve(out)) > 5


# Moments of the two plateau stages: before and at the plateaus, while the rate falls, at the borders.
@pytest.mark.slow
@pytest.mark.parametrize("call", [12, 28, 46, 58])
def test_kill_in_a_stage_that_ends_early_then_resume_is_bit_identical(
    call: int, short: Path, tmp_path: Path, home: Path
) -> None:
    out = tmp_path / "run"
    assert convert(out, *FLAT, home=home, sabotage=f"kill@{call}").returncode == -9
    resumed = convert(out, "--resume", home=home)
    assert resumed.returncode == 0, resumed.stderr
    assert student(out) == student(short)
    assert (out / "metrics.jsonl").read_bytes() == (short / "metrics.jsonl").read_bytes()
    assert curve(out) == curve(short)


@pytest.mark.slow
def test_spent_seconds_end_a_stage_also_across_a_resume(tmp_path: Path, home: Path) -> None:
    out = tmp_path / "run"
    long = ("stages.local.units=32_000_000", "stages.local.until.seconds=2", "stages.local.log_every=1000000")
    assert convert(out, *long, home=home, sabotage="term@20").returncode == 130
    newest = max((out / "stages" / "02-local" / "checkpoints").iterdir(), key=lambda p: int(p.name.split("-")[1]))
    state = json.loads((newest / "state.json").read_text())
    assert 0 < state["engine"]["training"]["seconds"] < 2
    resumed = convert(out, "--resume", home=home)
    assert resumed.returncode == 0, resumed.stderr
    summary = json.loads((out / "stages" / "02-local" / "summary.json").read_text())
    assert summary["ended"]["reason"] == "time"
    assert summary["training"]["seconds"] >= 2


@pytest.mark.slow
def test_only_a_stage_of_optimiser_steps_can_end_early(tmp_path: Path, home: Path) -> None:
    failed = convert(tmp_path / "run", "stages.fit.until.seconds=1", home=home)
    assert failed.returncode == 2
    assert "stages.fit.until" in failed.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("sharding", ["replicate", "fsdp2"])
def test_two_processes_equal_one(sharding: str, short: Path, tmp_path: Path, home: Path) -> None:
    from safetensors.torch import load_file

    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    env = {**os.environ, "XARCH_HOME": str(home), "OMP_NUM_THREADS": "1", "XARCH_DISABLE_PLUGINS": "hf,text,mohawk"}
    out = tmp_path / sharding
    command = [*torchrun, "--standalone", "--nproc-per-node", "2", str(PROGRAM), str(out), *FLAT]
    started = subprocess.Popen(
        [*command, f"runtime.sharding={sharding}"],
        env=env,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, said = started.communicate()
    finally:
        end(started)  # also the workers, if this test ran out of time
    assert started.returncode == 0, said[-3000:]
    one, two = (load_file(r / "student" / "model.safetensors") for r in (short, out))
    for name in one:
        assert (one[name] - two[name]).abs().max() < 1e-4, (sharding, name)
    for mine, theirs in zip(curve(out), curve(short), strict=True):
        assert mine["student"]["mse"] == pytest.approx(theirs["student"]["mse"], rel=1e-2)
        assert (mine["stage"], mine["step"]) == (theirs["stage"], theirs["step"])
