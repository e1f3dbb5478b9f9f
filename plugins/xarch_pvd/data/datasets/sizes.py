"""Sizes of views, reconciled between camera files and stored images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xarch import UsageError
from xarch_pvd.data.datasets.pictures import picture_size

MAX_SIDE = 1 << 16


@dataclass(frozen=True, slots=True)
class ViewSize:
    """Size of a view in pixels, and scale factors for the camera's stated numbers."""

    width: int
    height: int
    across: float
    down: float


def view_size(picture: Path, width: int, height: int, downscale: int = 1) -> ViewSize:
    """Return the size at which a view is used.

    An image that is an integer multiple of its camera's size is averaged down to it. Any other size, as in a folder
    ``images_4`` with rounded sizes, scales the camera instead, by the actual ratio in each direction.

    Args:
        picture: image, of which only the header is read, if it exists.
        width, height: size to which the camera's numbers refer.
        downscale: integer number of pixels averaged to one; the remainder at the edges is cropped.

    Raises:
        UsageError: the image has another aspect ratio than the camera, or the camera no or an absurd size.
    """
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise UsageError(f"the camera of {picture} has {width}x{height} pixels, expected 1 to {MAX_SIDE} a side")
    wide, high = picture_size(picture) if picture.is_file() else (width, height)
    if wide >= width and high >= height and wide // width == high // height:
        factor = wide // width
        if (wide - width * factor) < factor and (high - height * factor) < factor:
            wide, high = width, height
    ratio = (wide / width + high / height) / 2
    # Rounded sizes may differ from the ratio by a pixel, but an unscaled side is never rounded.
    one_side = (wide == width) != (high == height)
    if one_side or abs(wide - ratio * width) > 1 or abs(high - ratio * height) > 1:
        raise UsageError(
            f"{picture} has {wide}x{high} pixels, but its camera {width}x{height}",
            "the image is a different one, or was rotated or cropped after its camera was estimated",
        )
    if min(wide, high) < downscale:
        raise UsageError(f"{picture} has {wide}x{high} pixels, too few to divide by {downscale}")
    return ViewSize(wide // downscale, high // downscale, wide / width / downscale, high / height / downscale)
