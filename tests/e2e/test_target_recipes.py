"""A target of every plugin by its default recipe, from the command line to a checked file and a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xarch.cli.app import run
from xarch.registry.loader import get_registry
from xarch.testing.models import student_family

# The conformance kit converts every target by its default recipe.
BY_PLUGIN = {spec.plugin: spec for spec in reversed(get_registry().specs("target"))}
TARGETS = [pytest.param(spec, id=spec.name) for spec in BY_PLUGIN.values()]


@pytest.mark.slow
@pytest.mark.parametrize("spec", TARGETS)
def test_a_target_converts_by_its_recipe(
    spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """house 1.2: every export was "ready" for every target, also those that a target refuses. The profiles other than
    `cpu` are tried by `tests/export/test_pairs_and_profiles.py`."""
    monkeypatch.setenv("XARCH_HOME", str(tmp_path / "home"))
    family = get_registry().create("family", spec.accepts[0])
    out = tmp_path / "run"
    chosen = {
        **student_family(spec).tiny_run(tmp_path),
        "export.bench": False,
        "runtime.device": "cpu",
        "runtime.threads": 1,
        "runtime.tensorboard": False,
    }
    data = chosen.pop("data.ref")
    sets = [part for key, value in chosen.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    command = ["--teacher", family.tiny_teacher(tmp_path), "--to", spec.name, "--data", data, "--tiny", "--yes"]
    assert run(["convert", *command, *sets, "--out", str(out)]) == 0, capsys.readouterr().err
    plan = json.loads((out / "plan.json").read_text())
    assert plan["config"]["recipe"] in spec.data["recipes"]
    assert json.loads((out / "status.json").read_text())["state"] == "done"
    assert json.loads((out / "export" / "cpu" / "parity.json").read_text())["passed"]
    assert (out / "report.html").is_file()
    assert run(["report", str(out), "--out", str(tmp_path / "again")]) == 0
