"""Every export profile that ``xarch list pairs`` shows for a target has been passed by a small student of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xarch.api import convert, plan
from xarch.registry.loader import get_registry

TARGETS = [s.name for s in get_registry().specs("target")]
QUICK = ("cp",)


def test_every_target_is_registered_for_some_profile() -> None:
    specs = get_registry().specs("target")
    assert [s.name for s in specs if not s.data.get("profiles") or not s.data.get("recipes")] == []


@pytest.mark.parametrize("name", [pytest.param(t, marks=[] if t in QUICK else [pytest.mark.slow]) for t in TARGETS])
def test_a_small_student_passes_every_profile(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """house 1.2: every export was "ready" for every target, also those that a target refuses."""
    monkeypatch.setenv("XARCH_HOME", str(tmp_path / "home"))
    registry = get_registry()
    target = registry.get("target", name)
    family = registry.create("family", target.accepts[0])
    given = {
        "teacher": family.tiny_teacher(tmp_path),
        "student.target": name,
        "tiny": True,
        "export.profiles": target.data["profiles"],
        "export.bench": False,
        "runtime.device": "cpu",
        "runtime.threads": 1,
        "runtime.tensorboard": False,
        **family.tiny_run(tmp_path),
    }
    assert plan(overrides=given).config.recipe in target.data["recipes"]
    run = convert(overrides=given, out=tmp_path / "run")
    for profile in target.data["profiles"]:
        assert json.loads((run.path / "export" / profile / "parity.json").read_text())["passed"], profile
