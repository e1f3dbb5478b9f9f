"""What objectives and exits remember outlives an interrupted run (F6), and nothing of it reaches the student (F4)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import xarch
from tests.engine.interrupted import Crash, assert_ends_as, rows
from xarch.testing.models import tiny_configuration

STEPS = 7
LABELS = {"labels": "labels"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        **tiny_configuration("image", tmp_path_factory.mktemp("image")),
        "recipe": "ofa-kd",
        "student.target": "timm",
        "student.options": {"model": "test_vit", "arguments": {"patch_size": 8, "depth": 2}, "size": 32},
        "evaluate": {"samples": 2, "baseline": False},
        "export.profiles": [],
        "stages.distil.units": 6 * STEPS,
        "stages.distil.epochs": None,
        "stages.distil.batch": 6,
        "stages.distil.checkpoint_every": 2,
        "stages.distil.log_every": 1,
        "stages.distil.validation": {"samples": 4, "keep": "last"},
        "stages.distil.ema": 0.9,
        "stages.distil.trains.objectives": {},
        "stages.distil.matches.exits.options.gamma": "auto",
        "stages.distil.matches.taid": {"student": "logits", "teacher": "logits", "objective": "taid"},
        "stages.distil.matches.nd": {
            "student": "pooled",
            "teacher": "pooled",
            "objective": "nd",
            "through": {"connector": "exit", "options": {"norm": "batch", "dropout": 0.5}},
            "aux": LABELS,
        },
        "stages.distil.matches.crd": {
            "student": "pooled",
            "teacher": "pooled",
            "objective": "crd",
            "aux": {**LABELS, "index": "batch:index"},
            "options": {"width": 8, "negatives": 16},
        },
        "tiny": False,
    }


@pytest.fixture(scope="module")
def whole(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return xarch.convert(overrides=settings, out=tmp_path_factory.mktemp("whole") / "run").path


def test_an_interrupted_run_ends_as_if_it_had_not_been(settings: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    assert_ends_as(whole, settings, Crash(STEPS, 5), tmp_path / "broken")
    t = [row["monitor.t.taid"] for row in rows(whole)]
    assert t == sorted(t)
    assert t[-1] > t[0]


def test_exits_are_counted_as_extra_and_absent_from_the_student(whole: Path) -> None:
    plan = json.loads((whole / "plan.json").read_text())
    plain = sum(p.numel() for p in xarch.load(whole).parameters())
    assert plan["student"]["parameters"] == plain
    assert plan["stages"][0]["trains"]["connectors"] > plain / 10
    saved = load_file(whole / "student" / "model.safetensors")
    import timm

    net = timm.create_model("test_vit", num_classes=3, img_size=32, patch_size=8, depth=2)
    assert saved.keys() == net.state_dict().keys()
    assert sum(v.numel() for v in saved.values()) == sum(v.numel() for v in net.state_dict().values())


@pytest.mark.slow
def test_what_an_objective_adds_up_does_not_depend_on_micro_batches(settings: dict[str, Any], tmp_path: Path) -> None:
    moved = []
    for size in (None, 2):
        stage = {
            "stages.distil.matches": [{"student": "logits", "teacher": "logits", "objective": "taid"}],
            "stages.distil.micro_batch": size,
            "stages.distil.validation": None,
        }
        alone = {k: v for k, v in settings.items() if not k.startswith("stages.distil.matches")}
        run = xarch.convert(overrides={**alone, **stage}, out=tmp_path / str(size))
        moved.append([row["monitor.t.m0"] for row in rows(run.path)])
    assert moved[0] == pytest.approx(moved[1], abs=1e-6)
    assert moved[0][-1] > moved[0][0]
