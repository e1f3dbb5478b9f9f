"""Conformance of stage kinds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from xarch.config.validation import validated
from xarch.errors import UsageError
from xarch.files.digest import weights_digest
from xarch.testing.models import tiny_configuration
from xarch.testing.values import registered


class StageConformance:
    """Subclass it with ``kind = "NAME"``, the family of the test teacher, and a target.

    Class attributes:
        kind: its name, or ``plugin:name``.
        family, target: what is converted into what.
        settings: the stage's configuration except its kind: matches, trains, units, batch, options.
        before: stages that run first, e.g. one that trains the modules this one selects.
        values: dotted key -> further value of the conversion.
    """

    kind: ClassVar[str] = ""
    family: ClassVar[str] = ""
    target: ClassVar[str] = ""
    settings: ClassVar[Mapping[str, Any]] = {}
    before: ClassVar[Mapping[str, Any]] = {}
    values: ClassVar[Mapping[str, Any]] = {}

    def configuration(self, folder: Path) -> dict[str, Any]:
        """Values of the conversion, dotted keys."""
        return {
            **tiny_configuration(self.family, folder),
            "student.target": self.target,
            "stages": {**self.before, "tested": {**self.settings, "kind": self.kind}},
            "export.profiles": [],
            "evaluate.baseline": False,
            **self.values,
        }

    def _convert(self, folder: Path, name: str) -> tuple[Any, str]:
        from xarch.api import convert, load

        folder.mkdir(exist_ok=True)
        run = convert(overrides=self.configuration(folder), out=folder / name)
        return run, weights_digest(load(run.path).state_dict())

    def test_unknown_options_are_refused(self) -> None:
        kind = registered("stage", self.kind)
        options = self.settings.get("options", {})
        validated(kind.Options, options, "stages.tested.options")
        with pytest.raises(UsageError):
            validated(kind.Options, {**options, "no_such_option": 1}, "stages.tested.options")

    def test_it_runs_and_repeats(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A conversion with it succeeds, its figures are JSON, and equal seeds yield equal students."""
        monkeypatch.setenv("XARCH_HOME", str(tmp_path / "home"))
        one, first = self._convert(tmp_path / "one", "run")
        assert one.status["state"] == "done"
        outcomes = sorted((one.path / "stages").glob("*-tested/*.json"))
        assert all(json.loads(f.read_text(encoding="utf-8")) is not None for f in outcomes)
        _, second = self._convert(tmp_path / "one", "again")
        assert first == second, "two runs with the same seed produce different students"
