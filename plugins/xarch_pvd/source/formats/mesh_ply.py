"""A mesh of a field, ``.ply``: marching cubes at one density, each vertex coloured as seen along its normal.

Needs scikit-image or PyMCubes, which no other part of xarch needs.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from xarch import UsageError
from xarch_field import RadianceField

CHUNK = 1 << 16
MAX_RESOLUTION = 1024


@torch.no_grad()
def field_mesh(field: RadianceField, *, level: float = 20.0, resolution: int = 128) -> tuple[Tensor, Tensor, Tensor]:
    """Vertices [V,3] in world units, faces [F,3] (int64, outward) and colours [V,3] in [0,1].

    Args:
        level: density per world unit at the surface; 10 to 50 suit most fields.
        resolution: samples per axis over the field's box.

    Raises:
        UsageError: the field is warped, nothing reaches the level, or no marching cubes is installed.
    """
    if field.warp != "aabb":
        raise UsageError(f"a field with warp {field.warp} has no box a mesh could span", "convert it to one in a box")
    if not 2 <= resolution <= MAX_RESOLUTION or level <= 0:
        raise UsageError(f"resolution {resolution} and level {level}, expected 2 to {MAX_RESOLUTION} and more than 0")
    line = torch.linspace(0, 1, resolution)
    points = field.to_world(torch.cartesian_prod(line, line, line))
    sigma = torch.cat([field.query(part, None, ("sigma",))["sigma"] for part in points.split(CHUNK)])
    volume = sigma.view(resolution, resolution, resolution)
    if not float(volume.min()) < level < float(volume.max()):
        raise UsageError(
            f"densities reach from {float(volume.min()):.3g} to {float(volume.max()):.3g}, none crosses {level:.3g}",
            f"choose a level between them, such as {float(volume.max()) / 2:.3g} (--level)",
        )
    # A surface that runs out of the box would stay open; empty space around closes it.
    padded = torch.nn.functional.pad(volume, (1,) * 6)
    vertices, faces = _marching_cubes(padded.numpy(), level)
    corners = torch.from_numpy(vertices.astype(np.float32)) - 1
    world = field.to_world((corners / (resolution - 1)).clamp(0, 1))
    turned = torch.from_numpy(faces.astype(np.int64))
    normals = _normals(world, turned)
    inwards = (normals * _slope(volume, corners)).sum(-1).sum() > 0
    if bool(inwards):
        turned, normals = turned.flip(-1), -normals
    parts = zip(world.split(CHUNK), normals.split(CHUNK), strict=True)
    colours = torch.cat([field.query(x, -n, ("rgb",))["rgb"] for x, n in parts])
    return world, turned, colours


def write_mesh_ply(
    field: RadianceField, path: Path | str, *, level: float = 20.0, resolution: int = 128
) -> tuple[int, int]:
    """Write the mesh of a field as binary PLY; returns the numbers of vertices and faces.

    Raises:
        UsageError: as for :func:`field_mesh`, or the file cannot be written.
    """
    vertices, faces, colours = field_mesh(field, level=level, resolution=resolution)
    path = Path(path)
    corner = np.dtype([("place", "<f4", 3), ("colour", "u1", 3)])
    table = np.zeros(len(vertices), dtype=corner)
    table["place"] = vertices.numpy()
    table["colour"] = (colours.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    sides = np.zeros(len(faces), dtype=np.dtype([("count", "u1"), ("corners", "<i4", 3)]))
    sides["count"], sides["corners"] = 3, faces.numpy()
    header = (
        f"ply\nformat binary_little_endian 1.0\nelement vertex {len(table)}\n"
        "property float x\nproperty float y\nproperty float z\n"
        "property uchar red\nproperty uchar green\nproperty uchar blue\n"
        f"element face {len(sides)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    partial = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(header.encode() + table.tobytes() + sides.tobytes())
        os.replace(partial, path)
    except OSError as e:
        raise UsageError(f"cannot write {path}: {e.strerror or e}", "free disk space or choose another folder") from e
    finally:
        partial.unlink(missing_ok=True)
    return len(table), len(sides)


def _marching_cubes(volume: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    for module in ("skimage.measure", "mcubes"):
        try:
            found = importlib.import_module(module).marching_cubes(volume, level)
        except ImportError:
            continue
        return found[0], found[1]
    raise UsageError("a mesh needs marching cubes, and none is installed", 'pip install "xarch[mesh]" (scikit-image)')


def _normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit normals [V,3], faces weighted by their area."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    across = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(vertices)
    for k in range(3):
        total.index_add_(0, faces[:, k], across)
    return torch.nn.functional.normalize(total, dim=-1)


def _slope(volume: Tensor, corners: Tensor) -> Tensor:
    """Direction [V,3] in which the density rises, at points given in samples."""
    padded = torch.nn.functional.pad(volume, (2,) * 6)
    at = corners.round().long().clamp(-1, volume.shape[0]) + 2
    x, y, z = at.unbind(-1)
    return torch.stack(
        [
            padded[x + 1, y, z] - padded[x - 1, y, z],
            padded[x, y + 1, z] - padded[x, y - 1, z],
            padded[x, y, z + 1] - padded[x, y, z - 1],
        ],
        dim=-1,
    )
