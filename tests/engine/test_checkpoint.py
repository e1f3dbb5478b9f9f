"""Checkpoints: whole or absent, verified, bounded in number."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from xarch.engine import checkpoint as room
from xarch.engine.checkpoint import CheckpointFolder, assert_handover
from xarch.errors import UsageError


def _save(store: CheckpointFolder, step: int, *, final: bool = False) -> None:
    store.save(step, model={"w": torch.full((3,), float(step))}, trainer={}, state={"at": step}, final=final)


def test_the_newest_is_found_and_old_ones_go(tmp_path: Path) -> None:
    store = CheckpointFolder(tmp_path, print)
    for step in (1, 2, 3):
        _save(store, step)
    found = store.latest()
    assert found is not None
    assert (found.step, found.state, found.model["w"].tolist()) == (3, {"at": 3}, [3.0, 3.0, 3.0])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-2", "step-3"]


def test_a_full_disk_is_named_and_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointFolder(tmp_path, print)
    _save(store, 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(room, "save_tensors", full)
    with pytest.raises(OSError, match="No space left") as caught:
        _save(store, 2)
    assert caught.value.filename == str(tmp_path / "step-2")
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]
    found = store.latest()
    assert found is not None
    assert found.step == 1


@pytest.mark.parametrize("file", ["model.safetensors", "trainer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["cut", "flip", "gone"])
def test_any_damage_falls_back_to_the_one_before(file: str, harm: str, tmp_path: Path) -> None:
    said: list[str] = []
    store = CheckpointFolder(tmp_path, said.append)
    _save(store, 1)
    _save(store, 2)
    target = tmp_path / "step-2" / file
    content = target.read_bytes()
    if harm == "gone":
        target.unlink()
    else:
        target.write_bytes(content[: len(content) // 2] if harm == "cut" else bytes([content[0] ^ 255]) + content[1:])
    found = store.latest()
    assert found is not None
    assert found.step == 1
    assert "is damaged" in said[0]


def test_progress_of_another_format_is_told_and_passed_over(tmp_path: Path) -> None:
    said: list[str] = []
    store = CheckpointFolder(tmp_path, said.append)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "FORMAT", 2)
        _save(store, 1)
    assert store.latest() is None
    assert "step-1 has format 2, this xarch resumes from 4" in said[0]


def test_what_decides_bits_is_kept_with_the_newest_sound_checkpoint(tmp_path: Path) -> None:
    for stage, steps in (("01-a", (9, 10)), ("02-b", (2,))):
        (tmp_path / stage / "checkpoints").mkdir(parents=True)
        for step in steps:
            facts = {"stage": stage, "step": step}
            _save(CheckpointFolder(tmp_path / stage / "checkpoints", print, lambda facts=facts: facts), step)
    assert room.kept_facts(tmp_path) == {"stage": "02-b", "step": 2}
    manifest = tmp_path / "02-b" / "checkpoints" / "step-2" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("02-b", "02-c"))
    assert room.kept_facts(tmp_path) == {"stage": "01-a", "step": 10}
    assert room.kept_facts(tmp_path / "none") is None


def test_another_student_is_refused_at_a_stage_border() -> None:
    with pytest.raises(UsageError, match="would not start from the student"):
        assert_handover("a" * 64, "b" * 64, "hidden")
