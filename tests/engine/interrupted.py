"""Runs that end between two checkpoints, are resumed, and must end as if they had not been interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import xarch
from xarch import PluginError
from xarch.engine.events import Reporter


class Crash(Reporter):
    """Fails at a step of the first stage that has so many.

    Args:
        steps: of the stage. at: the step.
    """

    def __init__(self, steps: int, at: int) -> None:
        self.steps, self.at = steps, at

    def step(self, step: int, steps: int, metrics: Any, units: int) -> None:
        if (steps, step) == (self.steps, self.at):
            raise ValueError("the power went off")


def rows(run: Path) -> list[dict[str, Any]]:
    """Return the logged steps without what depends on the clock."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "per_second", "eta")
    return [{k: v for k, v in row.items() if not any(t in k for t in timed)} for row in found if "loss" in row]


def assert_ends_as(whole: Path, settings: dict[str, Any], crash: Crash, broken: Path) -> None:
    """Convert with an interruption and a resumption; students and metrics are those of the whole run."""
    with pytest.raises(PluginError, match="the power went off"):
        xarch.convert(overrides=settings, out=broken, reporter=crash)
    xarch.convert(resume=True, out=broken)
    one, two = (load_file(run / "student" / "model.safetensors") for run in (whole, broken))
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[key]) for key, value in one.items())
    assert rows(whole) == rows(broken)
