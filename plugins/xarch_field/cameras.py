"""Pinhole cameras, their rays, and poses on a sphere. OpenGL axes: x right, y up, −z forward; world z is up.

Legend: P pixels, 3 = x, y, z.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Camera:
    """A pinhole camera.

    Attributes:
        width, height: image size in pixels.
        fx, fy, cx, cy: focal lengths and principal point in pixels; a pixel's centre lies at +0.5.
        c2w: camera-to-world matrix [4, 4] (or its upper [3, 4]), OpenGL axes.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    c2w: Tensor

    @classmethod
    def from_angle(cls, width: int, height: int, angle_x: float, c2w: Tensor) -> Camera:
        """Build a camera with square pixels from its horizontal field of view in radians."""
        focal = 0.5 * width / float(torch.tan(torch.tensor(0.5 * angle_x, dtype=torch.float64)))
        return cls(width, height, focal, focal, 0.5 * width, 0.5 * height, c2w)

    def rays(self, pixels_P: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return origins [P, 3] and unit directions [P, 3].

        Args:
            pixels_P: row-major pixel numbers (row * width + column), or None for the whole image.
        """
        if pixels_P is None:
            pixels_P = torch.arange(self.width * self.height, device=self.c2w.device)
        column, row = pixels_P % self.width, pixels_P // self.width
        right = (column + 0.5 - self.cx) / self.fx
        up = -(row + 0.5 - self.cy) / self.fy
        local_P3 = torch.stack((right, up, -torch.ones_like(right)), dim=-1).to(self.c2w.dtype)
        dirs_P3 = local_P3 @ self.c2w[:3, :3].T
        dirs_P3 = dirs_P3 / dirs_P3.norm(dim=-1, keepdim=True)
        return self.c2w[:3, 3].expand_as(dirs_P3), dirs_P3

    def pixels(self, x_N3: Tensor) -> tuple[Tensor, Tensor]:
        """Return row-major pixel indices [N] of projected world points, and whether they are visible, bool [N]."""
        right_N, up_N, back_N = ((x_N3 - self.c2w[:3, 3]) @ self.c2w[:3, :3]).unbind(-1)
        depth_N = (-back_N).clamp_min(1e-9)
        column_N = (self.cx + self.fx * right_N / depth_N).floor()
        row_N = (self.cy - self.fy * up_N / depth_N).floor()
        inside_N = (back_N < 0) & (column_N >= 0) & (column_N < self.width) & (row_N >= 0) & (row_N < self.height)
        return torch.where(inside_N, row_N * self.width + column_N, 0).long(), inside_N


def sphere_pose(
    azimuth: float | Tensor, elevation: float | Tensor, radius: float | Tensor, target: Tensor | None = None
) -> Tensor:
    """Return the camera-to-world matrix [4, 4] of a camera on a sphere, looking at its centre.

    Args:
        azimuth: angle from +x towards +y, radians.
        elevation: angle above the horizon, radians.
        radius: distance to the target, world units.
        target: centre of the sphere [3]; the origin if None.
    """
    azimuth, elevation, radius = (torch.as_tensor(v, dtype=torch.float32) for v in (azimuth, elevation, radius))
    offset = torch.stack((elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()))
    place = radius * offset if target is None else target.float() + radius * offset
    return look_at(place, place - offset)


def look_at(place: Tensor, target: Tensor) -> Tensor:
    """Return the camera-to-world matrix [4, 4] of a camera at ``place`` [3] looking at ``target`` [3] with z up."""
    back = place.float() - target.float()
    back = back / back.norm()
    up = torch.tensor([0.0, 0.0, 1.0], device=back.device)
    if float(back[:2].norm()) < 1e-6:
        up = torch.tensor([0.0, 1.0, 0.0], device=back.device)
    right = torch.linalg.cross(up, back)
    right = right / right.norm()
    pose = torch.eye(4, device=back.device)
    pose[:3] = torch.stack((right, torch.linalg.cross(back, right), back, place.float()), dim=-1)
    return pose
