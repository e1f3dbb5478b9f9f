"""Conversions of the stack family in this process, with plugins of a test's own beside it."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from xarch.registry.loader import get_registry

STACK = Path(__file__).parents[1] / "engine" / "stack_plugin.py"

HEAD = """
import torch
from torch import nn
import xarch
from xarch import hookimpl
from xarch.registry.loader import get_registry
import sys
stack = sys.modules["xarch_plugin_file_stack_plugin"]
"""


class StackCase:
    """Makes plans and runs in a home of its own.

    Args:
        folder: for the home, plugins and runs.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        monkeypatch.setenv("XARCH_HOME", str(folder / "home"))
        monkeypatch.setenv("XARCH_DISABLE_PLUGINS", "all")
        self.use()

    def use(self, *sources: str) -> None:
        """The stack family and plugins from source text; ``stack`` is the family's module in them."""
        files = [str(STACK)]
        for number, source in enumerate(sources):
            file = self.folder / f"own{number}.py"
            file.write_text(
                HEAD + "import sys\nstack = sys.modules['xarch_plugin_file_stack_plugin']\n" + dedent(source)
            )
            files.append(str(file))
        self.monkeypatch.setenv("XARCH_PLUGIN_FILES", os.pathsep.join(files))
        get_registry.cache_clear()

    def configuration(self, **changes: Any) -> dict[str, Any]:
        """A global stage of a few steps; dotted keys are written with two underscores."""
        plain = {
            "teacher": "stack:3",
            "student.target": "low",
            "data.ref": "noise:8",
            "export.profiles": [],
            "evaluate.samples": 2,
            "runtime.device": "cpu",
            "runtime.threads": 1,
            "runtime.tensorboard": False,
            "stages": {"end": self.stage()},
        }
        return {**plain, **{key.replace("__", "."): value for key, value in changes.items()}}

    @staticmethod
    def stage(**changes: Any) -> dict[str, Any]:
        """A stage that trains the student on the teacher's last layer."""
        match = {"student": "layers.2.output", "objective": "mse"}
        trained = {"scope": "global", "matches": {"last": match}, "trains": {"all": {}}, "units": 64, "batch": 4}
        return {**trained, **changes}

    def plan(self, **changes: Any) -> Any:
        """A plan."""
        from xarch.api import plan

        return plan(overrides=self.configuration(**changes))

    def convert(self, **changes: Any) -> Any:
        """A run."""
        from xarch.api import convert

        return convert(overrides=self.configuration(**changes), out=self.folder / "run")
