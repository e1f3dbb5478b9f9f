"""Camera rays for training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from xarch import Batch, UsageError
from xarch_field import Camera
from xarch_field.facts import ViewFacts
from xarch_field.teacher import FieldTeacher
from xarch_pvd.data.active import ERROR, HardPoses, HardRays
from xarch_pvd.data.posed_views import PosedViews
from xarch_pvd.data.sampling import Drawn, FieldSample, ViewOptions
from xarch_pvd.data.views import random_camera
from xarch_pvd.data.visible import sample_cells, visible_cells


class Rays(Drawn):
    """Pixels of random cameras: anywhere in the image, and where visible matter lies.

    With ``levels``, the student's worst poses and rays are reused (:mod:`xarch_pvd.data.active`).
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
                "data.options.poses is `given`, but `views:teacher` has no cameras of its own",
                "pass the folder of posed images: `--data views:FOLDER`",
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
                f"sample.levels finds hard poses and rays by the match {ERROR!r}, but the stage has {sorted(losses)}",
                f"name the match of rays.rgb {ERROR!r}, or omit `levels`",
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
