"""Fixed batches: validation data of a stage, and whole held-out views."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch

from xarch import Batch, BatchStream
from xarch_field.facts import ViewFacts
from xarch_field.model import occupancy
from xarch_field.teacher import FieldTeacher
from xarch_pvd.data.points import points_batch
from xarch_pvd.data.posed_views import PosedViews
from xarch_pvd.data.sampling import FieldSample
from xarch_pvd.data.views import fixed_cameras
from xarch_pvd.train import scene

VALIDATION_VIEWS, HELDOUT_VIEWS = 4, 64
POINT_SEEDS = {"validation": 3_000_017, "calibration": 4_000_037}
VALIDATION_STRIDE = 3
"""Validation uses every third pixel of a view in both directions: a small image that metrics can evaluate too."""


class Finite(BatchStream, ABC):
    """Fixed list of batches, built on demand."""

    def __init__(self, length: int) -> None:
        self.length, self.place = length, 0

    def __next__(self) -> Batch:
        if self.place >= self.length:
            raise StopIteration
        self.place += 1
        return self.make(self.place - 1)

    @abstractmethod
    def make(self, index: int) -> Batch:
        """Build batch ``index``."""

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.place = int(state["place"])


class Checks(Finite):
    """Validation or calibration data of a stage: fixed points, or some rays of fixed views."""

    def __init__(
        self, teacher: FieldTeacher, sample: FieldSample, samples: int, views: ViewFacts, split: str = "validation"
    ) -> None:
        super().__init__(VALIDATION_VIEWS)
        self.teacher, self.sample, self.samples = teacher, sample, samples
        self.first_seed = POINT_SEEDS[split]
        self.cameras = fixed_cameras(views, VALIDATION_VIEWS, split)

    def make(self, index: int) -> Batch:
        if self.sample.kind == "points":
            generator = torch.Generator().manual_seed(self.first_seed + index)
            grid = occupancy.dilate(self.teacher.field.occupancy.cpu())
            u_N3 = occupancy.sample(grid, self.samples, generator, uniform=0.15)
            return points_batch(self.teacher, u_N3, generator)
        return picture_batch(self.cameras[index], self.teacher.facts.background, stride=VALIDATION_STRIDE)


class Pictures(Finite):
    """Whole held-out views, with their images if available."""

    def __init__(self, teacher: FieldTeacher, posed: PosedViews | None) -> None:
        self.teacher, self.posed = teacher, posed
        self.cameras = posed.heldout if posed is not None else _heldout(teacher.facts.views)
        super().__init__(len(self.cameras))

    def make(self, index: int) -> Batch:
        batch = picture_batch(self.cameras[index], self.teacher.facts.background)
        picture = None if self.posed is None else self.posed.picture(index, self.teacher.facts.background)
        if self.posed is not None and picture is not None:
            batch.tensors["picture"] = picture
            kept = self.posed.mask(index)
            if kept is not None:
                batch.tensors["mask"] = kept
        return batch


class ScenePictures(Pictures):
    """Whole held-out views with images of the procedural scene that the demo's teacher was trained on."""

    def __init__(self, teacher: FieldTeacher) -> None:
        super().__init__(teacher, None)

    def make(self, index: int) -> Batch:
        batch = super().make(index)
        rgba_HW4 = scene.render_view(self.cameras[index])
        colour, alpha = rgba_HW4[..., :3], rgba_HW4[..., 3:]
        over = colour * alpha + torch.tensor(self.teacher.facts.background) * (1 - alpha)
        batch.tensors["picture"] = over.reshape(-1, 3)
        return batch


def _heldout(views: ViewFacts) -> list[Any]:
    return fixed_cameras(views, HELDOUT_VIEWS, "heldout")


def picture_batch(camera: Any, background: tuple[float, float, float], *, stride: int = 1) -> Batch:
    """Return every pixel of a camera as rays, row by row, or every ``stride``-th in both directions."""
    rows, columns = (torch.arange(0, side, stride) for side in (camera.height, camera.width))
    origins, dirs = camera.rays((rows[:, None] * camera.width + columns).flatten())
    tensors = {"origins": origins, "dirs": dirs, "background": torch.tensor(background).expand(len(origins), 3)}
    return Batch(tensors, len(origins), {"height": len(rows), "width": len(columns)})
