"""Every study of quality resolves, and its arms differ in what they say they do."""

from __future__ import annotations

from pathlib import Path

import pytest

from xarch.config.load import load_config
from xarch.config.study import load_study
from xarch.run.study.arms import arms_of, runs_of

FOLDER = Path(__file__).parents[2] / "benchmarks" / "quality"
STUDIES = sorted(path for path in FOLDER.glob("*.yaml") if not path.name.startswith("teacher_"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_resolves_and_no_two_arms_are_one(path: Path, tmp_path: Path) -> None:
    study, name, folder = load_study(path)
    alone = study.model_copy(update={"seeds": study.seeds[:1]})
    runs = runs_of(alone, arms_of(alone), folder, tmp_path)
    assert len({run.digest for run in runs}) == len(runs)
    assert study.control
    assert f"--out benchmarks/out/{name}" in path.read_text(), "the head says how it is run"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("teacher_*.yaml")), ids=lambda path: path.stem)
def test_teachers_are_made_where_the_studies_look_for_them(path: Path) -> None:
    config = load_config(str(path)).config
    assert config.teacher == "none"
    folder = f"benchmarks/out/teachers/{path.stem.removeprefix('teacher_')}"
    assert folder in path.read_text()
    assert any(f"run:{folder}" in study.read_text() for study in STUDIES)
