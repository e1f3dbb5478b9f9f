"""Images of a field from cameras that orbit it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xarch import UsageError
from xarch_field import Camera, RadianceField, render, sphere_pose
from xarch_field.facts import ViewFacts

FRAME_MS = 80


def checked_out(out: Path) -> bool:
    """Return whether an output file is a turntable animation (.gif) rather than an image (.png).

    Raises:
        UsageError: it is neither, or its folder cannot be created.
    """
    if out.suffix.lower() not in (".png", ".gif"):
        raise UsageError(f"{out.name} is neither .png nor .gif", "name the picture turn.gif for a whole turn")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"cannot write {out}: {e.strerror or e}", "choose another folder") from e
    return out.suffix.lower() == ".gif"


def orbit(
    views: ViewFacts,
    azimuth: float,
    elevation: float,
    *,
    count: int = 1,
    size: int | None = None,
    radius: float | None = None,
) -> list[Camera]:
    """Place cameras on a circle around the scene, the first at ``azimuth`` (degrees, like ``elevation``).

    Args:
        size: pixels along the longer side.
        radius: distance to the centre; None uses that of the field's farthest camera.
    """
    scale = 1.0 if size is None else size / max(views.width, views.height)
    width, height = max(1, round(views.width * scale)), max(1, round(views.height * scale))
    focal, distance, middle = views.focal * width, radius or views.radius[1], torch.tensor(views.target)
    return [
        Camera(
            width,
            height,
            focal,
            focal,
            width / 2,
            height / 2,
            sphere_pose(math.radians(azimuth + 360 * i / count), math.radians(elevation), distance, middle),
        )
        for i in range(count)
    ]


@torch.no_grad()
def pictures(field: RadianceField, cameras: Sequence[Camera], samples: int) -> Iterator[Tensor]:
    """Yield renders [height, width, 3] in [0, 1] over the field's own background."""
    for camera in cameras:
        seen = render(field, *camera.rays(), samples=samples)["rgb"]
        yield seen.view(camera.height, camera.width, 3).clamp(0, 1)


def to_image(seen: Tensor) -> Any:
    """Convert an image [height, width, 3] in [0, 1] to a PIL image."""
    from PIL import Image

    return Image.fromarray((np.asarray(seen.cpu()) * 255).round().astype(np.uint8))


def write_pictures(seen: Sequence[Tensor], out: Path) -> None:
    """Write a PNG, or a looping GIF.

    Raises:
        UsageError: the file cannot be written.
    """
    frames = [to_image(p) for p in seen]
    try:
        if out.suffix.lower() == ".png":
            frames[0].save(out)
        else:
            frames[0].save(out, save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0)
    except OSError as e:
        raise UsageError(f"cannot write {out}: {e.strerror or e}", "free space or choose another folder") from e
