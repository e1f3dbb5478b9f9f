"""The six targets through the conformance kit, and a conversion by the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import xarch
from tests.plugins.pvd.tiny_field import OPTIONS_OF, trained, write_teacher
from xarch.api import convert
from xarch.planning.estimate import Rates
from xarch.testing import TargetConformance
from xarch_field import render
from xarch_field.facts import FieldFacts
from xarch_pvd.evaluate.metric import psnr
from xarch_pvd.targets.representations import OPTIONS
from xarch_pvd.targets.target import CPTarget, HashTarget, MLPTarget, VMTarget


class FieldConformance(TargetConformance):
    """What the six share: a teacher with a volume feature, which the voxels of the family's own do not have."""

    recipe: ClassVar[str] = "pvd"
    local = False

    def make_teacher(self, folder: Path) -> str:
        return write_teacher(folder / "teacher.safetensors")

    def configuration(self, folder: Path) -> dict[str, Any]:
        return {**super().configuration(folder), "recipe": self.recipe}


class WholePathInCI(FieldConformance):
    """Those whose whole path is slow; a mark on the kit's own function would be on that of every target."""

    @pytest.mark.slow
    def test_tiny_conversion_to_verified_onnx(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().test_tiny_conversion_to_verified_onnx(tmp_path, monkeypatch)


class TestHash(WholePathInCI):
    adapter = "hash"
    options: ClassVar[Mapping[str, Any]] = OPTIONS_OF["hash"]


class TestMLP(WholePathInCI):
    adapter = "mlp"
    options: ClassVar[Mapping[str, Any]] = OPTIONS_OF["mlp"]


class TestVM(WholePathInCI):
    adapter = "vm"
    options: ClassVar[Mapping[str, Any]] = OPTIONS_OF["vm"]


class TestCP(WholePathInCI):
    adapter = "cp"
    options: ClassVar[Mapping[str, Any]] = OPTIONS_OF["cp"]


class TestHashVM(WholePathInCI):
    adapter = "hash+vm"
    options: ClassVar[Mapping[str, Any]] = OPTIONS_OF["hash+vm"]


class TestVoxels(WholePathInCI):
    adapter = "tensors"
    recipe = "pvd-bake"
    options: ClassVar[Mapping[str, Any]] = OPTIONS_OF["tensors"]


def configuration(folder: Path, target: str, recipe: str = "pvd", **more: Any) -> dict[str, Any]:
    return {
        "recipe": recipe,
        "teacher": write_teacher(folder / "teacher.safetensors"),
        "student.target": target,
        "student.options": OPTIONS_OF[target],
        "teacher_options": {"samples": 48},
        "evaluate.samples": 2,
        "runtime.threads": 1,
        "runtime.tensorboard": False,
        "export.profiles": [],
        **more,
    }


def test_a_copy_of_equal_shape_renders_as_its_teacher(tmp_path: Path) -> None:
    run = convert(overrides=configuration(tmp_path, "vm", budget=1), out=tmp_path / "run")
    student = xarch.load(run.path)
    rays = (torch.tensor([[0.0, -3.0, 0.4]]).repeat(50, 1), _fan(50))
    seen = render(student, *rays, torch.ones(3))["rgb"]
    assert psnr(seen, render(trained(), *rays, torch.ones(3))["rgb"]) > 35


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["hash", "cp"])
def test_a_field_into_its_own_kind_is_copied_and_nothing_is_trained(tmp_path: Path, arch: str) -> None:
    given = configuration(tmp_path, arch)
    del given["recipe"]
    given["teacher"] = write_teacher(tmp_path / "same.safetensors", arch)
    run = convert(overrides=given, out=tmp_path / "run")
    assert json.loads((run.path / "plan.json").read_text())["stages"] == []
    assert json.loads((run.path / "eval.json").read_text())["student"]["psnr_teacher"] > 60


FIELD = FieldFacts("hash", ((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0)))


@pytest.mark.parametrize(
    ("facts", "options"),
    [
        (replace(FIELD, options={"finest": 240}), {}),
        (replace(FIELD, options={"log2_size": 12}), {"log2_size": 12, "base": 32}),
        (replace(FIELD, edits=("erase",)), {}),
        (replace(FIELD, inherits=("encoder",)), {}),
        (replace(FIELD, arch="vm"), {}),
        (replace(FIELD, arch="mlp", options={"skip": 2}), {"skip": 3}),
        (replace(FIELD, arch="vm", options={"feature_clip": [-5.0, 5.0]}), {}),
        (replace(FIELD, arch="cp", options={"feature_clip": [-5.0, 5.0]}), {}),
    ],
)
def test_what_is_not_the_same_function_is_trained(facts: FieldFacts, options: dict[str, Any]) -> None:
    arch = "hash" if facts.arch == "vm" and not facts.options else facts.arch
    target = {"hash": HashTarget, "mlp": MLPTarget, "vm": VMTarget, "cp": CPTarget}[arch]()
    assert target.recipe(facts, OPTIONS[arch].model_validate(options)) != "pvd-copy"
    same = replace(facts, arch=arch, edits=(), inherits=None)
    assert target.recipe(same, OPTIONS[arch].model_validate(same.options)) == "pvd-copy"


def test_planes_that_split_their_channels_otherwise_are_fitted_not_copied() -> None:
    facts = replace(FIELD, arch="vm", options={"density_rank": 8, "colour_rank": 16})
    options = OPTIONS["vm"].model_validate({"density_rank": 12, "colour_rank": 12})
    student = VMTarget().build(facts, options, {}, device=torch.device("meta"))
    assert set(VMTarget().initialisation(facts, student).mapped) >= {"planes.0", "lines.2"}


def test_a_student_that_nothing_trains_is_refused(tmp_path: Path) -> None:
    given = configuration(tmp_path, "mlp", recipe="pvd-copy")
    with pytest.raises(xarch.PlanError, match=r"no stage trains the student, but .* do not come from the teacher"):
        xarch.plan(overrides=given)


@pytest.mark.slow
@pytest.mark.parametrize(("teacher", "limit"), [("hash", 60), ("vm", 35)])
def test_a_composition_starts_from_either_half(tmp_path: Path, teacher: str, limit: int) -> None:
    options = {**OPTIONS_OF["hash"], **OPTIONS_OF["vm"]}
    given = configuration(tmp_path, "hash+vm", budget=1)
    given |= {"teacher": write_teacher(tmp_path / "half.safetensors", teacher), "student.options": options}
    given["stages.rays.units"] = 64
    run = convert(overrides=given, out=tmp_path / "run")
    found = json.loads((run.path / "eval.json").read_text())
    assert found["baselines"]["before training"]["psnr_teacher"] > limit


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cp", "hash"])
def test_training_brings_the_student_closer(tmp_path: Path, target: str) -> None:
    overrides = configuration(tmp_path, target, budget=600_000)
    if target == "cp":
        overrides["student.options"] = {**OPTIONS_OF["cp"], "start": "random"}
    run = convert(overrides=overrides, out=tmp_path / "run")
    found = json.loads((run.path / "eval.json").read_text())
    before = found["baselines"]["before training"]["psnr_teacher"]
    assert found["student"]["psnr_teacher"] > max(19.0, before + 3)


def test_voxels_leave_the_volume_stage_out_and_are_baked(tmp_path: Path) -> None:
    overrides = configuration(tmp_path, "tensors", budget=60_000)
    run = convert(overrides=overrides, out=tmp_path / "run")
    plan = json.loads((run.path / "plan.json").read_text())
    assert [s["name"] for s in plan["stages"]] == ["points", "rays"]
    assert any("stage volume is skipped" in w for w in plan["warnings"])
    assert plan["student"]["mapped"] == ["volume"]
    found = json.loads((run.path / "eval.json").read_text())
    assert found["baselines"]["before training"]["psnr_teacher"] > 22


def _fan(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    spread = torch.randn(count, 3, generator=generator) * torch.tensor([0.15, 0.0, 0.15])
    return torch.nn.functional.normalize(spread + torch.tensor([0.0, 1.0, -0.1]), dim=-1)


def test_a_plans_time_follows_what_a_point_reads_not_the_size_of_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each plan measures the machine for a moment, which a moment of load would change.
    rates = Rates(products=2e10, traffic=1e10, operator=6e-6)
    monkeypatch.setattr("xarch.planning.estimate.measure_rates", lambda device, dtype, threads: rates)

    def seconds(target: str, **options: Any) -> float:
        given = configuration(tmp_path, target) | {"student.options": options, "teacher_options": {}}
        points = next(s for s in xarch.plan(overrides=given).stages if s.name == "points")
        # The optimiser touches all parameters, a hundred times as many of the larger one.
        return sum(spent for part, spent in points.times.items() if part != "optimiser")

    small, large = seconds("vm", resolution=16), seconds("vm", resolution=160)
    assert large < 1.1 * small
    assert 1 < seconds("hash") < 300


def test_a_plan_counts_the_rays_of_the_views_that_are_evaluated(tmp_path: Path) -> None:
    """A held-out sample is a whole view; planned as one ray, evaluation and parity took ten thousand times longer."""
    made = xarch.plan(overrides=configuration(tmp_path, "hash"))
    views = made.teacher.facts["views"]
    assert made.data["facts"]["heldout_units"] == views["width"] * views["height"] > 1
    assert made.estimates.parts["evaluation"] > 1e-3
