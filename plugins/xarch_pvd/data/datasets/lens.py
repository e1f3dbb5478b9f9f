"""Cameras with lens distortion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xarch_field import Camera
from xarch_pvd.data.datasets.distortion import distort, undistort


@dataclass(frozen=True, slots=True)
class LensCamera(Camera):
    """Camera with OpenCV's lens model.

    Attributes:
        lens: k1, k2, p1, p2.
    """

    lens: tuple[float, ...]

    def rays(self, pixels_P: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :meth:`xarch_field.Camera.rays`; undistorts in float64.

        Raises:
            UsageError: the lens folds the image, so that some pixel has no ray.
        """
        if pixels_P is None:
            pixels_P = torch.arange(self.width * self.height, device=self.c2w.device)
        x_P = ((pixels_P % self.width).double() + 0.5 - self.cx) / self.fx
        y_P = ((pixels_P // self.width).double() + 0.5 - self.cy) / self.fy
        x_P, y_P = undistort(x_P, y_P, self._terms(x_P))
        local_P3 = torch.stack((x_P, -y_P, -torch.ones_like(x_P)), dim=-1)
        dirs_P3 = local_P3 @ self.c2w[:3, :3].double().T
        dirs_P3 = (dirs_P3 / dirs_P3.norm(dim=-1, keepdim=True)).to(self.c2w.dtype)
        return self.c2w[:3, 3].expand_as(dirs_P3), dirs_P3

    def pixels(self, x_N3: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`xarch_field.Camera.pixels`."""
        right_N, up_N, back_N = ((x_N3 - self.c2w[:3, 3]) @ self.c2w[:3, :3]).double().unbind(-1)
        depth_N = (-back_N).clamp_min(1e-9)
        x_N, y_N = distort(right_N / depth_N, -up_N / depth_N, self._terms(depth_N))
        column_N, row_N = (self.cx + self.fx * x_N).floor(), (self.cy + self.fy * y_N).floor()
        inside_N = (back_N < 0) & (column_N >= 0) & (column_N < self.width) & (row_N >= 0) & (row_N < self.height)
        return torch.where(inside_N, row_N * self.width + column_N, 0).long(), inside_N

    def _terms(self, like: Tensor) -> Tensor:
        return torch.tensor(self.lens, dtype=torch.float64, device=like.device)
