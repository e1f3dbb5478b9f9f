"""What a user can get wrong about fields: a usage error that names it, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.plugins.pvd.tiny_field import OPTIONS_OF, write_teacher
from xarch import UsageError
from xarch.api import plan
from xarch_pvd.source.field_file import KEY, load_field_file
from xarch_pvd.targets.representations.records import from_file
from xarch_pvd.train import train


def test_a_wrong_sample_is_refused_while_planning(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "recipe": "pvd",
        "teacher": write_teacher(tmp_path / "teacher.safetensors"),
        "student.target": "vm",
        "student.options": OPTIONS_OF["vm"],
        "export.profiles": [],
        "stages.rays.sample": {"kind": "cubes"},
    }
    with pytest.raises(UsageError, match=r"sample\.kind: .*'points' or 'rays'.*seen 'cubes'"):
        plan(overrides=given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {**OPTIONS_OF["vm"], "density_rank": -1}}, r"options\.density_rank.*seen -1"),
        ({"options": {**OPTIONS_OF["vm"], "resolution": 25}}, "expected"),
        ({"views": {"width": 3, "lens": "fish"}}, "damaged.*lens"),
        ({"aabb": 7}, "damaged"),
        ({"arch": "sparse"}, "sparse"),
        ({"format": 99}, "format"),
    ],
)
def test_a_damaged_header_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = tmp_path / "teacher.safetensors"
    write_teacher(file)
    rewrite(file, lambda head: json.dumps({**json.loads(head), **change}))
    with pytest.raises(UsageError, match=message):
        from_file(load_field_file(file)[0])


@pytest.mark.parametrize("text", ["{", "[]", "7"])
def test_a_header_that_is_no_object_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "teacher.safetensors"
    write_teacher(file)
    rewrite(file, lambda head: text)
    with pytest.raises(UsageError, match=r"header of .*(not valid JSON|should be a dictionary)"):
        load_field_file(file)


def test_grids_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    file = tmp_path / "teacher.safetensors"
    write_teacher(file)
    record, _ = load_field_file(file)
    tensors = {k: v for k, v in record.tensors.items() if k != "color_lines.2"}
    broken = type(record)(arch="vm", options=record.options, tensors=tensors, aabb=record.aabb)
    with pytest.raises(UsageError, match="differ in the number or size"):
        from_file(broken)


def test_nothing_is_trained_for_a_file_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")

    def never(*_: Any, **__: Any) -> float:
        raise AssertionError("training started")

    monkeypatch.setattr(train, "train_field", never)
    with pytest.raises(UsageError, match="cannot be written"):
        train.train_from_pictures(
            str(tmp_path), arch="vm", options={}, steps=1, seed=0, out=tmp_path / "taken" / "field.safetensors"
        )


def rewrite(file: Path, change: Any) -> None:
    """The same tensors under another header."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        head = opened.metadata()[KEY]
    tensors: dict[str, torch.Tensor] = load_file(file)
    save_file(tensors, file, {KEY: change(head)})
