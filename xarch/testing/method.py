"""Conformance of methods: a method is data, so one test covers all of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from xarch.config.method import Method, read_method
from xarch.errors import UsageError
from xarch.files.bounded_json import read_json
from xarch.registry.declare import ANY_FAMILY
from xarch.registry.loader import get_registry
from xarch.testing.models import tiny_conversion

STEPS = 2
"""Optimiser steps of every stage in a test."""


class MethodConformance:
    """Subclass it with ``method = "NAME"``.

    Class attributes:
        method: its name, or ``plugin:name``.
        targets: family -> target to use if the method names none.
        values: dotted key -> value of the test's conversion, e.g. a smaller batch.
    """

    method: ClassVar[str] = ""
    targets: ClassVar[Mapping[str, str]] = {}
    values: ClassVar[Mapping[str, Any]] = {}

    def test_its_head_is_complete(self) -> None:
        assert_head(self.method)

    def test_it_runs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XARCH_HOME", str(tmp_path / "home"))
        for family in families_of(self.method):
            folder = tmp_path / family
            folder.mkdir()
            values = {**tiny_conversion(family, folder), **self.values}
            if family in self.targets:
                values["student.target"] = self.targets[family]
            assert_runs(self.method, values, folder / "run")


def head_of(method: str) -> Method:
    """Return the head of a registered method."""
    registry = get_registry()
    return read_method(str(registry.resolve(registry.get("method", method))), f"method {method}")


def families_of(method: str) -> list[str]:
    """Return the families to test: those the method names, or all that have the places its matches use."""
    from xarch.config.load import load_config

    registry = get_registry()
    named = [f for f in registry.get("method", method).accepts if f != ANY_FAMILY]
    if named:
        return named
    stages = load_config(method).config.stages.values()
    matches = [match for stage in stages for match in stage.matches.values()]
    sides = [side for m in matches for side in (m.student, m.teacher) if isinstance(side, str) and side != "same"]
    places = {side for side in sides if side.isidentifier()}
    names = [spec.name for spec in registry.specs("family")]
    found = [name for name in names if places <= registry.create("family", name).places.keys()]
    assert found, f"no registered family has the places {', '.join(sorted(places))}"
    return found


def assert_head(method: str) -> None:
    """Title, paper, families and control of a method are present and valid."""
    registry = get_registry()
    spec, head = registry.get("method", method), head_of(method)
    assert head.title, "its title is missing"
    assert spec.summary or head.summary, "its summary is missing"
    known = {s.name for s in registry.specs("family")} | {ANY_FAMILY}
    assert set(head.families) <= known, f"no plugin registers {sorted(set(head.families) - known)}"
    assert set(head.families) == set(spec.accepts), "its registration and its file list different families"
    if head.control:
        names = {s.name for kind in ("method", "recipe") for s in registry.specs(kind)}
        assert head.control in names, f"its control {head.control!r} is neither a method nor a recipe"


def two_steps(method: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Overrides and ``--set`` items that cut every stage to two steps, without exports and with little evaluation.

    Raises:
        UsageError: the method or a value is wrong.
    """
    from xarch.config.load import load_config
    from xarch.planning.describe import Describer
    from xarch.planning.settle import settled

    loaded = settled(load_config(method, overrides=values), Describer(get_registry(), lambda text: None))
    if not loaded.config.stages:
        raise UsageError(f"method {method} has no stage")
    cut: dict[str, Any] = {
        "export.profiles": [],
        "evaluate.samples": 2,
        "evaluate.batch": 2,
        "evaluate.baseline": False,
    }
    sets: list[str] = []
    for name, stage in loaded.config.stages.items():
        size = min(stage.batch.size, 4)
        cut |= {f"stages.{name}.batch.size": size, f"stages.{name}.log_every": 1, f"stages.{name}.requires": {}}
        sets += [f"stages.{name}.{key}=null" for key in ("until", "share", "epochs")]
        cut[f"stages.{name}.units"] = STEPS * size * units_per_sample(loaded.config, name)
        if stage.validation is not None:
            cut[f"stages.{name}.validation.samples"] = 2
    return {**values, **cut}, sets


def units_per_sample(config: Any, stage: str) -> int:
    """Return the budget units of a sample of a stage."""
    from xarch.planning.resolve import resolve_data

    data = resolve_data(get_registry(), config.data.ref, config.data.options)
    found: int = data.adapter.units_per_sample({**config.data.sample, **config.stages[stage].sample})
    return found


def assert_runs(method: str, values: Mapping[str, Any], out: Path) -> None:
    """The method plans and converts: two steps of every stage, finite figures of every match, and a report.

    Args:
        values: dotted keys: teacher, target, data.
        out: the run folder.
    """
    from xarch.api import convert, plan

    overrides, sets = two_steps(method, values)
    planned = plan(method, overrides=overrides, sets=sets)
    run = convert(planned, out=out)
    assert run.status["state"] == "done"
    trained = [stage for stage in planned.stages if stage.config.matches]
    # Without a stage that trains there are no rows, and no file of them.
    text = (out / "metrics.jsonl").read_text(encoding="utf-8") if trained else ""
    rows = [json.loads(line) for line in text.splitlines()]
    for stage in trained:
        own = [row for row in rows if row.get("stage") == stage.folder and "loss" in row]
        assert own, f"stage {stage.name} logged no step"
        for match in stage.config.matches:
            figures = [v for row in own for k, v in row.items() if k.split(".")[:2] == ["match", match]]
            assert figures, f"stage {stage.name}: match {match} has no figure"
            assert all(isinstance(v, int | float) and math.isfinite(v) for v in figures), f"{match} is not finite"
    found = read_json(out / "eval.json")
    assert math.isfinite(found["student"][found["metric"]])
    assert stage_names(planned) <= words(out / "report.md"), "the report does not show every stage"


def stage_names(planned: Any) -> set[str]:
    """Return the names of a plan's stages."""
    return {stage.name for stage in planned.stages}


def words(report: Path) -> set[str]:
    """Return the words of a report."""
    text = report.read_text(encoding="utf-8")
    return set("".join(c if c.isalnum() or c in "_-" else " " for c in text).split())
