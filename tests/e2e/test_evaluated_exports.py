"""The metric judges exported files, their figures have gates, and a finished run exports again with other options."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.leaving_plugin import SETTINGS, STACK
from xarch.api import bench, convert, evaluate, export, report
from xarch.errors import ParityError, QualityError, UsageError
from xarch.files.bounded_json import read_json
from xarch.registry.loader import get_registry


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    monkeypatch.setenv("XARCH_PLUGIN_FILES", f"{STACK}:{Path(__file__).with_name('leaving_plugin.py')}")
    monkeypatch.setenv("XARCH_HOME", str(tmp_path / "home"))
    get_registry.cache_clear()
    yield SETTINGS
    get_registry.cache_clear()


def test_the_files_figures_stand_in_eval_json_and_options_can_change(settings: dict[str, Any], tmp_path: Path) -> None:
    """vision 2.19 and encdec W11."""
    run = convert(overrides={**settings, "gates": {"exports.cpu.mse": {"max": 1e9}}}, out=tmp_path / "run").path
    found = read_json(run / "eval.json")
    assert found["exports"]["cpu"]["mse"] == pytest.approx(found["student"]["mse"], rel=1e-4)
    with pytest.raises(UsageError, match=r"export\.options\.of"):
        export(run, "cpu", sets=["export.options.of=1"])
    with pytest.raises(UsageError, match="a finished run can change export, evaluate only"):
        export(run, "cpu", sets=["budget=3"])
    with pytest.raises(ParityError, match="does not reproduce the student"):
        export(run, "cpu", sets=["export.options.off=1"])
    assert export(run, "cpu")["passed"]
    told = (run / "export" / "cpu" / "README.md").read_text(encoding="utf-8")
    assert "has no program for these graphs" in told
    assert "states no licence" in told
    again = evaluate(run, sets=["evaluate.samples=1"])
    assert again["n"] < found["n"]
    assert again["exports"]["cpu"]["mse"] == pytest.approx(again["student"]["mse"], rel=1e-4), "files are judged again"
    with pytest.raises(UsageError, match="a finished run can change evaluate only"):
        evaluate(run, sets=["gates.mse.max=1"])
    assert bench(run, sets=["runtime.threads=1"])["cpu"]["threads"] == 1
    with pytest.raises(UsageError, match=r"runtime\.thread: unknown key"):
        bench(run, sets=["runtime.thread=1"])
    page = report(run, sets=["report.title=Mine", "report.limits=Only a test"])
    assert "<h1>Mine" in page.read_text(encoding="utf-8")
    assert "- Only a test" in (run / "student" / "README.md").read_text(encoding="utf-8")


def test_a_file_that_misses_its_gate_ends_the_run(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(QualityError, match=r"exports\.cpu\.mse"):
        convert(overrides={**settings, "gates": {"exports.cpu.mse": {"max": 0.0}}}, out=tmp_path / "run")
    assert read_json(tmp_path / "run" / "export" / "cpu" / "parity.json")["passed"]


def test_a_gate_of_a_file_that_is_not_made_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gates\.exports\.npu\.mse: this figure will not be measured"):
        convert(overrides={**settings, "gates": {"exports.npu.mse": {"max": 1.0}}}, out=tmp_path / "run")
