"""Cameras, poses, and the ways from the world into the unit cube."""

from __future__ import annotations

import math

import pytest
import torch

from tests.plugins.field.sphere_field import Ball
from xarch.errors import UsageError
from xarch_field import Camera, look_at, sphere_pose
from xarch_field.model.warp import WARPS, contract, to_ndc, to_unit, to_world

BOX = torch.tensor([[-1.0, -2.0, -3.0], [1.0, 2.0, 4.0]])
NDC = (1.2, 1.6, 1.0)


def test_rays_go_through_pixel_centres() -> None:
    camera = Camera(4, 2, 2.0, 2.5, 2.0, 1.0, torch.eye(4))
    origins, dirs = camera.rays()
    assert origins.shape == dirs.shape == (8, 3)
    wanted = torch.tensor([(0.5 - 2.0) / 2.0, -(0.5 - 1.0) / 2.5, -1.0])
    assert torch.allclose(dirs[0], wanted / wanted.norm())
    assert torch.allclose(camera.rays(torch.tensor([5]))[1][0], dirs[5])
    assert float(dirs[5, 1]) < 0 < float(dirs[0, 1])


def test_field_of_view() -> None:
    camera = Camera.from_angle(100, 80, 0.6911, torch.eye(4))
    assert camera.fx == pytest.approx(0.5 * 100 / math.tan(0.5 * 0.6911))
    assert (camera.cx, camera.cy) == (50, 40)


def test_sphere_poses_look_at_their_target_with_z_up() -> None:
    target = torch.tensor([0.3, -0.2, 0.5])
    for azimuth, elevation in ((0.0, 0.0), (1.0, 0.7), (-2.5, 1.4), (0.3, math.pi / 2)):
        pose = sphere_pose(azimuth, elevation, 3.0, target)
        assert torch.allclose(pose[:3, :3].T @ pose[:3, :3], torch.eye(3), atol=1e-5)
        assert float(torch.det(pose[:3, :3])) == pytest.approx(1.0, abs=1e-5)
        assert torch.allclose(pose[:3, 3] - 3.0 * pose[:3, 2], target, atol=1e-5)
        assert float(pose[2, 1]) >= -1e-6
    assert torch.allclose(sphere_pose(0.0, 0.0, 2.0)[:3, 3], torch.tensor([2.0, 0.0, 0.0]))
    assert torch.allclose(look_at(torch.tensor([0.0, -4.0, 0.0]), torch.zeros(3))[:3, 0], torch.tensor([1.0, 0.0, 0.0]))


@pytest.mark.parametrize("warp", WARPS)
def test_warps_go_there_and_back(warp: str) -> None:
    u = torch.rand(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.9 + 0.05
    parameters = NDC if warp == "ndc" else ()
    box = torch.tensor([[-1.5, -1.67, -1.0], [1.5, 1.67, 1.0]]) if warp == "ndc" else BOX
    if warp == "contract_l2":
        u = u[(4 * u - 2).norm(dim=-1) < 1.99]
    x = to_world(u, box.double(), warp, parameters)
    assert torch.allclose(to_unit(x, box.double(), warp, parameters), u, atol=1e-9)


def test_contractions() -> None:
    v = torch.tensor([[0.2, 0.3, -0.4], [3.0, 0.0, 4.0]])
    assert torch.allclose(contract(v, "contract_l2")[0], v[0])
    assert torch.allclose(contract(v, "contract_l2")[1], v[1] / 5 * (2 - 1 / 5))
    assert torch.allclose(contract(v, "contract_inf")[1], v[1] / 4 * (2 - 1 / 4))
    far = to_unit(torch.tensor([[1e6, 1e6, -1e6]]), BOX, "contract_inf")
    assert bool(((far >= 0) & (far <= 1)).all())


def test_normalised_device_coordinates_of_the_frustum() -> None:
    near_corner = torch.tensor([[1 / NDC[0], 1 / NDC[1], -1.0]])
    assert torch.allclose(to_ndc(near_corner, *NDC), torch.tensor([[1.0, 1.0, -1.0]]))
    assert float(to_ndc(torch.tensor([[0.0, 0.0, -1e8]]), *NDC)[0, 2]) == pytest.approx(1.0)


def test_boxes_that_rays_cross() -> None:
    grid = torch.zeros(4, 4, 4, dtype=torch.bool)
    grid[1:3, 1:3, 2] = True
    assert torch.allclose(Ball(occupancy=grid).march_box(), torch.tensor([[-0.5, -0.5, 0.0], [0.5, 0.5, 0.5]]))
    ball = Ball(occupancy=grid.clone())
    first = ball.march_box()
    assert ball.march_box() is first
    ball.occupancy[0] = True
    assert float(ball.march_box()[0, 0]) == -1.0
    ball.aabb.mul_(2)
    assert float(ball.march_box()[0, 0]) == -2.0
    ball.set_occupancy(grid)
    assert torch.allclose(ball.march_box()[1], torch.tensor([1.0, 1.0, 1.0]))
    assert torch.allclose(Ball(warp="contract_l2").march_box(), torch.tensor([[-8.0] * 3, [8.0] * 3]))
    with pytest.raises(UsageError, match="no world box"):
        Ball(warp="ndc", warp_parameters=NDC).march_box()
    with pytest.raises(UsageError, match="upper > lower"):
        Ball(aabb=[[0, 0, 0], [1, 0, 1]])
    with pytest.raises(UsageError, match="warp 'sphere'"):
        Ball(warp="sphere")
