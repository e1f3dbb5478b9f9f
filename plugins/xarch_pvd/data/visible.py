"""Cells in which a teacher's cameras see matter.

Half of the occupied cells lie inside objects or behind others, where no image shows the student's values.
Legend: H cells per axis, R rays, K samples per ray.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from xarch_field.facts import ViewFacts
from xarch_field.model.rendering import ray_points, ray_weights
from xarch_field.teacher import FieldTeacher
from xarch_pvd.data.views import random_camera

CAMERAS, RAYS, SEED = 48, 512, 4_000_037

_FOUND: WeakKeyDictionary[FieldTeacher, tuple[ViewFacts, Tensor]] = WeakKeyDictionary()


def visible_cells(teacher: FieldTeacher, views: ViewFacts) -> Tensor:
    """Sum the sample weights in each cell over rays of random cameras, float32 [H, H, H] on the CPU.

    The weight of a sample is its share in the colour of its ray. The rays are deterministic, so nothing is saved.
    """
    found = _FOUND.get(teacher)
    if found is None or found[0] != views:
        found = views, _look(teacher, views)
        _FOUND[teacher] = found
    return found[1]


@torch.no_grad()
def _look(teacher: FieldTeacher, views: ViewFacts) -> Tensor:
    field, size = teacher.field, teacher.field.occupancy.shape[0]
    device = field.aabb.device
    total = torch.zeros(size**3, device=device)
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(CAMERAS):
        camera = random_camera(views, generator)
        pixels = torch.randint(camera.width * camera.height, (RAYS,), generator=generator)
        origins, dirs = (part.to(device) for part in camera.rays(pixels))
        jitter_R = torch.rand(RAYS, generator=generator).to(device)
        points = ray_points(field, origins, dirs, teacher.facts.samples, jitter_R)
        sigma_RK = points.unpack(field.density(field.sigma_raw(points.x_N3)))
        weight_N = ray_weights(sigma_RK * points.delta_RK)[0].view(-1)[points.slot_N]
        cell_N3 = (field.to_unit(points.x_N3) * size).long().clamp(0, size - 1)
        total.index_add_(0, (cell_N3[:, 0] * size + cell_N3[:, 1]) * size + cell_N3[:, 2], weight_N)
    return total.view(size, size, size).cpu()


def sample_cells(weight_HHH: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw points of the unit cube [count, 3] in cells sampled by weight."""
    size = weight_HHH.shape[0]
    up_to = weight_HHH.reshape(-1).double().cumsum(0)
    drawn = torch.rand(count, generator=generator, dtype=torch.float64) * up_to[-1]
    cell = torch.searchsorted(up_to, drawn, right=True).clamp_max(size**3 - 1)
    corner = torch.stack((cell // size**2, cell // size % size, cell % size), dim=-1)
    return (corner + torch.rand(count, 3, generator=generator)) / size
