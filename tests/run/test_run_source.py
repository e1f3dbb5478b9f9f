"""``run:`` teachers: complete students only, and the refusal comes while planning."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from xarch.api import plan
from xarch.errors import PlanError, UsageError
from xarch.planning.resolve import resolve_target, resolve_teacher
from xarch.registry.loader import get_registry
from xarch.run.run_source import RunSource
from xarch.run.student_io import save_student
from xarch_decoder.testing import tiny_llama, tiny_text


@pytest.fixture
def hybrid(tmp_path: Path) -> Path:
    """A saved student whose second layer lost its attention."""
    registry = get_registry()
    source = resolve_teacher(registry, tiny_llama(tmp_path / "teacher"), {}, print)
    teacher = source.adapter.load(source.ref, source.options, device=torch.device("cpu"), dtype=torch.float32)
    target = resolve_target(registry, "dm2", {"layers": {"replace": [1]}})
    student = target.adapter.build(teacher.facts, target.options, {}, device=torch.device("cpu"))
    target.adapter.initialise(student, teacher)
    folder = tmp_path / "run" / "student"
    save_student(
        folder,
        student,
        target="dm2",
        plugin=target.plugin,
        options=target.options.model_dump(mode="json"),
        decisions={},
        teacher=None,
        teacher_facts={"ref": "made", "title": "made", "fingerprint": "0"},
    )
    return folder.parent


def test_a_student_with_replaced_modules_is_refused_while_planning(hybrid: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"cannot be a teacher: .* blocks\.1\.matrix"):
        plan(
            overrides={
                "teacher": f"run:{hybrid}",
                "student.target": "dm2",
                "student.options.layers": {"replace": [0]},
                "data.ref": tiny_text(tmp_path / "text.txt"),
                "data.options": {"tokenizer": "bytes"},
            }
        )


def test_a_folder_without_a_student_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no student"):
        RunSource().describe(str(tmp_path), RunSource.Options())
