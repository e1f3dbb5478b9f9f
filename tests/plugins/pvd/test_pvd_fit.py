"""Boxes that fit cameras, and boxes that are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.plugins.pvd.posed_folders import cameras, write_blender, write_colmap, write_llff, write_nsvf
from xarch import UsageError
from xarch_pvd.data.datasets.fit import check_box, crosses, fit_box, meeting_point
from xarch_pvd.data.datasets.open import open_posed


def test_inward_cameras_meet(tmp_path: Path) -> None:
    poses = cameras(12)
    poses[:, :3, 3] += torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    write_blender(tmp_path, poses)
    posed = open_posed(tmp_path)
    middle, share = meeting_point(posed)
    assert torch.allclose(middle, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), atol=1e-4)
    assert share == 1
    box = fit_box(posed)
    low, high = torch.tensor(box.corners)
    assert torch.allclose((low + high) / 2, torch.tensor([1.0, 2.0, 3.0]), atol=1e-4)
    # 24 pixels at a focal length of 30, 3.2 away: the picture shows 1.28 to both sides.
    assert torch.allclose((high - low) / 2, torch.full((3,), 1.28), atol=1e-3)
    assert box.warp == "aabb"
    assert box.hit > 0.9
    assert box.scale == pytest.approx(1 / 1.28, rel=1e-3)


def test_outward_cameras_get_a_contraction(tmp_path: Path) -> None:
    poses = cameras(12)
    poses[:, :3, :3] = poses[:, :3, :3] * torch.tensor([-1.0, 1.0, -1.0], dtype=torch.float64)
    write_blender(tmp_path, poses)
    box = fit_box(open_posed(tmp_path))
    assert box.warp == "contract_inf"
    low, high = torch.tensor(box.corners)
    places = poses[:, :3, 3]
    assert bool(((places > low) & (places < high)).all())


def test_near_and_far_points_and_files(tmp_path: Path) -> None:
    write_llff(tmp_path / "llff", cameras(9, forward=True))
    box = fit_box(open_posed(tmp_path / "llff"))
    assert box.how == "near and far depths"
    assert box.hit > 0.99
    # near 4/3, far 4, looking along -z
    assert box.aabb[2] < -4
    assert box.aabb[5] > -4 / 3
    write_colmap(tmp_path / "colmap", cameras(9))
    assert fit_box(replace(open_posed(tmp_path / "colmap"), points=torch.rand(500, 3) * 2 - 1)).how.endswith("points")
    write_nsvf(tmp_path / "nsvf", cameras(8))
    assert fit_box(open_posed(tmp_path / "nsvf")).aabb == pytest.approx((-1.2, -1.2, -0.6, 1.2, 1.2, 0.6))


def test_a_box_that_rays_miss_is_refused(tmp_path: Path) -> None:
    write_llff(tmp_path, cameras(9, forward=True))
    posed = open_posed(tmp_path)
    with pytest.raises(UsageError, match="0% of the rays"):
        check_box(posed, (-1.0, -1.0, 5.0, 1.0, 1.0, 6.0))
    with pytest.raises(UsageError, match="cross the box"):
        fit_box(replace(posed, box=(10.0, 10.0, 10.0, 11.0, 11.0, 11.0)))
    assert check_box(posed, (10.0, 10.0, 10.0, 11.0, 11.0, 11.0), warp="contract_inf") == 1


def test_crossing_by_hand() -> None:
    box = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)
    origins = torch.tensor([[0.0, 0, 3], [0, 0, 3], [0, 0, 0], [3, 0, 3], [1.5, 0, 3]])
    dirs = torch.tensor([[0.0, 0, -1], [0, 0, 1], [0, 1, 0], [-(0.5**0.5), 0, -(0.5**0.5)], [0, 0, -1]])
    assert crosses(origins, dirs, box).tolist() == [True, False, True, True, False]
