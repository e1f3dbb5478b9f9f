"""Mesh of a field, ``.ply``: marching cubes at a density level, with vertices coloured as seen along their normals.

Requires scikit-image or PyMCubes, which nothing else in xarch needs.
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
    """Return vertices [V,3] in world units, faces [F,3] (int64, outward) and colours [V,3] in [0,1].

    Args:
        level: density per world unit at the surface; 10 to 50 suit most fields.
        resolution: samples per axis over the field's box.

    Raises:
        UsageError: the field is warped, no density reaches the level, or no marching cubes package is installed.
    """
    if field.warp != "aabb":
        raise UsageError(f"a field with warp {field.warp} has no box for a mesh", "convert it to a field in a box")
    if not 2 <= resolution <= MAX_RESOLUTION or level <= 0:
        raise UsageError(f"resolution {resolution} and level {level}, expected 2 to {MAX_RESOLUTION} and more than 0")
    line = torch.linspace(0, 1, resolution)
    points = field.to_world(torch.cartesian_prod(line, line, line))
    sigma = torch.cat([field.query(part, None, ("sigma",))["sigma"] for part in points.split(CHUNK)])
    volume = sigma.view(resolution, resolution, resolution)
    if not float(volume.min()) < level < float(volume.max()):
        raise UsageError(
            f"densities range from {float(volume.min()):.3g} to {float(volume.max()):.3g} and never cross {level:.3g}",
            f"choose a level in that range, e.g. --level {float(volume.max()) / 2:.3g}",
        )
    # Pad with empty space: otherwise a surface that leaves the box would stay open.
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
    """Write the mesh of a field as binary PLY; return the numbers of vertices and faces.

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
    raise UsageError(
        "writing a mesh needs a marching cubes package, but none is installed",
        'pip install "xarch[mesh]" (scikit-image)',
    )


def _normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Return unit normals [V,3], with faces weighted by area."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    across = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(vertices)
    for k in range(3):
        total.index_add_(0, faces[:, k], across)
    return torch.nn.functional.normalize(total, dim=-1)


def _slope(volume: Tensor, corners: Tensor) -> Tensor:
    """Return the direction [V,3] of increasing density at points in sample coordinates."""
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
