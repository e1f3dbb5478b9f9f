"""Points of a field with directions for training."""

from __future__ import annotations

import torch
from torch import Tensor

from xarch import Batch
from xarch_field.facts import ViewFacts
from xarch_field.model import occupancy
from xarch_field.teacher import FieldTeacher
from xarch_pvd.data.sampling import Drawn, FieldSample, ViewOptions
from xarch_pvd.data.visible import sample_cells, visible_cells


class Points(Drawn):
    """Points in visible cells, in occupied cells and anywhere in the box, with random directions."""

    def __init__(
        self,
        teacher: FieldTeacher,
        samples: int,
        seed: int,
        options: ViewOptions,
        sample: FieldSample,
        views: ViewFacts,
    ) -> None:
        super().__init__(teacher, samples, seed)
        self.uniform = options.uniform if sample.floor is None else sample.floor
        visible = options.visible if sample.importance is None else sample.importance
        self.grid = occupancy.dilate(teacher.field.occupancy.cpu())
        self.seen = visible_cells(teacher, views) if visible else torch.zeros(())
        self.visible = round(samples * min(visible, 1 - self.uniform)) if bool(self.seen.any()) else 0

    def draw(self, generator: torch.Generator) -> Batch:
        others = self.samples - self.visible
        uniform = min(1.0, self.uniform * self.samples / others) if others else 0.0
        u_N3 = occupancy.sample(self.grid, others, generator, uniform=uniform)
        if self.visible:
            u_N3 = torch.cat((sample_cells(self.seen, self.visible, generator), u_N3))
        return points_batch(self.teacher, u_N3, generator)


def points_batch(teacher: FieldTeacher, u_N3: Tensor, generator: torch.Generator) -> Batch:
    """Return the world points of ``u`` in the unit cube, with random unit directions."""
    count = len(u_N3)
    device = teacher.field.aabb.device
    xyz = teacher.field.to_world(u_N3.to(device)).cpu()
    dirs = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    return Batch({"xyz": xyz, "dirs": dirs}, count)
