"""Pixels of posed images as rays, and the error of a field on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from xarch import UsageError
from xarch_field import RadianceField, ray_points
from xarch_field.cameras import Camera

MOST = 1 << 26
"""Maximum number of training pixels held in memory, 40 bytes each."""


@dataclass
class Pixels:
    """Every pixel of a set of images as rays, with straight RGBA colours."""

    origins: Tensor
    dirs: Tensor
    rgba: Tensor
    count: int = field(init=False)

    def __post_init__(self) -> None:
        self.count = len(self.origins)

    @classmethod
    def of(
        cls,
        cameras: list[Camera],
        pictures: Callable[[int], Tensor],
        masks: Callable[[int], Tensor | None] = lambda view: None,
    ) -> Pixels:
        """Collect all pixels of cameras.

        Args:
            pictures: (i) -> [height, width, 4] in [0, 1].
            masks: (i) -> bool [height, width], True where a pixel is used for training, or None for all pixels.

        Raises:
            UsageError: there are too many pixels, or all of them are masked.
        """
        total = sum(camera.width * camera.height for camera in cameras)
        if total > MOST:
            divide = math.ceil(math.sqrt(total / MOST))
            raise UsageError(
                f"the training images have {total / 1e6:.0f} M pixels, but at most {MOST / 1e6:.0f} M fit in memory",
                f"shrink them with `--downscale {divide}` (option downscale)",
            )
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for view, camera in enumerate(cameras):
            kept, (origins, dirs) = masks(view), camera.rays()
            rgba = pictures(view).reshape(-1, 4)
            chosen = slice(None) if kept is None else kept.reshape(-1)
            parts.append((origins[chosen], dirs[chosen], rgba[chosen]))
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        if not len(columns[0]):
            raise UsageError("every pixel of the training images is masked", "black pixels of a mask are excluded")
        return cls(*columns)

    def error(self, model: RadianceField, rays: int, samples: int, generator: torch.Generator) -> Tensor:
        """Return the mean squared error [] on random pixels, with random backgrounds behind transparent ones.

        Args:
            model: the field; gradients flow to it.
            rays: pixels drawn, with replacement.
            samples: steps per ray, jittered.
            generator: RNG for pixels, backgrounds and jitter.
        """
        rows = torch.randint(self.count, (rays,), generator=generator)
        background = torch.rand(rays, 3, generator=generator)
        jitter = torch.rand(rays, generator=generator)
        points = ray_points(model, self.origins[rows], self.dirs[rows], samples, jitter)
        values = model.query(points.x_N3, points.d_N3, ("sigma_raw", "rgb"))
        rgb, _, _ = points.composite(model.density(values["sigma_raw"]), values["rgb"], background)
        alpha = self.rgba[rows, 3:]
        return (rgb - self.rgba[rows, :3] * alpha - background * (1 - alpha)).square().mean()
