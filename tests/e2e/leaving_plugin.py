"""The stack family with a target that can be exported, and a conversion of a second with it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xarch import ExportGraph, Options, hookimpl

STACK = Path(__file__).parents[1] / "engine" / "stack_plugin.py"
SETTINGS: dict[str, Any] = {
    "teacher": "stack:3",
    "student.target": "leaving",
    "data.ref": "noise:8",
    "budget": 64,
    "stages": {
        "s": {
            "scope": "global",
            "batch": 4,
            "share": 1.0,
            "matches": {"end": {"student": "layers.2.output", "objective": "mse"}},
            "trains": {"all": {}},
        }
    },
    "evaluate.metric": "stack_mse",
    "evaluate.exports": True,
    "evaluate.baseline": False,
    "export.bench": False,
    "runtime.device": "cpu",
    "runtime.threads": 1,
    "runtime.tensorboard": False,
}
"""Overrides of a conversion."""


# The family is a plugin file of its own, loaded before this one; the settings above are read without it.
_stack = sys.modules.get("xarch_plugin_file_stack_plugin")
LowTarget: Any = _stack.LowTarget if _stack is not None else object


class Exported(nn.Module):
    def __init__(self, layers, off):
        super().__init__()
        self.layers, self.off = layers, off

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return (x + self.off,)


class Choices(Options):
    off: float = 0.0


class Leaving(LowTarget):
    ExportOptions = Choices

    def export_graphs(self, student, profile, options):
        module, x = Exported(student.module.layers, options.off), torch.randn(2, 4, 8)
        return [
            ExportGraph(
                "model",
                module,
                {"x": x},
                ["y"],
                {"x": {0: "rows"}},
                reads={"x": "x"},
                gives={"y": f"layers.{student.facts.layers - 1}.output"},
            )
        ]


@hookimpl
def xarch_register(registry):
    registry.target("leaving", load=f"{__name__}:Leaving", accepts=["stack"], produces="stack")
