"""The metric judges exported files, their figures have gates, and a finished run exports again with other options."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xarch.api import convert, export
from xarch.errors import ParityError, QualityError, UsageError
from xarch.files.atomic import read_json
from xarch.registry.loader import get_registry

STACK = Path(__file__).parents[1] / "engine" / "stack_plugin.py"
PLUGIN = """
import sys

import torch
from torch import nn
from xarch import ExportGraph, Options, hookimpl

Low = sys.modules["xarch_plugin_file_stack_plugin"].LowTarget


class Exported(nn.Module):
    def __init__(self, layers, off):
        super().__init__()
        self.layers, self.off = layers, off

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x + self.off


class Choices(Options):
    off: float = 0.0


class Leaving(Low):
    ExportOptions = Choices

    def export_graphs(self, student, profile, options):
        module, x = Exported(student.module.layers, options.off), torch.randn(2, 4, 8)
        return [ExportGraph("model", module, {"x": x}, ["y"], {"x": {0: "rows"}}, reads={"x": "x"},
                            gives={"y": f"layers.{student.facts.layers - 1}.output"})]


@hookimpl
def xarch_register(registry):
    registry.target("leaving", load=f"{__name__}:Leaving", accepts=["stack"], produces="stack")
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    plugin = tmp_path / "leaving.py"
    plugin.write_text(PLUGIN)
    monkeypatch.setenv("XARCH_PLUGIN_FILES", f"{STACK}:{plugin}")
    monkeypatch.setenv("XARCH_HOME", str(tmp_path / "home"))
    get_registry.cache_clear()
    match = {"student": "layers.2.output", "objective": "mse"}
    yield {
        "teacher": "stack:3",
        "student.target": "leaving",
        "data.ref": "noise:8",
        "budget": 64,
        "stages": {
            "s": {"scope": "global", "batch": 4, "share": 1.0, "matches": {"end": match}, "trains": {"all": {}}}
        },
        "evaluate.metric": "stack_mse",
        "evaluate.exports": True,
        "evaluate.baseline": False,
        "export.bench": False,
        "runtime.device": "cpu",
        "runtime.threads": 1,
        "runtime.tensorboard": False,
    }
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


def test_a_file_that_misses_its_gate_ends_the_run(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(QualityError, match=r"exports\.cpu\.mse"):
        convert(overrides={**settings, "gates": {"exports.cpu.mse": {"max": 0.0}}}, out=tmp_path / "run")
    assert read_json(tmp_path / "run" / "export" / "cpu" / "parity.json")["passed"]


def test_a_gate_of_a_file_that_is_not_made_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gates\.exports\.npu\.mse: this figure will not be measured"):
        convert(overrides={**settings, "gates": {"exports.npu.mse": {"max": 1.0}}}, out=tmp_path / "run")
