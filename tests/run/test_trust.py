"""A run survives what a file, a second process or a killed one does to it, or says exactly what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.run.stack_case import StackCase
from xarch import api
from xarch.engine.events import Reporter
from xarch.errors import BusyError, StorageError, UsageError, XarchError
from xarch.files.run_dir import RunDir
from xarch.kernels import dispatch
from xarch.run import deciding
from xarch.run.head import begin_run


def everything(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def done(stack: StackCase) -> Path:
    """A finished run."""
    return Path(stack.convert().path)


class Breaks(Reporter):
    """Does something when a phase or stage begins."""

    def __init__(self, when: str, what: Any) -> None:
        self.when, self.what = when, what

    def phase(self, name: str, detail: str = "") -> None:
        if name == self.when:
            self.what()

    def stage_started(self, index: int, total: int, name: str, kind: str, steps: int) -> None:
        self.phase("stage")


class Killed(BaseException):
    """Stands for SIGKILL: nobody catches it to clean up."""


def killed(stack: StackCase, monkeypatch: pytest.MonkeyPatch, when: str) -> Path:
    """A run whose process was killed when a phase began."""
    from xarch.run.conversion import Conversion

    def kill() -> None:
        raise Killed

    out = stack.folder / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Conversion, "_end_by", lambda *_, **__: None)
        with pytest.raises(Killed):
            api.convert(overrides=stack.configuration(), out=out, reporter=Breaks(when, kill))
    return out


def test_a_second_process_is_refused_whatever_it_would_write(done: Path) -> None:
    before = everything(done)
    holder = RunDir(done)
    (done / "export").mkdir()
    (done / ".report.html.tmp-7").write_text("being written")
    holder.lock.acquire()
    try:
        (done / "report.md").unlink()
        for command in (
            lambda: api.convert(resume=True, out=done),
            lambda: api.evaluate(done),
            lambda: api.export(done, "cpu"),
            lambda: api.bench(done),
        ):
            with pytest.raises(BusyError, match="is in use: process"):
                command()
        api.load_student(done)
    finally:
        holder.lock.release()
    after = everything(done)
    assert {k: v for k, v in after.items() if k in before and k != ".lock"} == {
        k: v for k, v in before.items() if k not in ("report.md", ".lock")
    }
    assert ".report.html.tmp-7" in after
    api.convert(resume=True, out=done)
    assert not (done / ".report.html.tmp-7").exists()


def test_reading_commands_change_nothing(done: Path) -> None:
    (done / ".eval.json.tmp-7").write_text("being written")
    before = everything(done)
    api.load_student(done)
    RunDir.open(done).faults()
    from xarch.run.inspection import inspect

    assert inspect(str(done))["state"] == "done"
    assert everything(done) == before


@pytest.mark.parametrize("existing", [False, True])
def test_a_kill_before_the_plan_blocks_nothing(existing: bool, stack: StackCase, monkeypatch: Any) -> None:
    out, plan = stack.folder / "run", stack.plan()
    if existing:
        out.mkdir()
    from xarch.files import run_dir

    def kill(path: Path, text: str) -> None:
        if path.name == "plan.json":
            raise Killed
        path.write_text(text)

    with monkeypatch.context() as patch:
        patch.setattr(run_dir, "write_text", kill)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(Killed):
            begin_run(plan, out)
    assert not (out / "plan.json").exists()
    begin_run(plan, out)
    assert (out / "plan.json").is_file()
    assert [p.name for p in stack.folder.glob(".run.*")] == []
    with pytest.raises(UsageError, match="already holds a run"):
        begin_run(plan, out)


def test_files_of_others_are_not_a_begun_run(stack: StackCase) -> None:
    out = stack.folder / "mine"
    out.mkdir()
    (out / "config.yaml").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        begin_run(stack.plan(), out)
    assert (out / "config.yaml").read_text() == "mine"


def test_a_kill_in_the_report_leaves_a_run_that_is_not_done(stack: StackCase, monkeypatch: pytest.MonkeyPatch) -> None:
    out = killed(stack, monkeypatch, "report")
    assert json.loads((out / "status.json").read_text())["state"] == "running"
    (out / "stages" / "01-end" / ".tmpAbC123").write_bytes(b"left by safetensors")
    api.convert(resume=True, out=out)
    assert {"report.html", "report.md", "student/README.md"} <= everything(out).keys()
    assert not list(out.rglob(".tmp*"))


@pytest.mark.parametrize("lost", ["report.html", "student/README.md", "student", "eval.json", "student/config.json"])
def test_a_finished_run_gets_what_it_lacks(lost: str, done: Path) -> None:
    before = everything(done)
    path = done / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert api.convert(resume=True, out=done).status["state"] == "done"
    after = everything(done)
    same = {
        k for k in before if k.split("/")[0] not in ("log.txt", "manifest.json", ".lock", "status.json", "report.md")
    }
    assert {k: after[k] for k in same - {"report.html"}} == {k: before[k] for k in same - {"report.html"}}
    assert not RunDir(done).faults()


def test_what_only_training_makes_is_not_made_up(done: Path) -> None:
    (done / "metrics.jsonl").unlink()
    with pytest.raises(UsageError, match=r"metrics\.jsonl is missing"):
        api.convert(resume=True, out=done)


def test_a_flipped_bit_in_any_file_is_seen_and_named(done: Path) -> None:
    from xarch.run.inspection import inspect

    for name, content in everything(done).items():
        if name == ".lock":
            continue
        for place in (0, len(content) // 2, len(content) - 1):
            (done / name).write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
            with pytest.raises(XarchError) as caught:
                inspect(str(done))
            assert name in caught.value.what
        (done / name).write_bytes(content)
    inspect(str(done))


READERS: dict[str, tuple[str, ...]] = {
    "student/model.safetensors": ("load_student", "evaluate", "export", "resume"),
    "student/config.json": ("load_student", "evaluate", "export", "resume"),
    "plan.json": ("evaluate", "export", "bench", "report", "resume"),
    "eval.json": ("report", "resume"),
    "metrics.jsonl": ("report", "resume"),
    "stages/01-end/summary.json": ("report", "resume"),
    "stages/01-end/evaluation.json": ("report", "resume", "evaluate"),
}


@pytest.mark.parametrize("name", READERS)
def test_who_reads_a_damaged_file_names_it(name: str, done: Path) -> None:
    commands = {
        "load_student": lambda: api.load_student(done),
        "evaluate": lambda: api.evaluate(done),
        "export": lambda: api.export(done, "cpu"),
        "bench": lambda: api.bench(done),
        "report": lambda: api.report(done),
        "resume": lambda: api.convert(resume=True, out=done),
    }
    content = bytearray((done / name).read_bytes())
    place = content.rindex(b"0")
    content[place] ^= 1
    (done / name).write_bytes(content)
    for command in READERS[name]:
        with pytest.raises(UsageError) as caught:
            commands[command]()
        assert name.rpartition("/")[2] in caught.value.what


@pytest.mark.parametrize("config", [b"[]", b"{}", b"[" * 100_000, b"\xff", b'{"format": 3}', b""])
def test_a_student_that_is_none(config: bytes, done: Path) -> None:
    (done / "student" / "config.json").write_bytes(config)
    with pytest.raises(UsageError, match=r"config\.json"):
        api.load(done)


def test_a_forged_student_takes_no_memory(done: Path) -> None:
    """Its manifest is right, but its configuration claims a size that its weights do not have."""
    from xarch.files.manifest import seal

    file = done / "student" / "config.json"
    config = json.loads(file.read_text())
    for facts in (config["facts"], config["built_from"]["facts"]):
        facts["width"] = 10**7
    file.write_text(json.dumps(config))
    seal(done / "student", leave_out=("README.md",))
    with pytest.raises(UsageError, match="does not fit its config"):
        api.load(done)


def test_a_plan_that_changed_is_refused(stack: StackCase, monkeypatch: pytest.MonkeyPatch) -> None:
    out = killed(stack, monkeypatch, "save")
    run = RunDir(out)
    plan = json.loads(run.plan.read_text())
    plan["config"]["stages"]["end"]["optimiser"]["lr"] = 0.5
    run.plan.write_text(json.dumps(plan))
    with pytest.raises(UsageError, match=r"plan\.json is damaged or was changed"):
        api.convert(resume=True, out=out)
    run.write_json(run.plan, plan)
    for force in (False, True):
        with pytest.raises(UsageError, match="not the plan of this run's checkpoints"):
            api.convert(resume=True, out=out, force=force)


def test_what_decides_bits_is_compared(stack: StackCase, monkeypatch: pytest.MonkeyPatch) -> None:
    out = killed(stack, monkeypatch, "save")
    with monkeypatch.context() as patch:
        patch.setattr(deciding, "_version", lambda package: "0.1" if package == "torch" else "2")
        with pytest.raises(UsageError, match=r"the torch is 0\.1, was") as caught:
            api.convert(resume=True, out=out)
        assert "--force" in str(caught.value.hint)
        assert api.convert(resume=True, out=out, force=True).status["state"] == "done"
    assert "resumed with --force although the numpy is 2, was" in (out / "log.txt").read_text()


def test_another_choice_of_kernels_asks_for_force(stack: StackCase, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = dispatch.Use("causal_conv1d", "cpu", "float32", (), "torch")
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "uses", lambda: [ran])
        out = killed(stack, monkeypatch, "save")
    with dispatch.isolated():
        dispatch.register("causal_conv1d", "newer", priority=10**6)(lambda *args: None)
        with pytest.raises(UsageError, match=r"kernel of causal_conv1d \(float32\) is newer, was torch") as caught:
            api.convert(resume=True, out=out)
        assert "--force" in str(caught.value.hint)
        assert api.convert(resume=True, out=out, force=True).status["state"] == "done"


def test_a_folder_removed_in_the_middle_ends_the_run(stack: StackCase) -> None:
    out = stack.folder / "run"
    for when in ("stage", "save", "report"):
        with pytest.raises(StorageError, match="was removed or replaced"):
            api.convert(overrides=stack.configuration(), out=out, reporter=Breaks(when, lambda: shutil.rmtree(out)))
        assert not out.exists()
