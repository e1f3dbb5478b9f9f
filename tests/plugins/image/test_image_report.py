"""Sections of the report about image classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xarch.report import RunInfo
from xarch_image.report import sections


@pytest.mark.parametrize(
    ("teacher", "shown"),
    [
        ({"dtype": "int8", "speed_up": {"model": 0.5}}, "cpu-int8, model: 0.50× the teacher's speed, int8."),
        ({"dtype": "int8", "speed_up": {"model": 1.5}}, None),
        ({"absent": "it needs BitwiseXor"}, None),
        (None, None),
    ],
)
def test_a_student_that_is_no_faster_is_told(teacher: Any, shown: str | None, tmp_path: Path) -> None:
    found = sections(RunInfo(tmp_path, bench={"cpu-int8": {"teacher": teacher}}))
    texts = [block.text for section in found for block in section.blocks]
    assert texts == ([] if shown is None else [f"The student is not faster than its teacher: {shown}"])
