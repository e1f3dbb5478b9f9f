"""The six representations: shapes as published, values as written down, files, and graphs in onnxruntime."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xarch import UsageError
from xarch.kernels import use_backend
from xarch_field import PointsGraph, RadianceField, RaysGraph, example_points, render, spherical_harmonics
from xarch_pvd.targets.representations import OPTIONS, build_field
from xarch_pvd.targets.representations.records import from_file, to_file

ARCHS = tuple(OPTIONS)
BOX = [[-1.0, -1.2, -0.9], [1.1, 1.0, 1.0]]
TINY = {
    "hash": {"levels": 4, "log2_size": 9, "finest": 40},
    "mlp": {"layers": 3, "width": 24, "frequencies": 5},
    "vm": {"resolution": 12, "density_rank": 3, "colour_rank": 5},
    "cp": {"resolution": 20, "density_rank": 6, "colour_rank": 10},
    "hash+vm": {"levels": 3, "log2_size": 9, "finest": 30, "resolution": 12, "density_rank": 3, "colour_rank": 5},
    "tensors": {"resolution": 12, "degree": 2},
}


def field_of(arch: str) -> RadianceField:
    """A random field with visible densities in half of its cells."""
    torch.manual_seed(0)
    grid = torch.rand(6, 6, 6) > 0.5
    field = build_field(arch, OPTIONS[arch].model_validate(TINY[arch]), aabb=BOX, occupancy=grid)
    gain = {"hash": 1e4, "vm": 4, "cp": 3, "tensors": 50, "mlp": 1, "hash+vm": 4}[arch]
    with torch.no_grad():
        for name in field.param_groups()["grid"]:
            grid = field.get_parameter(name)
            # A composition starts with empty planes.
            grid.copy_(grid * gain if bool(grid.any()) else torch.randn_like(grid) * 0.3)
    return field.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("arch", "parameters"),
    [("hash", 10_607_408 + 2_816 + 6_272), ("mlp", 434_460 + 2_816 + 6_272), ("tensors", 28 * 128**3)],
)
def test_paper_presets_have_the_published_sizes(arch: str, parameters: int) -> None:
    with torch.device("meta"):
        field = build_field(arch, OPTIONS[arch].model_validate({"preset": "paper"}), aabb=BOX)
    assert sum(p.numel() for p in field.parameters()) == parameters


def test_factor_presets_have_the_published_sizes() -> None:
    with torch.device("meta"):
        vm = build_field("vm", OPTIONS["vm"].model_validate({"preset": "paper"}), aabb=BOX)
    planes, lines, basis = 3 * 64 * 300**2, 3 * 64 * 300, 144 * 15
    assert sum(p.numel() for p in vm.parameters()) == planes + lines + basis + 6_272


@pytest.mark.parametrize("arch", ARCHS)
def test_blocks_groups_and_queries_agree(arch: str) -> None:
    field = field_of(arch)
    names = {n for n, _ in field.named_parameters()}
    groups = field.param_groups()
    assert set(groups) == {"grid", "net"}
    assert sorted(groups["grid"] + groups["net"]) == sorted(names)
    blocks = [t for block in field.state_blocks().values() for t in block.values()]
    assert {id(t) for t in blocks} == {id(p) for p in field.parameters()}
    x, d = example_points(50)
    both = field.query(x, d, ("sigma_raw", "sigma", "rgb"))
    assert torch.allclose(field.sigma_raw(x), both["sigma_raw"], atol=1e-5)
    assert torch.allclose(both["sigma"], field.density(both["sigma_raw"], field.occupied(x)))
    if field.has_feature:
        feature = field.block1(x)
        assert feature.shape == (50, 16)
        assert torch.allclose(feature[:, 0], both["sigma_raw"], atol=1e-5)
        assert torch.allclose(field.colour(feature, d), both["rgb"], atol=1e-6)
    else:
        assert torch.allclose(field.colour(x, d), both["rgb"], atol=1e-6)
        with pytest.raises(UsageError, match="no intermediate feature"):
            field.block1(x)


def _by_sampler(grids: list[tuple[Tensor, tuple[int, ...]]], u_N3: Tensor) -> Tensor:
    """Product of grids by PyTorch's 4-D sampler, as the original has it: planes [1, R, Nb, Na], lines [1, R, N, 1]."""
    product = torch.ones(len(u_N3), grids[0][0].shape[-1])
    for grid, axes in grids:
        image = (grid if len(axes) == 2 else grid[:, None]).permute(2, 0, 1)[None]
        fast = 2 * u_N3[:, axes[1]] - 1 if len(axes) == 2 else torch.zeros(len(u_N3))
        place = torch.stack((fast, 2 * u_N3[:, axes[0]] - 1), dim=-1)[None, :, None]
        product = product * F.grid_sample(image, place, align_corners=True)[0, :, :, 0].T
    return product


@pytest.mark.parametrize("arch", ["vm", "cp"])
def test_factor_fields_as_tensorf_writes_them(arch: str) -> None:
    field = field_of(arch)
    x = field.to_world(torch.rand(60, 3, generator=torch.Generator().manual_seed(0)))
    u, rank = field.to_unit(x), field.split
    products = [_by_sampler([(g, axes) for g, axes in group], u) for group in field.factors()]
    if arch == "vm":
        assert [axes for group in field.factors() for _, axes in group] == [(1, 0), (2,), (2, 0), (1,), (2, 1), (0,)]
    raw = sum(p[:, :rank].sum(dim=1) for p in products)
    g = torch.cat([p[:, rank:] for p in products], dim=1) @ field.basis.weight.T
    wanted = torch.cat((raw[:, None], g), dim=1)
    assert torch.allclose(field.block1(x), wanted, atol=1e-5 * float(wanted.abs().max()))


def test_a_composition_is_the_sum_of_its_halves() -> None:
    field = field_of("hash+vm")
    halves = {arch: build_field(arch, OPTIONS[arch].model_validate(_known(arch)), aabb=BOX) for arch in ("hash", "vm")}
    for half in halves.values():
        half.load_state_dict({n: t for n, t in field.state_dict().items() if n in half.state_dict()})
    x, d = example_points(40)
    total = sum(half.block1(x) for half in halves.values())
    torch.testing.assert_close(field.block1(x), total)
    torch.testing.assert_close(field.query(x, d, ("rgb",))["rgb"], halves["vm"].colour(total, d))


def _known(arch: str) -> dict:
    return {k: v for k, v in TINY["hash+vm"].items() if k in OPTIONS[arch].model_fields}


def test_voxels_as_plenoxels_writes_them() -> None:
    field = field_of("tensors")
    x, d = example_points(60)
    u = field.to_unit(x)
    volume = field.volume.permute(3, 0, 1, 2)[None]
    place = (2 * u - 1).flip(-1)[None, :, None, None]
    value = F.grid_sample(volume, place, align_corners=True, padding_mode="border")[0, :, :, 0, 0].T
    rgb = torch.sigmoid(torch.einsum("nck,nk->nc", value[:, 1:].view(-1, 3, 4), spherical_harmonics(d, 2)))
    seen = field.query(x, d, ("sigma_raw", "rgb"))
    assert torch.allclose(seen["sigma_raw"], value[:, 0], atol=1e-4)
    assert torch.allclose(seen["rgb"], rgb, atol=1e-5)


def test_sinusoids_are_interleaved_by_octave() -> None:
    field = field_of("mlp")
    u = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))
    x = (2 * u - 1).tolist()
    for row, point in zip(field.encode(u).tolist(), x, strict=True):
        wanted = list(point)
        for octave in range(5):
            wanted += [math.sin(2**octave * v) for v in point] + [math.cos(2**octave * v) for v in point]
        assert row == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("arch", ARCHS)
def test_backends_agree(arch: str) -> None:
    field = field_of(arch)
    x, d = example_points(300)
    with use_backend("naive"):
        sigma, rgb = field(x, d)
    seen = field(x, d)
    assert torch.allclose(seen[0], sigma, rtol=1e-3, atol=1e-5)
    assert torch.allclose(seen[1], rgb, atol=1e-4)


@pytest.mark.parametrize("arch", ARCHS)
def test_records_go_there_and_back(arch: str) -> None:
    field = field_of(arch)
    record = to_file(field, OPTIONS[arch].model_validate(TINY[arch]).model_dump(mode="json"))
    again = from_file(record)
    x, d = example_points(40)
    for a, b in zip(field(x, d), again(x, d), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("arch", ARCHS)
def test_gradients_reach_every_parameter(arch: str) -> None:
    field = field_of(arch).requires_grad_(True)
    x, d = example_points(500)
    values = field.query(x, d, ("sigma_raw", "rgb"))
    (values["sigma_raw"].square().mean() + values["rgb"].mean()).backward()
    assert all(bool((p.grad != 0).any()) for p in field.parameters())


def _export(module: nn.Module, names: list[str], inputs: tuple[Tensor, ...], free: dict[str, dict[int, str]], to: Path):
    dynamic = {n: {k: torch.export.Dim.DYNAMIC for k in free.get(n, {})} for n in names}
    torch.onnx.export(
        module, inputs, to, dynamo=True, opset_version=18, input_names=names, dynamic_shapes=dynamic, verbose=False
    )
    model = onnx.load(to)
    onnx.checker.check_model(model, full_check=True)
    assert {o.domain: o.version for o in model.opset_import}[""] == 18
    return model, onnxruntime.InferenceSession(str(to), providers=["CPUExecutionProvider"])


# The others are exported by `test_pvd_export.py`.
@pytest.mark.slow
@pytest.mark.parametrize(("arch", "lowering"), [("hash+vm", "grid_sample"), ("vm", "gather")])
def test_points_graph_in_onnxruntime(arch: str, lowering: str, tmp_path: Path) -> None:
    field = field_of(arch)
    names = ["xyz", "dir"]
    graph, session = _export(
        PointsGraph(field, {"grid": lowering}),
        names,
        example_points(),
        {n: {0: "points"} for n in names},
        tmp_path / "p.onnx",
    )
    operators = {n.op_type for n in graph.graph.node}
    assert ("GridSample" in operators) == (lowering == "grid_sample" and arch in ("vm", "cp", "hash+vm"))
    assert not operators & {"Loop", "Scan", "If", "NonZero"}
    for count in (2, 1, 10_000):
        x, d = example_points(count)
        sigma, rgb = session.run(None, {"xyz": x.numpy(), "dir": d.numpy()})
        wanted = field(x, d)
        assert sigma.shape == (count,)
        assert np.allclose(sigma, wanted[0].numpy(), rtol=1e-4, atol=0)
        assert float(np.abs(rgb - wanted[1].numpy()).max()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("arch", ["vm", "hash"])
def test_rays_graph_in_onnxruntime_equals_the_renderer(arch: str, packed: bool, tmp_path: Path) -> None:
    field = field_of(arch)
    origins = torch.tensor([[0.0, -4.0, 0.5]]).repeat(400, 1)
    spread = torch.rand(400, 2, generator=torch.Generator().manual_seed(0)) - 0.5
    dirs = F.normalize(torch.stack((spread[:, 0], torch.ones(400), spread[:, 1]), dim=-1), dim=-1)
    dirs[0] = F.normalize(torch.tensor([1.0, 1.0, 1.0]), dim=0)
    background = torch.tensor([0.9, 0.8, 0.7])
    names = ["origins", "directions", "background"]
    free = {n: {0: "rays"} for n in names[:2]}
    module = RaysGraph(field, samples=48, packed=packed)
    graph, session = _export(module, names, (origins[:5], dirs[:5], background), free, tmp_path / "r.onnx")
    given = {"origins": origins.numpy(), "directions": dirs.numpy(), "background": background.numpy()}
    rgb, depth, acc = session.run(None, given)
    wanted = render(field, origins, dirs, background, samples=48)
    error = float(np.mean((rgb - wanted["rgb"].numpy()) ** 2))
    assert -10 * math.log10(max(error, 1e-12)) >= 60
    assert np.abs(acc - wanted["acc"].numpy()).max() < 1e-3
    assert np.abs(depth - wanted["depth"].numpy()).max() < 1e-2
    assert rgb[0].tolist() == pytest.approx(background.tolist(), abs=1e-3)
    assert float(acc.mean()) > 0.1
    operators = {n.op_type for n in graph.graph.node}
    assert ("NonZero" in operators) == packed
    missing = {**given, "directions": -given["directions"]}
    rgb, depth, acc = session.run(None, missing)
    assert acc.max() == 0, "no ray meets the box"
    assert np.abs(rgb - background.numpy()).max() < 1e-6
