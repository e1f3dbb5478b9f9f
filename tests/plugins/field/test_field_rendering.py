"""Quadrature against closed forms, marching against geometry, rendering only where there is matter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.plugins.field.sphere_field import COLOUR, RADIUS, SIGMA, Ball
from xarch.errors import UsageError
from xarch_field import composite, march, ray_points, render
from xarch_field.model import occupancy
from xarch_field.model.densities import DensityGrid, build

BOX = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])


def rays(*offsets: float) -> tuple[Tensor, Tensor]:
    """Rays along +y that pass the origin at the given distances."""
    origins = torch.tensor([[x, -3.0, 0.0] for x in offsets])
    return origins, torch.tensor([[0.0, 1.0, 0.0]]).expand(len(offsets), 3)


def test_opacity_and_depth_of_a_homogeneous_ball() -> None:
    origins, dirs = rays(0.0, 0.3, 0.7)
    seen = render(Ball(), origins, dirs, torch.zeros(3), samples=256)
    chord = [2 * math.sqrt(RADIUS**2 - x * x) if x < RADIUS else 0.0 for x in (0.0, 0.3, 0.7)]
    wanted = [1 - math.exp(-SIGMA * c) for c in chord]
    assert seen["acc"].tolist() == pytest.approx(wanted, abs=5e-3)
    assert torch.allclose(seen["rgb"], seen["acc"][:, None] * torch.tensor(COLOUR), atol=1e-6)
    entry = 3 - RADIUS
    length, optical = chord[0], SIGMA * chord[0]
    mean = entry + length * (1 / optical - 1 / math.expm1(optical))
    assert float(seen["depth"][0] / seen["acc"][0]) == pytest.approx(mean, abs=1e-2)


def test_weights_and_remaining_light_sum_to_one() -> None:
    generator = torch.Generator().manual_seed(0)
    sigma, delta = torch.rand(50, 40, generator=generator) * 30, torch.rand(50, 40, generator=generator) * 0.1
    ones = torch.ones(50, 40, 3)
    _, acc, _ = composite(sigma, ones, delta, torch.zeros(3), delta)
    left = torch.exp(-(sigma * delta).sum(1))
    assert torch.allclose(acc + left, torch.ones(50), atol=1e-6)
    rgb, _, _ = composite(sigma, ones, delta, torch.ones(3), delta)
    assert torch.allclose(rgb, torch.ones(50, 3), atol=1e-6)


def test_composite_equals_the_product_form_and_stays_float32_under_autocast() -> None:
    generator = torch.Generator().manual_seed(1)
    sigma, delta = torch.rand(9, 12, generator=generator) * 9, torch.full((9, 12), 0.1)
    rgb, t = torch.rand(9, 12, 3, generator=generator), torch.arange(12.0).expand(9, 12)
    background = torch.rand(9, 3, generator=generator)
    alpha = 1 - torch.exp(-sigma * delta)
    light = torch.cumprod(torch.cat((torch.ones(9, 1), 1 - alpha), dim=1), dim=1)
    weight = light[:, :-1] * alpha
    with torch.autocast("cpu", torch.bfloat16):
        seen = composite(sigma, rgb, delta, background, t)
    wanted = (weight[..., None] * rgb).sum(1) + light[:, -1:] * background, weight.sum(1), (weight * t).sum(1)
    for a, b in zip(seen, wanted, strict=True):
        assert a.dtype == torch.float32
        assert torch.allclose(a, b, atol=1e-5)


def test_march_stays_between_the_faces_of_the_box() -> None:
    origins = torch.tensor([[0.0, -3.0, 0.0], [0.0, 0.0, 0.0], [5.0, -3.0, 0.0], [0.0, 3.0, 0.0]])
    dirs = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    t, delta, mask = march(origins, dirs, BOX, None, 8)
    assert torch.allclose(t[0], 2 + (torch.arange(8) + 0.5) * 0.25)
    assert torch.allclose(t[1], (torch.arange(8) + 0.5) * 0.125)
    assert delta.sum(1).tolist() == pytest.approx([2, 1, 0, 0])
    assert mask.any(1).tolist() == [True, True, False, False]
    jittered, _, _ = march(origins, dirs, BOX, None, 8, torch.zeros(4))
    assert float(jittered[0, 0]) == pytest.approx(2.0)


def test_march_masks_empty_cells() -> None:
    grid = torch.zeros(4, 4, 4, dtype=torch.bool)
    grid[2, 1, 2] = True
    t, _, mask = march(torch.tensor([[0.1, -3.0, 0.1]]), torch.tensor([[0.0, 1.0, 0.0]]), BOX, grid, 64)
    assert bool((mask[0] == ((t[0] > 2.5) & (t[0] < 3.0))).all())


def test_only_occupied_points_are_asked_and_nothing_means_background() -> None:
    grid = torch.zeros(2, 2, 2, dtype=torch.bool)
    grid[1] = True
    ball = Ball(occupancy=grid)
    origins, dirs = rays(0.2, -0.2)
    points = ray_points(ball, origins, dirs, 32)
    assert bool((points.x_N3[:, 0] > 0).all())
    seen = render(ball, origins, dirs, torch.tensor([0.1, 0.2, 0.3]), samples=32)
    assert float(seen["acc"][0]) > 0.9
    assert seen["rgb"][1].tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_rendering_in_chunks_is_the_same_and_no_rays_are_no_error() -> None:
    origins, dirs = rays(0.0, 0.1, 0.2, 0.3, 0.4)
    whole, parts = (render(Ball(), origins, dirs, samples=16, chunk=c) for c in (100, 2))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    assert render(Ball(), origins[:0], dirs[:0])["rgb"].shape == (0, 3)


def test_gradients_reach_what_is_behind_the_samples() -> None:
    sigma, rgb = torch.rand(3, 5, requires_grad=True), torch.rand(3, 5, 3, requires_grad=True)
    out, acc, depth = composite(sigma, rgb, torch.full((3, 5), 0.2), torch.zeros(3), torch.ones(3, 5))
    (out.sum() + acc.sum() + depth.sum()).backward()
    assert bool((sigma.grad != 0).all())
    assert bool((rgb.grad > 0).all())


def test_density_clips_masks_and_the_query_is_checked() -> None:
    ball = Ball(sigma_clip=(-2.0, 7.0))
    raw = torch.tensor([-50.0, 0.0, 50.0])
    assert ball.density(raw).tolist() == pytest.approx([math.exp(-2), 1.0, math.exp(7)])
    outside = ball.query(torch.tensor([[0.0, 0.0, 4.0]]), None, ("sigma",))
    assert float(outside["sigma"]) == 0.0
    with pytest.raises(UsageError, match="no intermediate feature"):
        ball.block1(torch.zeros(1, 3))
    with pytest.raises(UsageError, match="unknown field values colour"):
        ball.query(torch.zeros(1, 3), None, ("colour",))
    with pytest.raises(UsageError, match="needs directions"):
        ball.query(torch.zeros(1, 3), None, ("rgb",))


def test_occupancy_found_by_asking_covers_the_ball_tightly() -> None:
    ball = Ball()
    grid = build(ball, resolution=32, grow=0)
    axis = (torch.arange(32) + 0.5) / 16 - 1
    centre = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).norm(dim=-1)
    assert bool(grid[centre < RADIUS - 0.06].all())
    assert not bool(grid[centre > RADIUS + 0.06].any())
    grown = build(ball, resolution=32)
    assert torch.equal(grown, occupancy.dilate(grid))
    low, high = occupancy.bounds(grid)
    assert low.tolist() == pytest.approx([0.25] * 3)
    assert high.tolist() == pytest.approx([0.75] * 3)


def test_a_refreshed_grid_remembers_asks_only_within_and_grows_along_matter() -> None:
    ball, full = Ball(), torch.ones(32, 32, 32, dtype=torch.bool)
    whole = build(ball, resolution=32, passes=1)
    cells = DensityGrid(full, decay=0.5)
    assert torch.equal(cells.refresh(ball), whole)
    seen = cells.sigma_HHH.clone()
    hidden = Ball(sigma_clip=(-20.0, -10.0))
    cells.refresh(hidden)
    assert torch.allclose(cells.sigma_HHH, seen * 0.5, atol=1e-4)

    left = full.clone()
    left[16:] = False
    halves = DensityGrid(left)
    first = halves.refresh(ball)
    assert not bool(halves.sigma_HHH[16:].any())
    assert torch.equal(first[:15], whole[:15])
    assert not bool(first[17:].any())
    for _ in range(10):
        grown = halves.refresh(ball)
    assert bool(grown[whole].float().mean() > 0.95)


def test_points_are_drawn_in_occupied_cells() -> None:
    grid = torch.zeros(8, 8, 8, dtype=torch.bool)
    grid[1, 2, 3] = grid[7, 7, 7] = True
    u = occupancy.sample(grid, 1000, torch.Generator().manual_seed(0), uniform=0.2)
    hit = occupancy.lookup(grid, u)
    assert bool(hit[:800].all())
    assert float(hit[800:].float().mean()) < 0.1
    cells = (u[:800] * 8).long()
    assert 300 < int((cells[:, 0] == 1).sum()) < 500
    anywhere = occupancy.sample(torch.zeros_like(grid), 50, torch.Generator().manual_seed(0))
    assert anywhere.shape == (50, 3)


def test_an_occupancy_of_another_size_loads() -> None:
    ball = Ball(occupancy=torch.rand(4, 4, 4, generator=torch.Generator().manual_seed(0)) > 0.5)
    other = Ball()
    other.load_state_dict(ball.state_dict())
    assert torch.equal(other.occupancy, ball.occupancy)
