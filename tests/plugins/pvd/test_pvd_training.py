"""Training from pictures: where the occupancy grid comes from, and that it loses no matter."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from tests.plugins.pvd.tiny_field import OPTIONS_OF
from xarch_field import RadianceField
from xarch_field.model import occupancy
from xarch_pvd.targets.representations import OPTIONS, build_field
from xarch_pvd.train import scene
from xarch_pvd.train.coarse import coarse_occupancy
from xarch_pvd.train.training import Pixels, TrainingOptions, train_field

CELLS = 32


def untrained() -> RadianceField:
    torch.manual_seed(0)
    return build_field("vm", OPTIONS["vm"].model_validate(OPTIONS_OF["vm"]), aabb=scene.BOX)


def pictured(size: int = 40, views: int = 16) -> Pixels:
    cameras = scene.random_cameras(views, size, torch.Generator().manual_seed(0))
    return Pixels.of(cameras, lambda i: scene.render_view(cameras[i]))


def distances() -> Tensor:
    """Signed distance of every cell's middle to the nearest body."""
    axis = (torch.arange(CELLS) + 0.5) / CELLS * 2 - 1
    middle = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    return scene.distances(middle.view(-1, 3)).amin(dim=-1).view(CELLS, CELLS, CELLS)


def found(pixels: Pixels, model: RadianceField, steps: int = 192) -> Tensor:
    return coarse_occupancy(model, pixels, resolution=CELLS, steps=steps, rays=256, samples=48, seed=0)


@pytest.mark.slow
def test_the_coarse_grid_holds_every_surface_and_little_else() -> None:
    model = untrained()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grid, away = found(pictured(), model), distances()
    assert bool(grid[away.abs() < 0.02].all())
    assert float(grid[away > 0.2].float().mean()) < 0.1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.slow
def test_the_coarse_grid_holds_a_rod_thinner_than_a_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    def rod(x_N3: Tensor) -> Tensor:
        away = (x_N3[:, :2].norm(dim=-1) - 0.02).maximum(x_N3[:, 2].abs() - 0.7)
        return away[:, None].expand(-1, 3)

    monkeypatch.setattr(scene, "distances", rod)
    grid = found(pictured(), untrained())
    u_N3 = torch.full((100, 3), 0.5)
    u_N3[:, 2] = torch.linspace(0.17, 0.83, 100)
    assert bool(occupancy.lookup(grid, u_N3).all())
    assert float(grid.float().mean()) < 0.15


@pytest.mark.slow
def test_opaque_pictures_keep_every_surface_in_the_coarse_grid() -> None:
    pixels = pictured()
    alpha = pixels.rgba[:, 3:]
    pixels.rgba = torch.cat((pixels.rgba[:, :3] * alpha + 1 - alpha, torch.ones_like(alpha)), dim=-1)
    assert bool(found(pixels, untrained())[distances().abs() < 0.02].all())


@pytest.mark.parametrize("where", ["found", "given", "none"])
def test_where_the_grid_comes_from(where: Literal["found", "given", "none"]) -> None:
    model, mine = untrained(), torch.zeros(8, 8, 8, dtype=torch.bool)
    mine[2:6, 2:6, 2:6] = True
    model.set_occupancy(mine)
    options = TrainingOptions(steps=4, rays=64, samples=24, occupancy=where, resolution=12, coarse=8, warmup=2, every=1)
    assert train_field(model, pictured(16, 3), options) > 0
    if where == "given":
        assert torch.equal(model.occupancy, mine)
    else:
        assert model.occupancy.shape == ((1, 1, 1) if where == "none" else (12, 12, 12))
        assert bool(model.occupancy.all()) or where == "found"


def test_a_grid_without_cells_is_no_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing would be trained in it, and nothing found in it later."""
    monkeypatch.setattr(
        "xarch_pvd.train.training.coarse_occupancy", lambda *_, **__: torch.zeros(8, 8, 8, dtype=torch.bool)
    )
    model = untrained()
    train_field(model, pictured(16, 3), TrainingOptions(steps=3, rays=64, samples=24, resolution=8, warmup=1, every=1))
    assert bool(model.occupancy.any())
