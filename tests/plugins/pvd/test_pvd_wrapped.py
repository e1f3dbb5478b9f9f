"""Fields of other projects run as their own programs do: each against its formulas written out plainly."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.plugins.pvd.foreign_fields import save_nerfstudio, save_tensorf, save_torch_ngp
from xarch import UsageError
from xarch_field import RadianceField, spherical_harmonics
from xarch_pvd.source.foreign import KINDS, foreign_field
from xarch_pvd.source.formats.recognise import read_field
from xarch_pvd.source.formats.record import FieldFile
from xarch_pvd.targets.representations.records import from_file

Values = tuple[FieldFile, RadianceField, Tensor, Tensor]


def opened(path: Path) -> Values:
    record = read_field(path, allow_pickle=True)
    generator = torch.Generator().manual_seed(5)
    box = torch.tensor(record.aabb).view(2, 3)
    x = box[0] + torch.rand(60, 3, generator=generator) * (box[1] - box[0])
    return record, from_file(record), x, F.normalize(torch.randn(60, 3, generator=generator), dim=-1)


def close(seen: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> None:
    assert seen.shape == wanted.shape
    assert torch.allclose(seen, wanted, rtol=tolerance, atol=tolerance)


def sampled(planes: list[Tensor], lines: list[Tensor], p: Tensor) -> Tensor:
    """TensoRF's ``compute_appfeature`` up to the mixing: components of all planes times lines, or of three lines."""
    along = [F.grid_sample(line, torch.stack((torch.zeros(len(p)), p[:, c]), -1)[None, :, None], align_corners=True)
             for line, c in zip(lines, (2, 1, 0), strict=True)]  # fmt: skip
    along = [v[0, :, :, 0] for v in along]
    if not planes:
        return (along[0] * along[1] * along[2]).T
    across = [
        F.grid_sample(plane, p[:, pair][None, :, None], align_corners=True)[0, :, :, 0]
        for plane, pair in zip(planes, ([0, 1], [0, 2], [1, 2]), strict=True)
    ]
    return torch.cat([a * b for a, b in zip(across, along, strict=True)]).T


def layers(
    x: Tensor, tensors: dict[str, Tensor], prefix: str, count: int, *, step: int = 1, last: bool = False
) -> Tensor:
    for i in range(count):
        name = f"{prefix}.{i * step}"
        x = F.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))
        x = F.relu(x) if last or i + 1 < count else x
    return x


def sines(x: Tensor, frequencies: list[float]) -> Tensor:
    """[sin(all), cos(all)], every coordinate with all its frequencies."""
    angle = (x[..., None] * torch.tensor(frequencies)).flatten(1)
    return torch.cat((angle.sin(), angle.cos()), dim=-1)


@pytest.mark.parametrize("planes", [True, False])
@pytest.mark.parametrize("activation", ["softplus", "relu"])
def test_tensorf(tmp_path: Path, planes: bool, activation: str) -> None:
    save_tensorf(tmp_path / "t.th", planes=planes, fea2denseAct=activation, density_shift=-1)
    record, field, x, d = opened(tmp_path / "t.th")
    t = dict(record.tensors)
    box = torch.tensor(record.aabb).view(2, 3)
    p = (x - box[0]) * (2 / (box[1] - box[0])) - 1
    kinds = {k: [t[f"{k}.{m}"] for m in range(3)] if f"{k}.0" in t else []
             for k in ("density_plane", "density_line", "app_plane", "app_line")}  # fmt: skip
    total = sampled(kinds["density_plane"], kinds["density_line"], p).sum(1)
    density = 25 * (F.softplus(total - 1) if activation == "softplus" else F.relu(total))
    values = field.query(x, d, ("sigma_raw", "rgb"))
    close(values["sigma_raw"].exp(), density)
    features = sampled(kinds["app_plane"], kinds["app_line"], p) @ t["basis_mat.weight"].T
    h = torch.cat((features, d, sines(features, [1.0, 2.0]), sines(d, [1.0, 2.0])), dim=-1)
    close(values["rgb"], torch.sigmoid(layers(h, t, "renderModule.mlp", 3, step=2)))


def test_tensorf_far_below_zero_keeps_its_logarithm(tmp_path: Path) -> None:
    save_tensorf(tmp_path / "t.th", density_shift=-60)
    _, field, x, _ = opened(tmp_path / "t.th")
    raw = field.sigma_raw(x)
    assert bool(raw.isfinite().all())
    assert float(raw.mean()) == pytest.approx(math.log(25) - 60, abs=3)


@pytest.mark.parametrize("arch", ["ngp-vm", "ngp-cp"])
def test_torch_ngp_factored(tmp_path: Path, arch: str) -> None:
    save_torch_ngp(tmp_path / "n.pth", arch)
    record, field, x, d = opened(tmp_path / "n.pth")
    t = dict(record.tensors)
    kinds = {k: [t[f"{k}.{m}"] for m in range(3)] if f"{k}.0" in t else []
             for k in ("sigma_planes", "sigma_lines", "color_planes", "color_lines")}  # fmt: skip
    values = field.query(x, d, ("sigma_raw", "rgb"))
    close(values["sigma_raw"], sampled(kinds["sigma_planes"], kinds["sigma_lines"], x).sum(1))
    features = sampled(kinds["color_planes"], kinds["color_lines"], x) @ t["basis.weight"].T
    parts = []
    for v in (features, d):
        parts += [v, v.sin(), v.cos(), (2 * v).sin(), (2 * v).cos()]
    close(values["rgb"], torch.sigmoid(layers(torch.cat(parts, dim=-1), t, "color_net", 3)))


@pytest.mark.parametrize(("arch", "bound"), [("mlp", 1.0), ("mlp", 2.0)])
def test_mlp_encodes_world_coordinates(tmp_path: Path, arch: str, bound: float) -> None:
    state = save_torch_ngp(tmp_path / "n.pth", arch, bound=bound)
    record, field, x, d = opened(tmp_path / "n.pth")
    assert record.arch == ("mlp" if bound == 1 else "torch-ngp-mlp")
    encoded = [x]
    for k in range(4):
        encoded += [(2.0**k * x).sin(), (2.0**k * x).cos()]
    first = h = torch.cat(encoded, dim=-1)
    for i in range(4):
        h = torch.cat((first, h), dim=-1) if i == 2 else h
        h = F.linear(h, state[f"nerf_mlp.{i}.weight"], state[f"nerf_mlp.{i}.bias"])
        h = F.relu(h) if i < 3 else h
    feature = layers(h, state, "sigma_net", 2)
    close(field.block1(x), feature)
    rgb = torch.sigmoid(layers(torch.cat((spherical_harmonics(d), feature[:, 1:]), -1), state, "color_net", 3))
    close(field.query(x, d, ("rgb",))["rgb"], rgb)


@pytest.mark.parametrize("arch", ["vm", "tensors"])
def test_grids_with_other_sizes_along_each_axis(tmp_path: Path, arch: str) -> None:
    state = save_torch_ngp(tmp_path / "n.pth", arch)
    record, field, x, _ = opened(tmp_path / "n.pth")
    if arch == "tensors":
        volume = state["tensor_volume.0"]
        wanted = F.grid_sample(volume, x[None, :, None, None], align_corners=True)[0, 0, :, 0, 0]
        close(field.sigma_raw(x), wanted)
        return
    kinds = {k: [state[f"{k}.{m}"] for m in range(3)] for k in ("sigma_mat", "sigma_vec", "color_mat", "color_vec")}
    raw = sampled(kinds["sigma_mat"], kinds["sigma_vec"], x).sum(1)
    mixed = sampled(kinds["color_mat"], kinds["color_vec"], x) @ state["basis_mat.weight"].T
    close(field.block1(x), torch.cat((raw[:, None], mixed.clamp(-2, 7)), dim=-1))
    assert record.options["feature_clip"] == (-2.0, 7.0)


@pytest.mark.parametrize("kind", ["nerfacto", "instant-ngp"])
def test_nerfstudio_hash(tmp_path: Path, kind: str) -> None:
    config = "" if kind == "nerfacto" else "pipeline:\n  model:\n    disable_scene_contraction: true\n"
    record, field, x, d = opened(save_nerfstudio(tmp_path / kind, kind, config))
    x = x * 2.5 if kind == "nerfacto" else x
    t, said = dict(record.tensors), record.options
    norm = x.abs().amax(-1, keepdim=True)
    u = (torch.where(norm < 1, x, (2 - 1 / norm) * (x / norm)) + 2) / 4 if kind == "nerfacto" else (x + 1) / 2
    table, encoded = t["mlp_base.model.0.hash_table"], []
    growth = np.exp((np.log(64) - np.log(16)) / 3)
    for level, scale in enumerate(torch.floor(16 * growth ** torch.arange(4))):
        p = u * scale
        low, high, part = p.floor().int(), p.ceil().int(), p - p.floor()
        value = torch.zeros(len(u), 2)
        for corner in range(8):
            pick = torch.tensor([bool(corner >> a & 1) for a in range(3)])
            place = torch.where(pick, high, low) * torch.tensor([1, 2654435761, 805459861])
            row = (place[:, 0] ^ place[:, 1] ^ place[:, 2]) % 2**6 + level * 2**6
            value += torch.where(pick, part, 1 - part).prod(-1)[:, None] * table[row]
        encoded.append(value)
    base = layers(torch.cat(encoded, dim=-1), t, "mlp_base.model.1.layers", 2)
    values = field.query(x, d, ("sigma_raw", "rgb"))
    close(values["sigma_raw"].exp(), float(said["density_scale"]) * base[:, 0].exp())
    a, b, c = ((d + 1) / 2).unbind(-1)
    odd = {1: b, 3: a, 5: b * c, 7: a * c, 9: b * (3 * a * a - b * b), 15: a * (a * a - 3 * b * b)}
    harmonics = spherical_harmonics(torch.stack((a, b, c), -1)) * torch.tensor([1.0, -1.0] * 8)
    for i, value in odd.items():
        assert torch.allclose(harmonics[:, i] / harmonics[0, i], value / value[0], atol=1e-4)
        assert bool((harmonics[:, i] * value >= 0).all())
    h = torch.cat((harmonics, base[:, 1:], t["appearance"].expand(len(x), -1)), dim=-1)
    close(values["rgb"], torch.sigmoid(layers(h, t, "mlp_head.layers", 3)))


def test_nerfstudio_vanilla(tmp_path: Path) -> None:
    record, field, x, d = opened(save_nerfstudio(tmp_path / "v", "vanilla"))
    t = dict(record.tensors)

    def encode(v: Tensor, count: int, exponent: float) -> Tensor:
        turns = [2 * math.pi * 2.0 ** (exponent * i / (count - 1)) for i in range(count)]
        return torch.cat((sines(v, turns), v), dim=-1)

    first = h = encode(x, 10, 8.0)
    for i in range(8):
        h = torch.cat((first, h), dim=-1) if i == 4 else h
        h = F.relu(F.linear(h, t[f"mlp_base.layers.{i}.weight"], t[f"mlp_base.layers.{i}.bias"]))
    values = field.query(x, d, ("sigma_raw", "rgb"))
    density = F.softplus(F.linear(h, t["field_output_density.net.weight"], t["field_output_density.net.bias"])[:, 0])
    close(values["sigma_raw"].exp(), density, 1e-3)
    head = layers(torch.cat((encode(d, 4, 4.0), h), dim=-1), t, "mlp_head.layers", 2, last=True)
    rgb = torch.sigmoid(F.linear(head, t["field_heads.0.net.weight"], t["field_heads.0.net.bias"]))
    close(values["rgb"], rgb, 1e-3)


def test_nerfstudio_tensorf(tmp_path: Path) -> None:
    record, field, x, d = opened(save_nerfstudio(tmp_path / "t", "tensorf"))
    t, p = dict(record.tensors), x / 1.5
    parts = {k: (list(t[f"{k}_encoding.plane_coef"].split(1)), list(t[f"{k}_encoding.line_coef"].split(1)))
             for k in ("density", "color")}  # fmt: skip
    values = field.query(x, d, ("sigma_raw", "rgb"))
    close(values["sigma_raw"].exp(), F.relu(sampled(*parts["density"], p).sum(1)))
    features = sampled(*parts["color"], p) @ t["B.weight"].T
    turns = [2 * math.pi, 2 * math.pi * 4]
    h = torch.cat((features, d, sines(features, turns), sines(d, turns)), dim=-1)
    h = layers(h, t, "mlp_head.layers", 2, last=True)
    rgb = torch.sigmoid(F.linear(h, t["field_output_rgb.net.weight"], t["field_output_rgb.net.bias"]))
    close(values["rgb"], rgb, 2e-3)


def test_svox2(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    links = np.full((5, 6, 4), -1, np.int32)
    full = rng.random(links.shape) > 0.4
    links[full] = np.arange(full.sum())
    count = int(full.sum())
    np.savez(
        tmp_path / "s.npz",
        links=links,
        density_data=rng.normal(size=(count, 1)).astype(np.float32) * 10,
        sh_data=rng.normal(size=(count, 12)).astype(np.float16),
        radius=np.array([1.0, 1.2, 0.8], np.float32),
        center=np.array([0.1, 0.0, -0.2], np.float32),
        basis_type=np.array(1),
    )
    record, field, x, d = opened(tmp_path / "s.npz")
    t = record.tensors
    dense = torch.zeros(5, 6, 4, 13)
    mask = t["links"] >= 0
    dense[mask] = torch.cat((t["density_data"], t["sh_data"]), dim=1)[t["links"][mask].long()]
    radius, center, size = torch.tensor([1.0, 1.2, 0.8]), torch.tensor([0.1, 0.0, -0.2]), torch.tensor([5, 6, 4])
    place = ((x - center) / radius * 0.5 * size + 0.5 * size - 0.5).clamp_min(0).minimum(size - 1.0)
    unit = (2 * place / (size - 1) - 1).flip(-1)[None, :, None, None]
    value = F.grid_sample(dense.permute(3, 0, 1, 2)[None], unit, align_corners=True)[0, :, :, 0, 0].T
    values = field.query(x, d, ("sigma_raw", "rgb"))
    close(values["sigma_raw"].exp(), F.relu(value[:, 0]))
    rgb = torch.einsum("nck,nk->nc", value[:, 1:].view(-1, 3, 4), spherical_harmonics(d, 2)) + 0.5
    close(values["rgb"], rgb.clamp_min(0))


def test_wrapped_fields_are_teachers_only(tmp_path: Path) -> None:
    save_tensorf(tmp_path / "t.th")
    record, field, x, _ = opened(tmp_path / "t.th")
    assert field.arch == record.arch == "tensorf-vm"
    assert not any(p.requires_grad for p in field.parameters())
    assert field.state_blocks() == {}
    assert bool(field.query(x, None, ("sigma",))["sigma"].isfinite().all())
    with pytest.raises(UsageError, match="no intermediate feature"):
        field.block1(x)


def test_what_cannot_run_is_refused(tmp_path: Path) -> None:
    save_tensorf(tmp_path / "t.th", near_far=[0.0, 1.0])
    with pytest.raises(UsageError, match="normalised device coordinates"):
        opened(tmp_path / "t.th")
    record = FieldFile(arch="splats", options={}, tensors={}, aabb=(0, 0, 0, 1, 1, 1))
    with pytest.raises(UsageError, match="unknown field kind 'splats'"):
        foreign_field(record)
    assert len(KINDS) == 10
