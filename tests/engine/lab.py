"""Runs conversions of one stage in this process, to look at what the stage did."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from safetensors.torch import load_file
from torch import Tensor

from xarch.config.load import load_config
from xarch.files.bounded_json import read_json
from xarch.files.run_dir import RunDir
from xarch.planning.build import build_plan
from xarch.planning.plan import Plan
from xarch.registry.loader import load_registry
from xarch.registry.registry import Registry
from xarch.report.plots import canvas
from xarch.run.conversion import Conversion
from xarch.run.head import begin_run

HERE = Path(__file__).parent
LAST = {"student": "layers.2.output", "objective": "seen"}


@functools.cache
def registry() -> Registry:
    """With the plugins of these tests."""
    sys.path.insert(0, str(HERE))
    return load_registry([str(HERE / "stack_plugin.py"), str(HERE / "lab_plugin.py")])


@dataclass
class Finished:
    """A run's folder after a stage ``s``."""

    folder: Path
    conversion: Conversion

    @functools.cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of its optimiser steps."""
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [row for row in map(json.loads, lines) if "lr" in row]

    @functools.cached_property
    def weights(self) -> dict[str, Tensor]:
        """Of the finished student."""
        return load_file(self.folder / "student" / "model.safetensors")

    @property
    def summary(self) -> dict[str, Any]:
        """Of the stage."""
        found: dict[str, Any] = read_json(self.folder / "stages" / "01-s" / "summary.json")
        return found

    @property
    def log(self) -> str:
        """What was said."""
        return (self.folder / "log.txt").read_text()


def planned(stage: Mapping[str, Any], **changes: Any) -> Plan:
    """The plan of a conversion with one stage ``s``; ``changes`` are configuration keys, "__" for a dot."""
    whole = {
        "scope": "global",
        "trains": {"all": {}},
        "batch": 8,
        "units": 8 * 4 * 6,
        "optimiser": {"lr": 0.02, "schedule": "constant"},
        **stage,
    }
    overrides = {
        "teacher": "stack:3",
        "student.target": "low",
        "data.ref": "noise:8",
        "stages": {"s": whole},
        "export.profiles": [],
        "evaluate.baseline": False,
        "runtime.device": "cpu",
        "runtime.threads": 1,
        "runtime.tensorboard": False,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    config = load_config(None, sets=[], overrides=overrides).config
    return build_plan(config, registry(), name="lab", provenance={}, command="", say=lambda text: None)


def undrawn() -> AbstractContextManager[object]:
    """Half of so small a conversion's time is drawing, and nobody looks at these pictures."""

    def nothing(paper: Any, file: Any, **options: Any) -> None:
        file.write('<svg viewBox="0 0 1 1"></svg>')

    return mock.patch.object(canvas.FigureCanvasSVG, "print_svg", nothing)


def run(folder: Path, stage: Mapping[str, Any], **changes: Any) -> Finished:
    """A whole conversion with one stage ``s``."""
    plan = planned(stage, **changes)
    conversion = Conversion(plan, begin_run(plan, folder / "run"), registry())
    with undrawn():
        conversion.run()
    return Finished(folder / "run", conversion)


def resume(folder: Path) -> Finished:
    """Go on with an interrupted one."""
    opened = RunDir.open(folder / "run")
    conversion = Conversion(Plan.model_validate(read_json(opened.plan)), opened, registry())
    with undrawn():
        conversion.run()
    return Finished(folder / "run", conversion)
