"""Voxel files and meshes: a field that is written and read again renders the same (acceptance A13)."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from xarch import UsageError
from xarch_field import Camera, RadianceField, render, sphere_pose
from xarch_pvd.source.formats import (
    FieldFile,
    read_field,
    svox2_to_tensors,
    tensors_to_svox2,
    write_pvd_pth,
    write_svox2_npz,
    write_voxels_npz,
)
from xarch_pvd.source.formats.mesh_ply import field_mesh, write_mesh_ply
from xarch_pvd.targets.representations import OPTIONS, build_field
from xarch_pvd.targets.representations.records import from_file, to_file
from xarch_pvd.train.scene import FOV, RADIUS, colours, distances

BOX = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)
SIDE = 40


def scene_volume() -> FieldFile:
    """The procedural scene as voxels: log-density from its distances, colours with a view-dependent part."""
    line = torch.linspace(-1, 1, SIDE)
    points = torch.cartesian_prod(line, line, line)
    raw = (5 - 60 * distances(points).amin(-1)).clamp(-2, 7)
    volume = torch.zeros(13, SIDE**3)
    volume[0] = raw
    logits = torch.logit(colours(points).clamp(0.02, 0.98)) / 0.28209479
    volume[1::4] = logits.T
    volume[3::4] = 0.3 * points[:, 2]
    full = torch.nn.functional.interpolate((raw > -2).float().view(1, 1, SIDE, SIDE, SIDE), size=32, mode="trilinear")
    occupancy = torch.nn.functional.max_pool3d(full, 3, 1, 1)[0, 0] > 0
    return FieldFile(
        "tensors",
        {"resolution": SIDE, "degree": 2},
        {"volume": volume.view(13, SIDE, SIDE, SIDE)},
        BOX,
        sigma_clip=(-2.0, 7.0),
        occupancy=occupancy,
        background=(1.0, 1.0, 1.0),
    )


def view() -> Camera:
    return Camera.from_angle(32, 32, FOV, sphere_pose(0.7, 0.5, RADIUS))


def picture(field: RadianceField) -> Tensor:
    origins, dirs = view().rays()
    with torch.no_grad():
        return render(field, origins, dirs, samples=96)["rgb"]


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10(max(float((a - b).square().mean()), 1e-20))


def test_half_precision_voxels_render_alike(tmp_path: Path) -> None:
    record = scene_volume()
    before = picture(from_file(record))
    for name, options, limit in (("raw", {}, 45), ("linear", {"linear": True}, 45), ("full", {"half": False}, 100)):
        write_voxels_npz(record, tmp_path / f"{name}.npz", **options)
        again = read_field(tmp_path / f"{name}.npz")
        assert again.arch == "tensors"
        assert again.options == record.options
        assert (again.aabb, again.sigma_clip, again.background) == (record.aabb, record.sigma_clip, record.background)
        assert psnr(picture(from_file(again)), before) > limit


def test_plain_density_and_colour(tmp_path: Path) -> None:
    """What a user's own program writes: sigma and rgb, no mask, no clip."""
    record = scene_volume()
    sigma = record.tensors["volume"][0].exp()
    sigma = torch.where(sigma > 0.14, sigma, 0.0)
    rgb = torch.sigmoid(record.tensors["volume"][1::4] * 0.28209479).permute(1, 2, 3, 0)
    np.savez(tmp_path / "a.npz", sigma=sigma.numpy(), rgb=rgb.numpy(), aabb=np.array(BOX), order=np.array("xyz"))
    again = read_field(tmp_path / "a.npz")
    assert again.options == {"resolution": SIDE, "degree": 1}
    field = from_file(again)
    place = torch.tensor([[3, 20, 20], [20, 35, 20], [20, 20, 30]])
    points = place / (SIDE - 1) * 2 - 1
    values = field.query(points, torch.tensor([[0.0, 0, 1]]).expand(3, 3), ("sigma", "rgb"))
    i, j, k = place.unbind(-1)
    assert torch.allclose(values["rgb"], rgb[i, j, k], atol=2e-3)
    # Zero has no logarithm: it becomes a haze of less than a thousandth over the whole box, and is masked.
    assert torch.allclose(values["sigma"], sigma[i, j, k], rtol=1e-4, atol=1e-3)
    white = torch.ones(32 * 32, 3)
    assert 8 < psnr(picture(field), white) < 30


@pytest.mark.parametrize("arch", sorted(set(OPTIONS) - {"hash+vm"}))
def test_torch_ngp_checkpoints_render_alike(tmp_path: Path, arch: str) -> None:
    torch.manual_seed(3)
    options = OPTIONS[arch].model_validate({"preset": "small"})
    occupancy = torch.zeros(32, 32, 32, dtype=torch.bool)
    occupancy[8:24, 8:24, 4:28] = True
    field = build_field(arch, options, aabb=[[-1] * 3, [1] * 3], occupancy=occupancy, background=(0.2, 0.4, 0.6))
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.copy_(torch.randn_like(parameter) / max(parameter.shape[-1], 4) ** 0.5)
    write_pvd_pth(to_file(field, options.model_dump()), tmp_path / "a.pth")
    again = from_file(read_field(tmp_path / "a.pth", allow_pickle=True))
    before = picture(field)
    assert float(before.std()) > 0.01
    assert psnr(picture(again), before) > 60


def test_svox2_keeps_its_numbers(tmp_path: Path) -> None:
    record = scene_volume()
    write_svox2_npz(record, tmp_path / "a.npz")
    first = read_field(tmp_path / "a.npz")
    write_svox2_npz(first, tmp_path / "b.npz")
    second = read_field(tmp_path / "b.npz")
    assert first.arch == "svox2"
    assert first.options["degree"] == 2
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[name])
    assert first.aabb == second.aabb
    stored = np.load(tmp_path / "a.npz")
    assert stored["links"].dtype == np.int32
    assert stored["sh_data"].dtype == np.float16
    assert stored["basis_type"] == 1


def svox2_at(record: FieldFile, points: Tensor, dirs: Tensor) -> tuple[Tensor, Tensor]:
    """svox2's own evaluation, one point at a time: world to grid, eight links, no exponential, no sigmoid."""
    links, rows = record.tensors["links"], torch.cat([record.tensors["density_data"], record.tensors["sh_data"]], 1)
    out_sigma, out_rgb = [], []
    for x, (dx, dy, dz) in zip(points.tolist(), dirs.tolist(), strict=True):
        total = torch.zeros(rows.shape[1])
        cell, share = [], []
        for axis, count in enumerate(links.shape):
            center, radius = record.options["center"][axis], record.options["radius"][axis]
            place = (x[axis] - center) / radius * 0.5 * count + 0.5 * count - 0.5
            place = min(max(place, 0.0), count - 1.0)
            cell.append(min(int(place), count - 2))
            share.append(place - cell[-1])
        for corner in range(8):
            at, weight = [], 1.0
            for axis in range(3):
                step = corner >> axis & 1
                at.append(cell[axis] + step)
                weight *= share[axis] if step else 1 - share[axis]
            row = int(links[at[0], at[1], at[2]])
            total += weight * rows[row] if row >= 0 else 0
        basis = torch.tensor([0.28209479, -0.48860251 * dy, 0.48860251 * dz, -0.48860251 * dx])
        out_sigma.append(total[0].clamp(min=0))
        out_rgb.append(((total[1:].view(3, 4) * basis).sum(1) + 0.5).clamp(min=0))
    return torch.stack(out_sigma), torch.stack(out_rgb)


def test_svox2_conversion_is_exact_at_samples() -> None:
    record = scene_volume()
    field, grid = from_file(record), tensors_to_svox2(record, exact=True)
    place = (record.tensors["volume"][0] > 0).nonzero()[::97]
    points = place / (SIDE - 1) * 2 - 1
    dirs = torch.nn.functional.normalize(
        torch.randn(len(points), 3, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    sigma, rgb = svox2_at(grid, points, dirs)
    with torch.no_grad():
        wanted = field.query(points, dirs, ("sigma_raw", "rgb"))
    assert len(points) > 20
    assert torch.allclose(sigma.log(), wanted["sigma_raw"].clamp(-2, 7), atol=1e-3)
    # A sigmoid of four harmonics is no four harmonics; what is left is below one step of eight bits on average.
    assert float((rgb.clamp(max=1) - wanted["rgb"]).abs().mean()) < 4e-3
    outside = (record.tensors["volume"][0] <= -2).nonzero()[::501]
    sigma, _ = svox2_at(grid, outside / (SIDE - 1) * 2 - 1, torch.ones(len(outside), 3))
    assert float(sigma.max()) < 1e-5


def test_svox2_there_and_back_renders_alike(tmp_path: Path) -> None:
    record = scene_volume()
    write_svox2_npz(tensors_to_svox2(record, exact=True), tmp_path / "a.npz")
    again = svox2_to_tensors(read_field(tmp_path / "a.npz"))
    assert again.aabb == pytest.approx(record.aabb)
    assert again.options == record.options
    assert psnr(picture(from_file(again)), picture(from_file(record))) > 35


def test_svox2_keeps_surfaces_or_fog() -> None:
    """Densities that are exact at samples thicken surfaces; a line in the log-density cuts thin matter off."""
    record = scene_volume()
    thin = record.tensors["volume"].clone()
    line = torch.linspace(0, 1, SIDE)
    thin[0] = -1.5 + 2 * (line[:, None, None] * line[:, None]) * line
    coarse = record.tensors["volume"][:, ::2, ::2, ::2].contiguous()
    solid = replace(record, options={"resolution": SIDE // 2, "degree": 2}, tensors={"volume": coarse})
    fog = replace(record, tensors={"volume": thin}, occupancy=torch.ones(8, 8, 8, dtype=torch.bool))
    found = {}
    for name, scene in (("solid", solid), ("fog", fog)):
        before = picture(from_file(scene))
        for exact in (True, False):
            found[name, exact] = psnr(picture(from_file(tensors_to_svox2(scene, exact=exact))), before)
    assert found["solid", False] > found["solid", True] + 2
    assert found["fog", True] > 34


def test_svox2_refusals(tmp_path: Path) -> None:
    write_svox2_npz(scene_volume(), tmp_path / "a.npz")
    good = dict(np.load(tmp_path / "a.npz"))
    broken = {
        "links": np.full_like(good["links"], len(good["density_data"])),
        "density_data": good["density_data"][:-1],
        "sh_data": good["sh_data"][:, :11],
        "radius": np.zeros(3),
        "basis_type": np.array(4),
    }
    for name, value in broken.items():
        np.savez(tmp_path / "b.npz", **(good | {name: value}))
        with pytest.raises(UsageError):
            read_field(tmp_path / "b.npz")
    with pytest.raises(UsageError, match="support hash"):
        write_svox2_npz(FieldFile("hash", {}, {}, BOX), tmp_path / "c.npz")


def test_mesh_of_the_scene(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    record = scene_volume()
    field = from_file(record)
    vertices, faces, colour = field_mesh(field, level=20.0, resolution=64)
    # The density is 20 at 5 - 60 d = log 20, three hundredths outside of the surface.
    wanted = (5 - math.log(20)) / 60
    assert float((distances(vertices).amin(-1) - wanted).abs().median()) < 0.02
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    volume = (a * torch.linalg.cross(b, c)).sum() / 6
    assert 0.5 < float(volume) < 1.1
    top = vertices[:, 2].argmax()
    assert torch.allclose(colour[top], torch.tensor([0.9, 0.75, 0.2]), atol=0.2)
    count = write_mesh_ply(field, tmp_path / "a.ply", level=20.0, resolution=64)
    assert count == (len(vertices), len(faces))
    head, _, body = (tmp_path / "a.ply").read_bytes().partition(b"end_header\n")
    assert f"element vertex {count[0]}".encode() in head
    assert len(body) == 15 * count[0] + 13 * count[1]
    place = np.frombuffer(body, dtype="<f4", count=3)
    assert torch.allclose(torch.from_numpy(place.copy()), vertices[0])
    with pytest.raises(UsageError, match="never cross"):
        field_mesh(field, level=1e6, resolution=16)
