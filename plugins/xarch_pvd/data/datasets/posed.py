"""Posed images: cameras in memory, images read on demand.

Legend: N views, P pixels, H rows, W columns.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from xarch import UsageError, sampled_digest
from xarch_field import Camera
from xarch_pvd.data.datasets.distortion import undistort
from xarch_pvd.data.datasets.lens import LensCamera
from xarch_pvd.data.datasets.pictures import read_mask, read_picture

AXES = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
"""World axes (y, z, x): torch-ngp's rotation of a Blender world."""


@dataclass(frozen=True)
class PosedImages:
    """Views of one split. Images are opened only by :attr:`images` or :meth:`image`.

    Attributes:
        files: image file of every view; may be missing if images are not requested.
        names: name of every view.
        c2w: camera-to-world, float64 [N,4,4]; OpenGL axes (x right, y up, looks along -z), the file's world. Map
            coordinates have seven digits before the point, which exceeds float32.
        widths, heights: size of every view in pixels; images stored at an integer multiple are averaged down.
        fx, fy, cx, cy: float64 [N], pixels; the centre of pixel (column, row) lies at (column + 0.5, row + 0.5).
        distortion: float64 [N,4], OpenCV's k1, k2, p1, p2.
        split: "train", "val" or "test".
        background: RGB in [0,1] behind transparent images, or None if images are opaque.
        near_far: float64 [N,2], world units along the viewing axis, or None if the format has none.
        box: (x0, y0, z0, x1, y1, z1) given by the files, or None.
        points: float64 [n,3], points of a reconstruction, or None.
        kind: name of the format.
        masks: mask file of every view, whose black pixels are excluded, or None; () without any.
        applied: rotation and scale between the capture's world and the file's, 13 numbers as in ViewFacts.world, or ().
        notes: warnings about the files.
    """

    files: tuple[Path, ...]
    names: tuple[str, ...]
    c2w: Tensor
    widths: tuple[int, ...]
    heights: tuple[int, ...]
    fx: Tensor
    fy: Tensor
    cx: Tensor
    cy: Tensor
    distortion: Tensor
    split: str
    kind: str
    background: tuple[float, float, float] | None = None
    near_far: Tensor | None = None
    box: tuple[float, float, float, float, float, float] | None = None
    points: Tensor | None = field(default=None, repr=False)
    masks: tuple[Path | None, ...] = ()
    applied: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.files)
        if count == 0:
            raise UsageError(f"the {self.kind} data set has no views in split {self.split!r}")
        if tuple(self.c2w.shape) != (count, 4, 4) or not bool(torch.isfinite(self.c2w).all()):
            raise UsageError(f"cameras are {tuple(self.c2w.shape)} or not finite, expected [{count}, 4, 4]")
        numbers = (
            self.fx,
            self.fy,
            self.cx,
            self.cy,
            self.distortion,
            torch.tensor(self.box or (), dtype=torch.float64),
        )
        if not all(bool(torch.isfinite(n).all()) for n in numbers):
            raise UsageError(f"a camera or the box of the {self.kind} data set has numbers that are not finite")
        turned = self.c2w[:, :3, :3].double()
        error = float((turned.transpose(1, 2) @ turned - torch.eye(3, dtype=torch.float64)).abs().max())
        if error > 1e-2:
            raise UsageError(f"a camera of the {self.kind} data set has an invalid rotation (off by {error:.2g})")
        if min(*self.widths, *self.heights) < 1 or not bool(((self.fx > 0) & (self.fy > 0)).all()):
            raise UsageError(f"a camera of the {self.kind} data set has no size or no focal length")

    def __len__(self) -> int:
        return len(self.files)

    def camera(self, view: int) -> Camera:
        """Return the camera of one view, float32; its rays equal those of :meth:`rays` for any lens."""
        fx, fy, cx, cy = (float(v[view]) for v in (self.fx, self.fy, self.cx, self.cy))
        same = (self.widths[view], self.heights[view], fx, fy, cx, cy, self.c2w[view].float())
        lens = self.distortion[view]
        return LensCamera(*same, tuple(lens.tolist())) if bool(lens.any()) else Camera(*same)

    def rays(self, view: int, pixels_P: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return origins [P,3] and unit directions [P,3], float32, without lens distortion.

        Args:
            pixels_P: row * W + column, or None for the whole image.
        """
        width, height = self.widths[view], self.heights[view]
        pixels_P = torch.arange(width * height) if pixels_P is None else pixels_P
        x_P = ((pixels_P % width).double() + 0.5 - self.cx[view]) / self.fx[view]
        y_P = (torch.div(pixels_P, width, rounding_mode="floor").double() + 0.5 - self.cy[view]) / self.fy[view]
        if bool(self.distortion[view].any()):
            x_P, y_P = undistort(x_P, y_P, self.distortion[view])
        local_P3 = torch.stack((x_P, -y_P, -torch.ones_like(x_P)), dim=-1)
        dirs_P3 = local_P3 @ self.c2w[view, :3, :3].double().T
        dirs_P3 = (dirs_P3 / dirs_P3.norm(dim=-1, keepdim=True)).float()
        return self.c2w[view, :3, 3].float().expand_as(dirs_P3), dirs_P3

    def image(self, view: int) -> Tensor:
        """Read one image as stored, float32 [H,W,4] or [H,W,3] in [0,1], with straight alpha.

        Raises:
            UsageError: it does not exist, is damaged, or has another size than the camera.
        """
        return read_picture(self.files[view], self.widths[view], self.heights[view])

    @cached_property
    def images(self) -> Tensor:
        """Return all images over the background, float32 [N,H,W,3] in [0,1]; read on first use.

        Raises:
            UsageError: as for :meth:`image`, or the views differ in size.
        """
        if len(set(self.widths)) > 1 or len(set(self.heights)) > 1:
            raise UsageError(f"the views of this {self.kind} data set differ in size; read them individually")
        return torch.stack([self.picture(view) for view in range(len(self))])

    def rgba(self, view: int) -> Tensor:
        """Read one image with alpha, float32 [H,W,4] in [0,1]; opaque images get an alpha of 1."""
        picture = self.image(view)
        return picture if picture.shape[-1] == 4 else torch.cat([picture, torch.ones_like(picture[..., :1])], dim=-1)

    def picture(self, view: int, background: tuple[float, float, float] | None = None) -> Tensor:
        """Read one image over a background (by default its own, or white), float32 [H,W,3] in [0,1]."""
        return self.over(self.image(view), background)

    def mask(self, view: int) -> Tensor | None:
        """Read the mask of a view, bool [H,W], True where a pixel is used; None without a mask.

        Raises:
            UsageError: it is damaged, or of another shape than the camera.
        """
        file = self.masks[view] if self.masks else None
        return None if file is None else read_mask(file, self.widths[view], self.heights[view])

    @property
    def pictured(self) -> list[bool]:
        """Return whether the image of each view exists."""
        return [file.is_file() for file in self.files]

    def far(self) -> bool:
        """Return whether float32 would move cameras by more than a ten-thousandth of the space that they span."""
        places = self.c2w[:, :3, 3]
        span = float((places.amax(0) - places.amin(0)).max())
        return span > 0 and float((places.float().double() - places).abs().max()) > 1e-4 * span

    def captured(self) -> PosedImages:
        """Return the same views in the world of their capture, before ``applied``."""
        return self.in_world(inverse_world(self.applied)) if self.applied else self

    def in_world(self, world: tuple[float, ...]) -> PosedImages:
        """Return the views in another world, given as in ViewFacts.world; () leaves them unchanged."""
        if not world:
            return self
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[:3] = torch.tensor(world[:12], dtype=torch.float64).view(3, 4)
        return self.map_world(matrix, world[12])

    @property
    def digest(self) -> str:
        """Return the SHA-256 of cameras, sizes, names, and samples of the images' content."""
        state = hashlib.sha256()
        for numbers in (self.c2w, self.fx, self.fy, self.cx, self.cy, self.distortion):
            state.update(numbers.contiguous().numpy().tobytes())
        state.update(
            json.dumps(
                [self.kind, self.split, self.names, self.widths, self.heights, [str(m and m.name) for m in self.masks]]
            ).encode()
        )
        files = zip(self.names, self.files, strict=True)
        state.update(sampled_digest((name, file) for name, file in files if file.is_file()).encode())
        return state.hexdigest()

    def over(self, picture: Tensor, background: tuple[float, float, float] | None = None) -> Tensor:
        """Composite an image [H,W,3|4] over a background (by default its own, or white), [H,W,3]."""
        if picture.shape[-1] == 3:
            return picture
        behind = torch.tensor(background or self.background or (1.0, 1.0, 1.0))
        return picture[..., :3] * picture[..., 3:] + behind * (1 - picture[..., 3:])

    def map_world(self, matrix: Tensor, scale: float = 1.0) -> PosedImages:
        """Return the views in another world: x -> scale * (R x + t) of a rigid ``matrix`` [4,4]."""

        def point(x: Tensor) -> Tensor:
            return scale * (x @ matrix[:3, :3].T.to(x.dtype) + matrix[:3, 3].to(x.dtype))

        moved = matrix.to(torch.float64) @ self.c2w.double()
        moved[:, :3, 3] *= scale
        box = None
        if self.box is not None:
            sides = (torch.tensor([self.box[a], self.box[a + 3]], dtype=torch.float64) for a in range(3))
            corners = torch.cartesian_prod(*sides)
            low, high = point(corners).amin(0).tolist(), point(corners).amax(0).tolist()
            box = (low[0], low[1], low[2], high[0], high[1], high[2])
        return replace(
            self,
            c2w=moved,
            box=box,
            applied=(),
            near_far=None if self.near_far is None else self.near_far * scale,
            points=None if self.points is None else point(self.points),
        )

    def to_torch_ngp(self, scale: float) -> PosedImages:
        """Convert to the world of torch-ngp and PVD: axes (y, z, x), camera positions times ``scale``."""
        return self.map_world(AXES, scale)

    def select(self, views: list[int]) -> PosedImages:
        """Return some of the views, in the given order."""
        return replace(
            self,
            files=tuple(self.files[v] for v in views),
            names=tuple(self.names[v] for v in views),
            widths=tuple(self.widths[v] for v in views),
            heights=tuple(self.heights[v] for v in views),
            near_far=None if self.near_far is None else self.near_far[views],
            masks=tuple(self.masks[v] for v in views) if self.masks else (),
            **{name: getattr(self, name)[views] for name in ("c2w", "fx", "fy", "cx", "cy", "distortion")},
        )


def inverse_world(world: tuple[float, ...]) -> tuple[float, ...]:
    """Return the 13 numbers of the inverse mapping."""
    rows = torch.tensor(world[:12], dtype=torch.float64).view(3, 4)
    turn, move, scale = rows[:, :3], rows[:, 3], world[12]
    back = torch.linalg.inv(turn)
    # y = s (R x + t), so x = (R^-1 y - s R^-1 t) / s.
    return (*torch.cat((back, -scale * (back @ move)[:, None]), dim=-1).flatten().tolist(), 1 / scale)


def intrinsics(count: int, **values: float) -> dict[str, Tensor]:
    """Return fx, fy, cx, cy and distortion of ``count`` views that share one lens."""
    lens = torch.tensor([values.get(k, 0.0) for k in ("k1", "k2", "p1", "p2")], dtype=torch.float64)
    one = {k: torch.full((count,), float(values[k]), dtype=torch.float64) for k in ("fx", "fy", "cx", "cy")}
    return one | {"distortion": lens.repeat(count, 1)}
