"""Checkpoints of torch-ngp and PVD: what is read, and what is written back."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import grid_sample

from tests.plugins.pvd.foreign_fields import morton_by_hand, save_torch_ngp, torch_ngp_offsets
from xarch import UsageError
from xarch_pvd.source.formats import FieldFile, read_field, read_pvd_pth, write_pvd_pth
from xarch_pvd.source.formats.hash_levels import growth_of
from xarch_pvd.source.formats.occupancy import any_over, morton, pack_bits, unpack_bits

ARCHS = ("hash", "mlp", "vm", "tensors", "ngp-vm", "ngp-cp")


@pytest.mark.parametrize("arch", ARCHS)
def test_read_and_written_back(tmp_path: Path, arch: str) -> None:
    state = save_torch_ngp(tmp_path / "a.pth", arch)
    record = read_field(tmp_path / "a.pth", allow_pickle=True)
    assert record.arch == (f"torch-{arch}" if arch.startswith("ngp") else arch)
    assert record.sigma_clip == (None if arch.startswith("ngp") else (-2, 7))
    assert record.occupancy is not None
    assert record.occupancy.nonzero().tolist() == [[3, 9, 14], [15, 0, 7]]
    write_pvd_pth(record, tmp_path / "b.pth", grid_side=16)
    written = torch.load(tmp_path / "b.pth", weights_only=True)
    assert set(written["model"]) == set(state)
    for name, tensor in state.items():
        if name != "density_grid":
            assert torch.equal(written["model"][name], tensor), name
    assert torch.equal(written["model"]["density_grid"] > 10, state["density_grid"] > 10)
    again = read_field(tmp_path / "b.pth", allow_pickle=True)
    assert (again.arch, again.options, again.aabb) == (record.arch, record.options, record.aabb)
    assert again.sigma_clip == record.sigma_clip


def test_options(tmp_path: Path) -> None:
    options = {}
    for arch in ARCHS:
        save_torch_ngp(tmp_path / "a.pth", arch)
        options[arch] = dict(read_pvd_pth(tmp_path / "a.pth", allow_pickle=True).options)
    assert (options["hash"]["levels"], options["hash"]["features"], options["hash"]["finest"]) == (14, 2, 2048)
    assert sum(options["hash"]["sizes"]) == 256 * 14
    assert options["mlp"] == {
        "frequencies": 4, "width": 32, "layers": 4, "skip": 2, "output": 28, "hidden": 64, "degree": 4, "geometry": 15,
    }  # fmt: skip
    assert (options["vm"]["resolution"], options["vm"]["density_rank"], options["vm"]["colour_rank"]) == (
        [7, 8, 9],
        3,
        4,
    )
    assert options["vm"]["feature_clip"] == (-2, 7)
    assert options["tensors"] == {"resolution": [4, 5, 6], "degree": 2}
    assert options["ngp-cp"]["feature_frequencies"] == 2


def test_voxel_axes(tmp_path: Path) -> None:
    """The authors sample their volume by points as they are; ours at the same point holds the same value."""
    state = save_torch_ngp(tmp_path / "a.pth", "tensors")
    volume = read_pvd_pth(tmp_path / "a.pth", allow_pickle=True).tensors["volume"]
    assert tuple(volume.shape) == (13, 4, 5, 6)
    corner = torch.tensor([[[[[-1 + 2 * 1 / 3, -1 + 2 * 2 / 4, -1 + 2 * 4 / 5]]]]])
    theirs = grid_sample(state["tensor_volume.0"], corner, align_corners=True)[0, :, 0, 0, 0]
    assert torch.allclose(volume[:, 1, 2, 4], theirs, atol=1e-5)


@pytest.mark.parametrize(("levels", "log2", "finest"), [(14, 19, 2048), (16, 19, 2048), (8, 15, 256), (14, 19, 16384)])
def test_growth_is_found_in_the_offsets(levels: int, log2: int, finest: int) -> None:
    offsets = torch_ngp_offsets(levels, log2, finest)
    growth, _ = growth_of(offsets, 8.0, "file")
    assert 16 * growth ** (levels - 1) == pytest.approx(finest)


def test_an_unusual_growth_has_to_be_said() -> None:
    offsets = torch_ngp_offsets(10, 19, 777)
    with pytest.raises(UsageError, match="growth"):
        growth_of(offsets, 1.0, "file")
    growth = 2 ** (math.log2(777 / 16) / 9)
    assert growth_of(offsets, 1.0, "file", growth)[0] == growth


def test_offsets_of_the_paper() -> None:
    assert torch_ngp_offsets(14, 19, 2048)[-1] == 5_303_704


def test_cascades_are_merged_and_nothing_is_lost(tmp_path: Path) -> None:
    save_torch_ngp(tmp_path / "a.pth", "hash", bound=4.0)
    record = read_field(tmp_path / "a.pth", allow_pickle=True)
    grid = record.occupancy
    assert grid is not None
    assert tuple(grid.shape) == (64, 64, 64)
    # Fine cell (3, 9, 14) of ±1 in 16 cells is one cell of 64 over ±4; a coarse cell is 4x4x4 of them.
    assert int(grid.sum()) == 1 + 64
    assert bool(grid[24 + 3, 24 + 9, 24 + 14])
    assert bool(grid[60:, :4, 28:32].all())
    write_pvd_pth(record, tmp_path / "b.pth", grid_side=16)
    again = read_field(tmp_path / "b.pth", allow_pickle=True).occupancy
    assert again is not None
    assert bool((again | ~grid).all())


def test_morton_and_bits() -> None:
    order = morton(8)
    for x, y, z in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (5, 3, 7)):
        assert int(order[x, y, z]) == morton_by_hand(x, y, z)
    grids = torch.rand(2, 8, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.7
    assert torch.equal(unpack_bits(pack_bits(grids).flatten(), 2, 8), grids)


def test_any_over_by_hand() -> None:
    grid = torch.zeros(4, 4, 4, dtype=torch.bool)
    grid[1, 2, 3] = True
    box = (0.0, 0.0, 0.0, 4.0, 4.0, 4.0)
    assert torch.equal(any_over(grid, box, box, (4, 4, 4)), grid)
    assert any_over(grid, box, box, (2, 2, 2)).nonzero().tolist() == [[0, 1, 1]]
    assert int(any_over(grid, box, box, (8, 8, 8)).sum()) == 8
    # A box shifted by half a cell cuts it in two along x.
    shifted = (0.5, 0.0, 0.0, 4.5, 4.0, 4.0)
    assert any_over(grid, box, shifted, (4, 4, 4)).nonzero().tolist() == [[0, 2, 3], [1, 2, 3]]
    assert not bool(any_over(grid, box, (10.0, 0.0, 0.0, 14.0, 4.0, 4.0), (4, 4, 4)).any())


def test_an_mlp_in_another_box_is_another_arch(tmp_path: Path) -> None:
    save_torch_ngp(tmp_path / "a.pth", "mlp", bound=2.0)
    record = read_field(tmp_path / "a.pth", allow_pickle=True)
    assert record.arch == "torch-ngp-mlp"
    moved = FieldFile("mlp", record.options, record.tensors, (0.0, 0.0, 0.0, 1.0, 1.0, 1.0))
    with pytest.raises(UsageError, match="world coordinates"):
        write_pvd_pth(moved, tmp_path / "b.pth")


@pytest.mark.parametrize(
    ("arch", "name", "shape"),
    [
        ("hash", "encoder.embeddings", (12, 2)),
        ("hash", "sigma_net.0.weight", (64, 30)),
        ("hash", "density_bitfield", (3,)),
        ("hash", "density_grid", (1, 1000)),
        ("mlp", "nerf_mlp.0.weight", (32, 28)),
        ("mlp", "nerf_mlp.1.bias", (31,)),
        ("vm", "sigma_mat.1", (1, 3, 9, 8)),
        ("vm", "color_net.0.weight", (64, 30)),
        ("tensors", "tensor_volume.0", (1, 14, 6, 5, 4)),
        ("tensors", "aabb_train", (5,)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(tmp_path: Path, arch: str, name: str, shape: tuple[int, ...]) -> None:
    save_torch_ngp(tmp_path / "a.pth", arch)
    saved = torch.load(tmp_path / "a.pth", weights_only=True)
    saved["model"][name] = torch.zeros(shape, dtype=saved["model"][name].dtype)
    torch.save(saved, tmp_path / "b.pth")
    with pytest.raises(UsageError):
        read_field(tmp_path / "b.pth", allow_pickle=True)
