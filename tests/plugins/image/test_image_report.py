"""Sections of the report about image classifiers."""

from __future__ import annotations

import re
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


def test_long_tails_are_shown_by_frequency_with_a_line_for_every_model(tmp_path: Path) -> None:
    groups = [
        {"name": "head", "classes": 1, "most": 90, "least": 90},
        {"name": "tail", "classes": 2, "most": 9, "least": 3},
    ]
    recall = [
        {"class": n, "images": n, "teacher": 0.9, "student": 0.5, "beside": {"variants.dist": s, "cut": 0.1}}
        for n, s in ((3, 0.01), (90, 0.75), (9, 0.5))
    ]
    figures = {"top1": 0.5, "recall.head": 0.75, "recall.tail": 0.375, "ece": 0.1, "ece.head": 0.0, "ece.tail": 0.2}
    found = {"teacher": {}, "student": figures, "variants": {"dist": figures}, "baselines": {"cut": figures}}
    found["exports"] = {"cpu-int8": {**figures, "recall.tail": 0.25}}
    found["samples"] = [{"recall": recall}, {"groups": groups}]
    (section,) = (s for s in sections(RunInfo(tmp_path, eval=found)) if s.title == "Classes by frequency")
    text, table, figure = section.blocks
    assert "head: 1 class with 90 each; tail: 2 classes with 9 to 3 each" in text.text
    assert [row[0] for row in table.rows] == ["student", "student, dist", "exported, cpu-int8", "cut"]
    assert table.rows[2][3] == "25.0 %"
    assert table.rows[0][1:] == ["50.0 %", "75.0 %", "37.5 %", "10.0 %", "0.0 %", "20.0 %"]
    assert "student, dist 0.7500 → 0.01000" in figure.text
    said = set(re.findall(r">([^<>]*)</text>", figure.svg))
    assert {"0", "1", "rank of the class"} <= said, "shares on a linear axis"
    assert all(name in figure.svg for name in ("teacher", "student, dist", "cut"))
    assert not [s for s in sections(RunInfo(tmp_path, eval={"samples": [{"recall": recall}]})) if "freq" in s.title]
