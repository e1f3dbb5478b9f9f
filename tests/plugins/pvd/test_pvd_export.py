"""Exported fields: points one by one, a whole rendered view, what the gate does with a graph that is wrong, and the
program beside the graphs, which makes the picture that torch renders with nothing of xarch or torch."""

from __future__ import annotations

import functools
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.plugins.pvd.exported_fields import SAMPLES, export, student_of
from xarch import Batch, ExportGraph, PlanError, Profile, UsageError, validated
from xarch.export.profiles import cpu, npu, npu_fp16, npu_int8
from xarch.export.proof import Prover
from xarch.export.run import ExportResult
from xarch_field import Camera, RaysGraph, render, sphere_pose
from xarch_field.family import PROGRAM
from xarch_field.student import FieldStudent
from xarch_pvd.data.fixed import picture_batch
from xarch_pvd.data.views import fixed_cameras
from xarch_pvd.export.graphs import FieldExport, field_graphs
from xarch_pvd.export.parity import field_parity, thinned
from xarch_pvd.targets.representations import options_of

Exported = Callable[[str, Profile], tuple[ExportResult, Path]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """``exported(arch, profile)``: result and folder of a trained field's export, made once."""

    @functools.cache
    def make(arch: str, profile: Profile) -> tuple[ExportResult, Path]:
        out = tmp_path_factory.mktemp("exported") / "out"
        return export(student_of(arch), profile, out), out

    return make


ARCHS = [pytest.param(arch, marks=pytest.mark.slow) for arch in ("vm", "hash", "mlp", "cp", "tensors")]


def test_empty_samples_are_left_out_where_a_profile_can() -> None:
    def packed(profile: Profile, **options: Any) -> bool:
        rays = field_graphs(student_of("vm"), profile, FieldExport(**options))[1].module
        assert isinstance(rays, RaysGraph)
        return rays.packed

    assert packed(cpu)
    assert not packed(npu), "its shapes are static"
    assert not packed(cpu, empty="evaluate")
    assert not packed(replace(cpu, forbidden_ops=cpu.forbidden_ops | {"NonZero"}))


@pytest.mark.parametrize("arch", ARCHS)
def test_points_and_a_rendered_view_are_the_students(arch: str, exported: Exported) -> None:
    result, _ = exported(arch, cpu)
    points, rays = result.parity["graphs"]["points"], result.parity["graphs"]["rays"]
    assert {case["shape"]["points"] for case in points["cases"]} == {1, 2, 257, 10_000}
    assert points["measures"]["largest relative error of sigma"]["value"] <= 1e-4
    assert points["measures"]["largest error of rgb"]["value"] <= 1e-5
    assert rays["measures"]["psnr"]["value"] >= rays["measures"]["psnr"]["minimum"] == 60
    assert rays["measures"]["empty pixels"]["value"] <= 1e-3
    assert all(entry["opset"] >= 18 for entry in result.profile["graphs"].values())


@pytest.mark.slow
@pytest.mark.parametrize("profile", [npu, npu_fp16, npu_int8], ids=lambda profile: profile.name)
@pytest.mark.parametrize("arch", ["mlp", "vm", "cp", "tensors"])
def test_fields_on_accelerators(arch: str, profile: Profile, exported: Exported) -> None:
    result, _ = exported(arch, profile)
    psnr = result.parity["graphs"]["rays"]["measures"]["psnr"]
    assert psnr["value"] >= psnr["minimum"] == {"float32": 60, "float16": 40, "int8": 30}[profile.dtype]
    for entry in result.profile["graphs"].values():
        assert entry["opset"] == 17
        assert not {"Sin", "Cos", "CumSum", "GatherND"} & set(entry["ops"])
        assert ("DequantizeLinear" in entry["ops"]) == (profile.dtype == "int8")


@pytest.mark.slow
def test_grids_can_be_gathered_on_accelerators(tmp_path: Path) -> None:
    result = export(student_of("vm"), npu, tmp_path / "out", grids="gather")
    assert "GridSample" not in result.profile["graphs"]["rays"]["ops"]
    assert result.parity["graphs"]["rays"]["measures"]["psnr"]["value"] >= 60


@pytest.mark.slow
def test_the_encoding_can_be_the_callers(tmp_path: Path) -> None:
    result = export(student_of("mlp"), npu, tmp_path / "out", encoding="input")
    assert result.graphs == ["encoded"]
    assert result.parity["graphs"]["encoded"]["measures"]["psnr"]["value"] >= 60
    with pytest.raises(PlanError, match="'vm' has no positional encoding"):
        field_graphs(student_of("vm"), npu, FieldExport(encoding="input"))


@pytest.mark.slow
def test_hash_tables_name_the_way_to_an_accelerator() -> None:
    with pytest.raises(PlanError, match="BitwiseXor") as caught:
        field_graphs(student_of("hash"), npu, FieldExport())
    assert "--to mlp --set student.options.preset=npu-mlp --set export.profiles=[npu]" in (caught.value.hint or "")


def test_accelerator_presets() -> None:
    mlp, vm = student_of("mlp", preset="npu-mlp").field, student_of("vm", preset="npu-vm").field
    assert [layer.out_features for layer in mlp.trunk] == [128] * 5 + [16]  # type: ignore[union-attr]
    assert mlp.entry.weight.shape == (128, 51)  # type: ignore[union-attr]
    assert [tuple(p.shape) for p in vm.planes] == [(128, 128, 32)] * 3  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="small, paper, npu-mlp"):
        options_of("mlp", {"preset": "npu-vm"}, "student.options")


def test_a_skip_by_addition_is_a_skip_by_concatenation() -> None:
    added = student_of("mlp", layers=4, width=16, frequencies=3, skip=2, skip_by="add").field
    joined = student_of("mlp", layers=4, width=16, frequencies=3, skip=2).field
    state = added.state_dict()
    entry = state.pop("entry.weight")
    state["trunk.2.weight"] = torch.cat((entry, state["trunk.2.weight"]), dim=1)
    joined.load_state_dict(state)
    u_N3 = torch.rand(50, 3)
    assert torch.allclose(added.features(u_N3), joined.features(u_N3), atol=1e-5)  # type: ignore[attr-defined]


def test_haze_in_empty_cells_is_rejected(tmp_path: Path) -> None:
    """A graph without the occupancy renders the lowest density of the clip as haze."""
    student = student_of("vm")
    hazy = student_of("vm", resolution=24, density_rank=4, colour_rank=6)
    hazy.field.load_state_dict(student.field.state_dict())
    hazy.field.set_occupancy(torch.ones_like(student.field.occupancy))
    cases = list(field_parity(student, graphs_of(student), [view()], cpu))
    picture = Prover(student, graphs_of(student), []).complete(cases[-1]).case
    module = RaysGraph(hazy.field, 32)

    def call(_: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = module(*(torch.from_numpy(v) for v in inputs.values()))
        return {n: v.numpy() for n, v in zip(("rgb", "depth", "acc"), values, strict=True)}

    seen = picture.drive(call)
    figures = {m.name: (m.value(seen, picture.expected), m) for m in picture.measures}
    assert not any(m.holds(value) for value, m in figures.values())
    assert figures["empty pixels"][0] > 1e-3


def test_a_view_is_thinned_to_64_pixels_and_small_ones_stay() -> None:
    pixels = torch.arange(100 * 50)
    batch = Batch({"origins": pixels[:, None].expand(-1, 3)}, len(pixels), {"height": 50, "width": 100})
    small = thinned(batch)
    assert small.meta == {"height": 32, "width": 64}
    columns = small["origins"][:, 0].view(32, 64) % 100
    assert columns[0].unique().numel() == 64
    assert thinned(small)["origins"].equal(small["origins"])


def test_an_option_nobody_knows_is_named() -> None:
    with pytest.raises(UsageError, match="layers"):
        validated(FieldExport, {"layers": 3}, "export.options")


def graphs_of(student: FieldStudent) -> list[ExportGraph]:
    return list(field_graphs(student, cpu, FieldExport()))


def view() -> Batch:
    return picture_batch(fixed_cameras(student_of("vm").facts.views, 1, "heldout")[0], (1.0, 1.0, 1.0))


def draw(*arguments: object) -> None:
    script = (
        "import runpy, sys; path = sys.argv.pop(1); runpy.run_path(path, run_name='__main__'); "
        "assert not {'torch', 'xarch', 'onnx'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", script, str(PROGRAM), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def by_torch(arch: str, azimuth: float, elevation: float, size: int) -> np.ndarray:
    views = student_of(arch).facts.views
    pose = sphere_pose(math.radians(azimuth), math.radians(elevation), views.radius[1], torch.tensor(views.target))
    focal = views.focal * size
    camera = Camera(size, size, focal, focal, size / 2, size / 2, pose)
    rgb = render(student_of(arch).field, *camera.rays(), torch.ones(3), samples=SAMPLES)["rgb"]
    return rgb.view(size, size, 3).clamp(0, 1).numpy()


def difference(file: Path, wanted: np.ndarray) -> float:
    return float(np.abs(np.asarray(Image.open(file).convert("RGB")) / 255 - wanted).max())


@pytest.mark.slow
@pytest.mark.parametrize(("profile", "limit"), [(cpu, 0.003), (npu_int8, 0.1)], ids=["cpu", "npu-int8"])
def test_picture_and_turntable(profile: Profile, limit: float, exported: Exported, tmp_path: Path) -> None:
    _, out = exported("vm", profile)
    png, gif = tmp_path / "view.png", tmp_path / "turn.gif"
    draw(png, "--export", out, "--size", 31, "--azimuth", 100, "--elevation", 40, "--turntable", gif, "--frames", 4)
    assert difference(png, by_torch("vm", 100, 40, 31)) < limit
    turn = Image.open(gif)
    assert (turn.size, turn.n_frames, turn.info["loop"]) == ((31, 31), 4, 0)  # type: ignore[attr-defined]
    turn.seek(2)
    turn.convert("RGB").save(tmp_path / "half.png")
    right, wrong = (difference(tmp_path / "half.png", by_torch("vm", angle, 40, 31)) for angle in (280, 100))
    assert right < 0.15 < 0.3 < wrong
