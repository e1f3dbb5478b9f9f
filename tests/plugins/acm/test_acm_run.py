"""Whole conversions: operating points, an interruption among sampled gates, and what may be done with the result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import xarch
from tests.engine.interrupted import Crash, assert_ends_as
from tests.plugins.acm.acm_models import tiny_vit
from xarch import PlanError
from xarch.files.run_dir import RunDir
from xarch.run.evaluate import Evaluator
from xarch.testing.models import tiny_configuration

pytestmark = pytest.mark.slow

LOCAL, STEPS = 4, 7


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("image")
    local = {
        f"stages.{name}.{key}": value
        for name in ("distil", "gates")
        for key, value in {"share": None, "units": 6 * LOCAL, "batch": 6, "log_every": 1}.items()
    }
    return {
        **tiny_configuration("image", folder),
        "teacher": tiny_vit(folder),
        "student.target": "acm",
        "student.options": {"budgets": [0.25, 0.5], "temperature": 0.8},
        "evaluate": {"samples": 12, "batch": 6, "baseline": False, "exports": True},
        "export.profiles": ["cpu"],
        "export.options": {"mode": "static_budget", "budget": 0.25, "every_point": True},
        **local,
        "stages.budget.share": None,
        "stages.budget.epochs": None,
        "stages.budget.units": 6 * STEPS,
        "stages.budget.batch": 6,
        "stages.budget.checkpoint_every": 2,
        "stages.budget.log_every": 1,
        "stages.threshold.options": {"samples": 6},
        "stages.tables.options": {"samples": 6},
        "tiny": False,
    }


@pytest.fixture(scope="module")
def whole(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return xarch.convert(overrides=settings, out=tmp_path_factory.mktemp("whole") / "run").path


def test_every_budget_is_an_operating_point_with_its_cost(whole: Path) -> None:
    found = json.loads((whole / "eval.json").read_text())
    assert list(found["variants"]) == [
        *("gated-25", "static-25", "bucketed-25", "shuffled-25"),
        *("gated-50", "static-50", "bucketed-50", "shuffled-50"),
    ]
    executed = {name: figures["executed"] for name, figures in found["variants"].items()}
    assert executed["static-25"] <= 0.25
    assert executed["static-50"] == pytest.approx(0.5)
    assert executed["gated-25"] <= executed["gated-50"]
    assert 0 <= found["student"]["executed"] <= 1.1
    assert found["baselines"]["truncated-50"]["executed"] == pytest.approx(0.5)
    assert list(found["controls"]) == ["truncated-50"]
    tables = json.loads((whole / "student" / "config.json").read_text())["decisions"]["tables"]
    assert [row["budget"] for row in tables] == [0.25, 0.5]
    [summary] = [json.loads(f.read_text()) for f in (whole / "stages").glob("*-tables/summary.json")]
    assert set(summary["per_site"]) == {"fixed.25", "fixed.50", "mean", "deviation", *(f"share.{k}" for k in range(5))}
    assert sum(next(iter(summary["per_site"][f"share.{k}"].values())) for k in range(5)) == pytest.approx(1)
    profile = json.loads((whole / "export" / "cpu" / "profile.json").read_text())
    assert profile["graphs"]["model"]["variant"] == "static-25"
    points = {name: figures["top1"] for name, figures in found["variants"].items() if "shuffled" not in name}
    files = {name.partition(".")[2] or "static-25": figures["top1"] for name, figures in found["exports"].items()}
    assert files == points, "every file is measured too"
    report = (whole / "report.md").read_text()
    assert "## Quality and computation" in report
    assert "gated-25" in report


def test_what_an_interrupted_evaluation_of_files_lacks_is_measured_on_resume(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    run = RunDir.open(tmp_path / "run")
    found = dict(run.read_evaluation())
    lost = found["exports"].pop("cpu.static-50")
    with run.held():
        run.write_json(run.eval_json, found)
        run.status.unlink()
    measured: list[str] = []
    real = Evaluator.evaluate_export
    monkeypatch.setattr(
        Evaluator, "evaluate_export", lambda self, name, model: (measured.append(name), real(self, name, model))
    )
    xarch.convert(out=tmp_path / "run", resume=True)
    assert measured == ["cpu.static-50"]
    assert json.loads(run.eval_json.read_text())["exports"]["cpu.static-50"] == lost


def test_an_interrupted_run_draws_the_same_gates(settings: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    assert_ends_as(whole, settings, Crash(STEPS, 5), tmp_path / "broken")


def test_gates_are_never_dropped_by_another_conversion(settings: dict[str, Any], whole: Path) -> None:
    with pytest.raises(PlanError, match="students of AcmStudent cannot be teachers"):
        xarch.load_teacher(f"run:{whole}")
