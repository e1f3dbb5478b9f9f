"""Recall by class frequency over the arms and seeds of a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality.by_frequency import recalls


def write(folder: Path, recall: dict[int, float], **more: Any) -> None:
    folder.mkdir(parents=True)
    rows = [{"class": n, "images": n, "student": share, **more} for n, share in recall.items()]
    (folder / "eval.json").write_text(json.dumps({"samples": [{"cka": []}, {"recall": rows}]}))


def test_classes_are_sorted_and_averaged_over_the_seeds_that_all_arms_have(tmp_path: Path) -> None:
    beside = {"teacher": 0.9, "beside": {"variants.dist": 0.3}}
    write(tmp_path / "runs" / "a" / "seed-0", {5: 0.2, 90: 0.8}, **beside)
    write(tmp_path / "runs" / "a" / "seed-1", {90: 0.6, 5: 0.4}, **beside)
    write(tmp_path / "runs" / "a" / "seed-2", {5: 1.0, 90: 1.0}, **beside)
    write(tmp_path / "runs" / "b" / "seed-0", {5: 0.1, 90: 0.1})
    write(tmp_path / "runs" / "b" / "seed-1", {5: 0.1, 90: 0.3})
    found = recalls(tmp_path, ["a", "b"], variants=True)
    assert list(found) == ["a", "teacher", "a, dist", "b"]
    assert found["a"] == pytest.approx([0.7, 0.3])
    assert found["b"] == pytest.approx([0.2, 0.1])
    assert found["teacher"] == pytest.approx([0.9, 0.9])
    assert found["a, dist"] == pytest.approx([0.3, 0.3])
