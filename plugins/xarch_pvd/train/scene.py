"""Procedural scene of solid geometry: torus, sphere and chequered slab with view-dependent highlights.

Rendered by sphere tracing of signed distances. The box is [-1,1]^3, z up. ``write_scene`` writes a folder in Blender's
format.

Legend: P pixels or rays, N points, 3 = x, y, z or r, g, b.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from xarch import UsageError
from xarch_field import Camera, sphere_pose

FOV = 0.6911
RADIUS = 3.2
HIGHEST = 0.95
"""Sine of the highest camera's elevation."""
STEPS, LONGEST, HIT = 90, 0.3, 2e-3
BOX = [[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]
SAMPLES = 2
"""Rays per axis of each pixel."""


def distances(x_N3: Tensor) -> Tensor:
    """Return signed distances to the torus, the sphere and the slab, [N,3] in this order."""
    x, y, z = x_N3.unbind(-1)
    torus = ((x * x + y * y).sqrt() - 0.5).square().add(z * z).sqrt() - 0.16
    ball = (x * x + y * y + (z - 0.35).square()).sqrt() - 0.3
    half = torch.tensor([0.65, 0.65, 0.06])
    outside = torch.stack((x, y, z + 0.45), dim=-1).abs() - half
    slab = outside.clamp(min=0).norm(dim=-1) + outside.amax(dim=-1).clamp(max=0) - 0.02
    return torch.stack((torus, ball, slab), dim=-1)


def colours(x_N3: Tensor) -> Tensor:
    """Return the surface colour [N,3] of the nearest of the three bodies."""
    x, y, _ = x_N3.unbind(-1)
    angle = torch.atan2(y, x)
    torus = torch.stack((0.55 + 0.4 * (6 * angle).sin(), torch.full_like(x, 0.35), 0.6 + 0.3 * (5 * angle).cos()), -1)
    ball = torch.tensor([0.9, 0.75, 0.2]).expand_as(torus)
    odd = ((6 * x).floor() + (6 * y).floor()).remainder(2)[:, None]
    slab = odd * torch.tensor([0.15, 0.3, 0.35]) + (1 - odd) * torch.tensor([0.85, 0.85, 0.9])
    nearest = distances(x_N3).argmin(dim=-1)
    return torch.stack((torus, ball, slab), dim=1)[torch.arange(len(x)), nearest]


def trace(origins_P3: Tensor, dirs_P3: Tensor) -> tuple[Tensor, Tensor]:
    """Trace rays; return colour [P,3] and hit (bool [P]). Colour is 0 where nothing is hit."""
    # Everything lies inside the sphere of this radius: rays start on it and end behind it.
    reach = 1.75
    along = -(origins_P3 * dirs_P3).sum(-1)
    miss = (origins_P3 + along[:, None] * dirs_P3).square().sum(-1)
    half = (reach**2 - miss).clamp(min=0).sqrt()
    depth, end = (along - half).clamp(min=0), along + half
    hit = torch.zeros(len(depth), dtype=torch.bool)
    active = (miss < reach**2).nonzero()[:, 0]
    for _ in range(STEPS):
        if len(active) == 0:
            break
        away = distances(origins_P3[active] + depth[active, None] * dirs_P3[active]).amin(-1)
        touched = away.abs() < HIT
        hit[active[touched]] = True
        depth[active] += torch.where(touched, torch.zeros_like(away), away.clamp(max=LONGEST))
        active = active[~touched & (depth[active] < end[active])]
    colour = torch.zeros_like(origins_P3)
    colour[hit] = shade(origins_P3[hit] + depth[hit, None] * dirs_P3[hit], dirs_P3[hit])
    return colour, hit


def shade(x_N3: Tensor, dirs_N3: Tensor) -> Tensor:
    """Shade surface points under one lamp: diffuse plus a view-dependent highlight, [N,3]."""
    e = 1e-3
    offsets = torch.eye(3) * e
    slopes = [distances(x_N3 + o).amin(-1) - distances(x_N3 - o).amin(-1) for o in offsets]
    normals = torch.nn.functional.normalize(torch.stack(slopes, dim=-1), dim=-1)
    lamp = torch.nn.functional.normalize(torch.tensor([0.5, 0.3, 0.9]), dim=0)
    mirrored = dirs_N3 - 2 * (dirs_N3 * normals).sum(-1, keepdim=True) * normals
    diffuse = 0.35 + 0.65 * (normals @ lamp).clamp(min=0)
    highlight = 0.25 * (mirrored @ lamp).clamp(min=0) ** 20
    return (colours(x_N3) * diffuse[:, None] + highlight[:, None]).clamp(0, 1)


def render_view(camera: Camera) -> Tensor:
    """Render a camera's image, float32 [H,W,4] in [0,1], straight alpha, ``SAMPLES``² rays per pixel."""
    fine = Camera(
        camera.width * SAMPLES,
        camera.height * SAMPLES,
        camera.fx * SAMPLES,
        camera.fy * SAMPLES,
        camera.cx * SAMPLES,
        camera.cy * SAMPLES,
        camera.c2w,
    )
    colour, hit = trace(*fine.rays())
    shape = (camera.height, SAMPLES, camera.width, SAMPLES)
    alpha = hit.float().view(*shape, 1).mean(dim=(1, 3))
    rgb = colour.view(*shape, 3).mean(dim=(1, 3)) / alpha.clamp(min=1e-8)
    return torch.cat((rgb, alpha), dim=-1)


def random_cameras(count: int, size: int, generator: torch.Generator) -> list[Camera]:
    """Sample cameras on the upper hemisphere, looking at the origin."""
    azimuth = torch.rand(count, generator=generator) * (2 * math.pi)
    elevation = (torch.rand(count, generator=generator) * HIGHEST).asin()
    return [
        Camera.from_angle(size, size, FOV, sphere_pose(float(a), float(e), RADIUS))
        for a, e in zip(azimuth, elevation, strict=True)
    ]


def write_scene(
    folder: Path | str, *, views: int = 40, size: int = 100, seed: int = 0, val: int = 4, test: int = 8
) -> Path:
    """Render the scene to a folder: ``transforms_{train,val,test}.json`` and one PNG per view.

    Args:
        views, val, test: number of views per split; every split has its own cameras.
        size: side of the square images in pixels.
        seed: seed of the cameras.

    Raises:
        UsageError: a number is less than one, or the folder cannot be written.
    """
    from PIL import Image

    folder = Path(folder)
    if min(views, val, test) < 1 or not 1 <= size <= 8192:
        raise UsageError(f"{views} + {val} + {test} views of {size} pixels, expected one or more of each")
    generator = torch.Generator().manual_seed(seed)
    try:
        for split, count in (("train", views), ("val", val), ("test", test)):
            (folder / split).mkdir(parents=True, exist_ok=True)
            frames = []
            for number, camera in enumerate(random_cameras(count, size, generator)):
                pixels = (render_view(camera) * 255).round().to(torch.uint8).numpy()
                Image.fromarray(pixels, "RGBA").save(folder / split / f"r_{number}.png")
                frames.append({"file_path": f"./{split}/r_{number}", "transform_matrix": camera.c2w.tolist()})
            document = {"camera_angle_x": FOV, "w": size, "h": size, "aabb": BOX, "frames": frames}
            (folder / f"transforms_{split}.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    except OSError as e:
        raise UsageError(f"cannot write {folder}: {e.strerror or e}", "free disk space or choose another folder") from e
    return folder
