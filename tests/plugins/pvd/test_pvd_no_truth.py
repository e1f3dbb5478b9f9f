"""A conversion opens no picture: without them it gives the same student."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import xarch
from tests.plugins.pvd.tiny_field import SIZE, write_teacher
from xarch import file_digest
from xarch_pvd.train import scene


@pytest.mark.slow
def test_pictures_may_be_deleted(tmp_path: Path) -> None:
    teacher = write_teacher(tmp_path / "teacher.safetensors")
    folder = scene.write_scene(tmp_path / "scene", views=4, size=SIZE, val=1, test=2)
    with_pictures = converted(teacher, folder, tmp_path / "with")
    for picture in folder.rglob("*.png"):
        picture.unlink()
    without = converted(teacher, folder, tmp_path / "without")
    first, second = (file_digest(run / "student/model.safetensors") for run in (with_pictures, without))
    assert first == second
    assert lines(with_pictures) == lines(without)
    judged, alone = (json.loads((run / "eval.json").read_text())["student"] for run in (with_pictures, without))
    assert "psnr" in judged
    assert "psnr" not in alone
    assert judged["psnr_teacher"] == alone["psnr_teacher"]


def converted(teacher: str, folder: Path, out: Path) -> Path:
    """All three stages, a few steps each; rays of the folder's own cameras."""
    overrides: dict[str, Any] = {
        "recipe": "pvd",
        "teacher": teacher,
        "student.target": "cp",
        "student.options": {"resolution": 16, "density_rank": 4, "colour_rank": 6},
        "data.ref": f"views:{folder}",
        "data.options": {"poses": "given"},
        "budget": 16_000,
        "evaluate.samples": 2,
        "evaluate.baseline": False,
        "export.profiles": [],
        "runtime.threads": 1,
        "runtime.tensorboard": False,
    }
    return xarch.convert(overrides=overrides, out=out).path


def lines(run: Path) -> list[dict[str, Any]]:
    """Every logged step."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
