"""Sizes of views: what a file says of its cameras against the pictures that are there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xarch import UsageError
from xarch_pvd.data.datasets.pictures import picture_size


@dataclass(frozen=True, slots=True)
class ViewSize:
    """Size of a view in pixels, and the factors that take the camera's stated numbers there."""

    width: int
    height: int
    across: float
    down: float


def view_size(picture: Path, width: int, height: int, downscale: int = 1) -> ViewSize:
    """Size at which a view is used.

    A picture that is a whole multiple of its camera's size is averaged down to it. Any other size, as of a folder
    ``images_4`` whose numbers were rounded, scales the camera instead, each direction by the ratio that is there.

    Args:
        picture: looked at if it exists; only its header is read.
        width, height: what the camera's numbers refer to.
        downscale: whole number of pixels that are averaged to one; what is left over at the edges is cut off.

    Raises:
        UsageError: the picture has another shape than the camera.
    """
    wide, high = picture_size(picture) if picture.is_file() else (width, height)
    if wide >= width and high >= height and wide // width == high // height:
        factor = wide // width
        if (wide - width * factor) < factor and (high - height * factor) < factor:
            wide, high = width, height
    ratio = (wide / width + high / height) / 2
    # Rounded sizes differ from the ratio by a pixel, but a side that was not scaled has no reason to be rounded.
    one_side = (wide == width) != (high == height)
    if one_side or abs(wide - ratio * width) > 1 or abs(high - ratio * height) > 1:
        raise UsageError(
            f"{picture} has {wide}x{high} pixels, its camera {width}x{height}",
            "another picture, or one that was turned or cut after its camera was found",
        )
    if min(wide, high) < downscale:
        raise UsageError(f"{picture} has {wide}x{high} pixels, too few to divide by {downscale}")
    return ViewSize(wide // downscale, high // downscale, wide / width / downscale, high / height / downscale)
