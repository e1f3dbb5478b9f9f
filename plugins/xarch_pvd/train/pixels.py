"""The pixels of posed pictures as rays, and the error of a field on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from xarch_field import RadianceField, ray_points
from xarch_field.cameras import Camera


@dataclass
class Pixels:
    """Every pixel of a set of pictures as rays, with straight RGBA colours."""

    origins: Tensor
    dirs: Tensor
    rgba: Tensor
    count: int = field(init=False)

    def __post_init__(self) -> None:
        self.count = len(self.origins)

    @classmethod
    def of(cls, cameras: list[Camera], pictures: Callable[[int], Tensor]) -> Pixels:
        """All pixels of cameras; ``pictures(i)`` is [height, width, 4] in [0, 1]."""
        rays = [camera.rays() for camera in cameras]
        return cls(
            torch.cat([o for o, _ in rays]),
            torch.cat([d for _, d in rays]),
            torch.cat([pictures(i).reshape(-1, 4) for i in range(len(cameras))]),
        )

    def error(self, model: RadianceField, rays: int, samples: int, generator: torch.Generator) -> Tensor:
        """Mean squared error [] of a field on random pixels, over a random background where they are transparent.

        Args:
            model: the field; gradients flow to it.
            rays: pixels drawn, with replacement.
            samples: steps along a ray, jittered.
            generator: of pixels, backgrounds and jitter.
        """
        rows = torch.randint(self.count, (rays,), generator=generator)
        background = torch.rand(rays, 3, generator=generator)
        jitter = torch.rand(rays, generator=generator)
        points = ray_points(model, self.origins[rows], self.dirs[rows], samples, jitter)
        values = model.query(points.x_N3, points.d_N3, ("sigma_raw", "rgb"))
        rgb, _, _ = points.composite(model.density(values["sigma_raw"]), values["rgb"], background)
        alpha = self.rgba[rows, 3:]
        return (rgb - self.rgba[rows, :3] * alpha - background * (1 - alpha)).square().mean()
