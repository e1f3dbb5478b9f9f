"""A study keeps what is finished, resumes what was interrupted, says what failed, and compares seed by seed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from xarch.errors import Interrupted, UsageError
from xarch.run.study.conduct import StudyFailed, conduct

STUB = (sys.executable, str(Path(__file__).with_name("convert_stub.py")))
BASE = {
    "teacher": "stack:3",
    "student": {"target": "low"},
    "data": {"ref": "noise:8"},
    "budget": 100,
    "stages": {"s": {"matches": {"kd": {"student": "output", "objective": "mse"}}, "trains": {"all": {}}}},
}


def study(**changes: Any) -> dict[str, Any]:
    arms = {"none": {}, "kd": {"set": {"budget": 300}}}
    return {"base": BASE, "arms": arms, "control": "none", "seeds": [0, 1], **changes}


def starts(out: Path) -> dict[str, int]:
    files = sorted(out.glob("runs/*/*/starts.txt"))
    return {f"{f.parts[-3]}/{f.parts[-2]}": len(f.read_text().splitlines()) for f in files}


def test_arms_times_seeds_and_one_table(tmp_path: Path) -> None:
    """vision 2.18: variants times seeds, means, paired differences were made by hand."""
    metrics = ["top1", "kl", "variants.half.top1"]
    found = conduct(study(jobs=2, metrics=metrics), tmp_path / "out", command=STUB)
    assert set(starts(tmp_path / "out")) == {"none/seed-0", "none/seed-1", "kd/seed-0", "kd/seed-1"}
    kd = found["facts"]["arm kd top1"]
    assert kd["n"] == 2
    assert kd["mean"] == pytest.approx(0.305)
    assert kd["difference"]["mean"] == pytest.approx(0.2)
    assert found["facts"]["arm kd kl"]["mean"] == pytest.approx(0.1525), "gated figures are figures too"
    assert found["facts"]["metrics"]["kl"] == {"higher_is_better": False, "unit": "nats/row", "teacher": None}
    assert found["facts"]["arm kd variants.half.top1"]["mean"] == pytest.approx(0.305 / 4)
    assert found["facts"]["metrics"]["variants.half.top1"]["higher_is_better"] is True
    assert found["header"]["finished"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<svg" in page
    assert "0.3050" in page


@pytest.mark.slow
def test_arms_are_also_compared_over_all_points_of_the_axes(tmp_path: Path) -> None:
    axes = {"pair": {"a": {"set": {"budget": 100}}, "b": {"set": {"budget": 300}}}}
    arms = {"none": {}, "kd": {"set": {"tiny": False}}}
    settings = study(arms=arms, axes=axes, metrics=["top1", "loss"], against="loss")
    found = conduct(settings, tmp_path, command=STUB)
    page = (tmp_path / "report.html").read_text()
    assert "top1 against loss" in page, "one curve of all arms"
    pooled = found["facts"]["arm kd, pooled top1"]
    assert pooled["n"] == 4
    assert pooled["control"] == "none, pooled"
    assert pooled["difference"]["n"] == 4
    alone = [found["facts"][f"arm kd,{p} top1"]["difference"]["mean"] for p in "ab"]
    assert pooled["difference"]["mean"] == pytest.approx(sum(alone) / 2)


def test_points_are_rows_of_the_benchmarks_page(tmp_path: Path) -> None:
    conduct(study(), tmp_path, command=STUB)
    stored = json.loads((tmp_path / "study.json").read_text())
    assert {"header", "facts", "points"} == stored.keys()
    assert all(p.keys() == {"what", "figure", "spread", "seeds", "rival"} for p in stored["points"])
    assert {"benchmark", "command", "finished", "versions", "machine", "date"} <= stored["header"].keys()
    kd = next(p for p in stored["points"] if p["what"] == "kd: top1")
    assert kd["rival"].startswith("none 0.1050; difference +0.2000")
    assert str(tmp_path) not in json.dumps(stored["points"])


@pytest.mark.slow
def test_every_arm_is_shown_beside_its_own_teacher(tmp_path: Path) -> None:
    conduct(study(axes={"teacher": ["stack:2", "stack:3"]}), tmp_path, command=STUB)
    stored = json.loads((tmp_path / "study.json").read_text())
    rivals = {p["what"]: p["rival"] for p in stored["points"]}
    assert rivals["none,teacher=stack-2: top1"] == "teacher 0.6000"
    assert rivals["none,teacher=stack-3: top1"] == "teacher 0.9000"
    assert stored["facts"]["metrics"]["top1"]["teacher"] is None, "the figure would show one line for both"


def test_a_second_start_runs_nothing_again(tmp_path: Path) -> None:
    conduct(study(), tmp_path, command=STUB)
    conduct(study(), tmp_path, command=STUB)
    assert set(starts(tmp_path).values()) == {1}


def test_a_further_seed_runs_alone(tmp_path: Path) -> None:
    conduct(study(), tmp_path, command=STUB)
    found = conduct(study(seeds=[0, 1, 2]), tmp_path, command=STUB)
    assert set(starts(tmp_path).values()) == {1}
    assert found["facts"]["arm kd top1"]["n"] == 3


def test_chosen_arms_and_seeds_run_and_the_table_shows_all_that_are_done(tmp_path: Path) -> None:
    conduct(study(), tmp_path, only_arms=["none"], command=STUB)
    found = conduct(study(), tmp_path, only_arms=["kd"], only_seeds=[1], command=STUB)
    assert starts(tmp_path) == {"none/seed-0": 1, "none/seed-1": 1, "kd/seed-1": 1}
    assert (found["facts"]["arm none top1"]["n"], found["facts"]["arm kd top1"]["n"]) == (2, 1)
    assert not found["header"]["finished"]
    for wrong in ({"only_arms": ["kdd"]}, {"only_seeds": [2]}):
        with pytest.raises(UsageError, match=r"no (arm 'kdd'|seed 2)"):
            conduct(study(), tmp_path, command=STUB, **wrong)


def test_a_run_of_another_configuration_is_refused(tmp_path: Path) -> None:
    conduct(study(), tmp_path, command=STUB)
    arms = {"none": {}, "kd": {"set": {"budget": 301}}}
    with pytest.raises(UsageError, match="a configuration other than"):
        conduct(study(arms=arms), tmp_path, command=STUB)


def test_failed_runs_are_reported_and_run_again_on_request_only(tmp_path: Path) -> None:
    arms = {"none": {}, "bad": {"set": {"student.options.behaviour": "fail"}}}
    with pytest.raises(StudyFailed, match="2 of 4 runs failed: bad seed 0: diverged: loss is NaN") as error:
        conduct(study(arms=arms), tmp_path, command=STUB)
    assert error.value.exit_code == 5
    assert error.value.document["facts"]["arm none top1"]["n"] == 2, "the other arm is done"
    with pytest.raises(StudyFailed):
        conduct(study(arms=arms), tmp_path, command=STUB)
    assert starts(tmp_path)["bad/seed-0"] == 1
    (tmp_path / "FIXED").touch()
    found = conduct(study(arms=arms), tmp_path, retry=True, command=STUB)
    assert found["facts"]["arm bad top1"]["n"] == 2
    assert starts(tmp_path) == {"none/seed-0": 1, "none/seed-1": 1, "bad/seed-0": 2, "bad/seed-1": 2}


def test_a_run_that_never_began_is_a_failed_one(tmp_path: Path) -> None:
    arms = {"none": {}, "bad": {"set": {"student.options.behaviour": "die"}}}
    for _ in range(2):
        with pytest.raises(StudyFailed, match=r"nothing fits") as error:
            conduct(study(arms=arms, seeds=[0]), tmp_path, command=STUB)
        assert error.value.exit_code == 3


def test_a_missed_gate_is_a_figure(tmp_path: Path) -> None:
    arms = {"none": {"set": {"student.options.behaviour": "gate"}}, "kd": {"set": {"budget": 300}}}
    found = conduct(study(arms=arms), tmp_path, command=STUB)
    assert found["facts"]["arm none top1"]["n"] == 2
    assert "wanted at least" in found["facts"]["run none 0"]["gate"]


def test_an_interrupt_ends_the_runs_and_the_next_start_resumes_them(tmp_path: Path) -> None:
    arms = {"a": {"set": {"student.options.behaviour": "wait"}}, "b": {"set": {"student.options.behaviour": "wait"}}}

    def interrupt() -> None:
        while len(list(tmp_path.glob("runs/*/*/waits"))) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Interrupted) as error:
        conduct(study(arms=arms, control=None, seeds=[0], jobs=2), tmp_path, command=STUB)
    thread.join()
    assert error.value.exit_code == 130
    assert f"xarch study {tmp_path}/study.yaml --out {tmp_path}" in str(error.value.hint)
    states = [json.loads(f.read_text())["state"] for f in tmp_path.glob("runs/*/*/status.json")]
    assert states == ["interrupted"] * 2, "every run could write its checkpoint"
    found = conduct(tmp_path / "study.yaml", tmp_path, command=STUB)
    assert found["header"]["finished"]
    assert starts(tmp_path) == {"a/seed-0": 2, "b/seed-0": 2}


@pytest.mark.slow
def test_two_studies_do_not_work_on_one_run(tmp_path: Path) -> None:
    """A process of a study that was killed goes on; its run folder is not given to another one."""
    out = tmp_path / "out"
    file = tmp_path / "s.yaml"
    arms = {"a": {"set": {"student.options.behaviour": "wait"}}}
    file.write_text(yaml.safe_dump(study(arms=arms, control=None, seeds=[0])))
    code = f"from xarch.run.study.conduct import conduct; conduct({str(file)!r}, {str(out)!r}, command={STUB!r})"
    first = subprocess.Popen([sys.executable, "-c", code])
    waits = out / "runs" / "a" / "seed-0" / "waits"
    while not waits.exists():
        assert first.poll() is None
        time.sleep(0.02)
    first.kill()
    first.wait()
    children = [int(p.name) for p in Path("/proc").glob("[0-9]*") if str(out).encode() in _cmdline(p)]
    assert len(children) == 1
    with pytest.raises(UsageError, match="another process is using"):
        conduct(file, out, command=STUB)
    os.kill(children[0], signal.SIGINT)
    while str(out).encode() in _cmdline(Path(f"/proc/{children[0]}")):
        time.sleep(0.02)
    assert conduct(file, out, command=STUB)["header"]["finished"]


def _cmdline(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def test_a_figure_that_nobody_has(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'topl'; available figures: kl, loss, top1"):
        conduct(study(metrics=["topl"]), tmp_path, command=STUB)
    conduct(study(metrics=["top1"]), tmp_path, command=STUB)
    assert set(starts(tmp_path).values()) == {1}


def test_progress_tells_how_long_it_takes(tmp_path: Path) -> None:
    seen: list[str] = []
    conduct(study(), tmp_path, command=STUB, watch=lambda event, progress: seen.append(f"{event}|{progress}"))
    assert any("kd seed 1 done" in line and "4/4 runs done" in line for line in seen)
    assert any("left" in line for line in seen)
