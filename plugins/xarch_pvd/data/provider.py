"""Data ``views:``: points of the occupied cells and rays of random cameras, drawn from the teacher alone.

No picture is read for training. ``views:teacher`` takes the cameras of the teacher's facts; ``views:FOLDER`` a folder
of posed pictures, whose held-out pictures then also judge teacher and student.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from xarch import Batch, BatchStream, DataInfo, DataProvider, Options, UsageError, validated
from xarch_field import Camera, occupancy
from xarch_field.facts import ViewFacts
from xarch_field.model import FieldTeacher
from xarch_pvd.data.active import ERROR, HardPoses, HardRays
from xarch_pvd.data.posed_views import PosedViews, posed_views
from xarch_pvd.data.views import fixed_cameras, random_camera
from xarch_pvd.data.visible import sample_cells, visible_cells

VALIDATION_VIEWS, HELDOUT_VIEWS = 4, 64
VALIDATION_STRIDE = 7
"""Every 7th ray of a validation view."""


class ViewOptions(Options):
    """Options of ``views:``."""

    uniform: float = Field(0.15, ge=0, le=1, description="share of the points drawn anywhere in the box")
    visible: float = Field(0.5, ge=0, le=1, description="share of the points drawn where cameras see matter")
    background: Literal["random", "scene"] = Field("random", description="colour behind training rays")
    poses: Literal["random", "given"] = Field("random", description="`given`: the folder's training cameras")
    rays_per_view: int = Field(512, ge=1, description="rays drawn from one camera before the next is drawn")


class FieldSample(Options):
    """What one sample of a stage is."""

    kind: Literal["points", "rays"] = Field("rays", description="a point of space or a ray of a camera")
    importance: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share drawn where cameras see matter; default: data's `visible`, none of the rays",
    )
    floor: float | None = Field(
        None, ge=0, le=1, description="least share drawn anywhere (box, picture); default: data's `uniform`"
    )
    levels: tuple[Literal["pose", "ray"], ...] = Field((), description="draw again what the student does worst (rays)")
    hard: float = Field(0.1, gt=0, le=0.5, description="share of poses and of rays that are drawn again")


class Views(DataProvider):
    """Opens ``views:teacher`` and ``views:FOLDER``."""

    Options = ViewOptions

    def describe(self, ref: str, options: BaseModel) -> DataInfo:
        if ref == "teacher":
            return DataInfo("cameras around the teacher, no pictures", "teacher", "sample")
        posed = posed_views(ref)
        pictures = len(posed.heldout) if posed.pictured else 0
        return DataInfo(f"cameras of {ref}", posed.digest, "sample", {"heldout_pictures": pictures})

    def units_per_sample(self, sample: Mapping[str, Any]) -> int:
        """One: a point or a ray.

        Raises:
            UsageError: the sample is described wrongly; asked while planning, so that nothing runs on it.
        """
        _sample(sample)
        return 1

    def open(
        self,
        ref: str,
        options: BaseModel,
        *,
        split: str,
        samples: int,
        sample: Mapping[str, Any],
        processors: Mapping[str, Any],
        seed: int,
        teacher: Any = None,
    ) -> BatchStream:
        if not isinstance(teacher, FieldTeacher):
            raise UsageError(f"views: draws from a radiance field, the teacher is {type(teacher).__name__}")
        wanted = _sample(sample)
        posed = None if ref == "teacher" else posed_views(ref)
        chosen = cast(ViewOptions, options)
        views = teacher.facts.views if posed is None else posed.facts
        if split == "heldout":
            # Pictures of a scene are no measure of what it became.
            return Pictures(teacher, None if teacher.facts.edits else posed)
        if split == "validation":
            return Checks(teacher, wanted, samples, views)
        if wanted.kind == "points":
            return Points(teacher, samples, seed, chosen, wanted, views)
        return Rays(teacher, samples, seed, chosen, wanted, views, posed)


class Drawn(BatchStream, ABC):
    """Endless batches, each from a generator of its own: the position is one number."""

    def __init__(self, teacher: FieldTeacher, samples: int, seed: int) -> None:
        self.teacher, self.samples, self.seed, self.drawn = teacher, samples, seed, 0

    def __next__(self) -> Batch:
        generator = torch.Generator().manual_seed((self.seed * 1_000_033 + self.drawn) % 2**63)
        self.drawn += 1
        return self.draw(generator)

    @abstractmethod
    def draw(self, generator: torch.Generator) -> Batch:
        """One batch."""

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.drawn = int(state["drawn"])

    def counters(self) -> dict[str, int]:
        return {"read": self.drawn * self.samples}


class Points(Drawn):
    """Points where cameras see matter, in occupied cells and anywhere in the box, with random directions."""

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
    """World points of the unit cube's, with random unit directions."""
    count = len(u_N3)
    device = teacher.field.aabb.device
    xyz = teacher.field.to_world(u_N3.to(device)).cpu()
    dirs = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    return Batch({"xyz": xyz, "dirs": dirs}, count)


class Rays(Drawn):
    """Pixels of random cameras: any of the picture, and those behind which visible matter lies.

    With ``levels`` the student's worst poses and rays are drawn again (:mod:`xarch_pvd.data.active`).
    """

    def __init__(
        self,
        teacher: FieldTeacher,
        samples: int,
        seed: int,
        options: ViewOptions,
        sample: FieldSample,
        views: ViewFacts,
        posed: PosedViews | None,
    ) -> None:
        super().__init__(teacher, samples, seed)
        self.options, self.posed, self.views = options, posed, views
        if options.poses == "given" and posed is None:
            raise UsageError(
                "data.options.poses is `given`, and `views:teacher` has no cameras of its own",
                "give the folder of posed pictures: `--data views:FOLDER`",
            )
        floor = options.uniform if sample.floor is None else sample.floor
        self.aimed = min(sample.importance or 0.0, 1 - floor)
        self.seen = visible_cells(teacher, views) if self.aimed else torch.zeros(())
        self.poses = HardPoses(sample.hard) if "pose" in sample.levels else None
        self.rays = HardRays(samples, sample.hard) if "ray" in sample.levels else None
        self.watches_losses = bool(sample.levels)

    def draw(self, generator: torch.Generator) -> Batch:
        again = self.rays.draw(generator) if self.rays is not None else None
        left = self.samples - (len(again[0]) if again is not None else 0)
        parts = []
        while left:
            count = min(left, self.options.rays_per_view)
            parts.append(self._look(self._camera(count, generator), count, generator))
            left -= count
        if again is not None:
            parts.append(again)
        origins, dirs = (torch.cat(part) for part in zip(*parts, strict=True))
        if self.options.background == "random":
            background = torch.rand(self.samples, 3, generator=generator)
        else:
            background = torch.tensor(self.teacher.facts.background).expand(self.samples, 3).clone()
        jitter = torch.rand(self.samples, generator=generator)
        tensors = {"origins": origins, "dirs": dirs, "background": background, "jitter": jitter}
        return Batch(tensors, self.samples)

    def _camera(self, count: int, generator: torch.Generator) -> Camera:
        if self.options.poses == "given" and self.posed is not None:
            camera = self.posed.train[int(torch.randint(len(self.posed.train), (), generator=generator))]
        else:
            camera = random_camera(self.views, generator)
        return camera if self.poses is None else self.poses.draw(camera, count, generator)

    def _look(self, camera: Camera, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        pixels = torch.randint(camera.width * camera.height, (count,), generator=generator)
        aimed = round(count * self.aimed) if bool(self.seen.any()) else 0
        if aimed:
            u_N3 = sample_cells(self.seen, aimed, generator)
            found, inside = camera.pixels(self.teacher.field.to_world(u_N3.to(self.teacher.field.aabb.device)).cpu())
            pixels[:aimed] = torch.where(inside, found, pixels[:aimed])
        return camera.rays(pixels)

    def take_losses(self, batch: Batch, losses: Mapping[str, Tensor]) -> None:
        error_R = losses.get(ERROR)
        if error_R is None:
            raise UsageError(
                f"sample.levels finds hard poses and rays by the loss of {ERROR}, the stage matches {sorted(losses)}",
                f"add a match of the student tap {ERROR}, or leave `levels` out",
            )
        if self.poses is not None:
            self.poses.take(error_R)
        if self.rays is not None:
            self.rays.take(batch["origins"], batch["dirs"], error_R)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        for name, level in (("poses", self.poses), ("rays", self.rays)):
            if level is not None:
                state |= {f"{name}.{key}": value for key, value in level.state_dict().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        for name, level in (("poses", self.poses), ("rays", self.rays)):
            if level is not None:
                level.load_state_dict(
                    {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
                )


class Finite(BatchStream, ABC):
    """A fixed list of batches, made one by one."""

    def __init__(self, length: int) -> None:
        self.length, self.place = length, 0

    def __next__(self) -> Batch:
        if self.place >= self.length:
            raise StopIteration
        self.place += 1
        return self.make(self.place - 1)

    @abstractmethod
    def make(self, index: int) -> Batch:
        """Batch number ``index``."""

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.place = int(state["place"])


class Checks(Finite):
    """What a stage is validated on: fixed points, or some rays of fixed views."""

    def __init__(self, teacher: FieldTeacher, sample: FieldSample, samples: int, views: ViewFacts) -> None:
        super().__init__(VALIDATION_VIEWS)
        self.teacher, self.sample, self.samples = teacher, sample, samples
        self.cameras = fixed_cameras(views, VALIDATION_VIEWS, "validation")

    def make(self, index: int) -> Batch:
        if self.sample.kind == "points":
            generator = torch.Generator().manual_seed(3_000_017 + index)
            grid = occupancy.dilate(self.teacher.field.occupancy.cpu())
            u_N3 = occupancy.sample(grid, self.samples, generator, uniform=0.15)
            return points_batch(self.teacher, u_N3, generator)
        batch = picture_batch(self.cameras[index], self.teacher.facts.background)
        return Batch({k: v[::VALIDATION_STRIDE] for k, v in batch.tensors.items()}, batch.units // VALIDATION_STRIDE)


class Pictures(Finite):
    """Whole held-out views, with their pictures where there are any."""

    def __init__(self, teacher: FieldTeacher, posed: PosedViews | None) -> None:
        self.teacher, self.posed = teacher, posed
        self.cameras = posed.heldout if posed is not None else _heldout(teacher.facts.views)
        super().__init__(len(self.cameras))

    def make(self, index: int) -> Batch:
        batch = picture_batch(self.cameras[index], self.teacher.facts.background)
        if self.posed is not None and self.posed.pictured:
            batch.tensors["picture"] = self.posed.picture(index, self.teacher.facts.background)
        return batch


def _sample(sample: Mapping[str, Any]) -> FieldSample:
    return validated(FieldSample, sample, "sample")


def _heldout(views: ViewFacts) -> list[Any]:
    return fixed_cameras(views, HELDOUT_VIEWS, "heldout")


def picture_batch(camera: Any, background: tuple[float, float, float]) -> Batch:
    """Every pixel of a camera as rays, row by row."""
    origins, dirs = camera.rays()
    tensors = {"origins": origins, "dirs": dirs, "background": torch.tensor(background).expand(len(origins), 3)}
    return Batch(tensors, len(origins), {"height": camera.height, "width": camera.width})
