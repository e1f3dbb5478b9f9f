"""Reader and writer of xarch's own voxels, ``.npz``, arch ``tensors``.

* ``sigma_raw`` float16 or float32 [X,Y,Z] (log-density), or ``sigma`` (density per world unit, linear);
* ``sh`` [X,Y,Z,3,degree²] (harmonics before a sigmoid), or ``rgb`` [X,Y,Z,3] in [0,1];
* ``aabb`` [6], ``order`` "xyz"; optional ``sigma_clip`` [2], ``background`` [3], ``occupancy`` bool or uint8 [H,H,H].

The first and last sample of an axis lie on the faces of the box. Options of the record: ``resolution, degree``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from xarch import UsageError
from xarch_pvd.source.formats.npz_file import ArrayHeader, read_npz, write_npz
from xarch_pvd.source.formats.occupancy import cubic
from xarch_pvd.source.formats.record import MAX_OCCUPANCY, FieldFile, need

NAMES = ("sigma", "sigma_raw", "rgb", "sh", "aabb", "order", "sigma_clip", "background", "occupancy")
MAX_SIDE = 1 << 14
CONSTANT = 0.28209479177387814
"""The constant spherical harmonic of degree 0."""
MAX_DEGREE = 4
FAINT, FAINTER = 1e-3, 1e-4
"""Optical depths along the box's diagonal: cells below the first are empty; the second replaces zero."""


def read_voxels_npz(path: Path | str) -> FieldFile:
    """Read the volume, with colours as harmonics.

    Raises:
        UsageError: the file is damaged, or an array is missing or has another shape.
    """
    path = Path(path)
    arrays = read_npz(path, NAMES, partial(_check, path))
    order = str(arrays["order"].reshape(-1)[0]) if "order" in arrays and arrays["order"].size else "xyz"
    if order != "xyz":
        raise UsageError(f"{path} has order {order!r}, expected 'xyz'")
    x0, y0, z0, x1, y1, z1 = (float(v) for v in arrays["aabb"].reshape(-1))
    box = (x0, y0, z0, x1, y1, z1)
    clip = _numbers(arrays, "sigma_clip")
    occupancy = arrays.get("occupancy")
    grid = None if occupancy is None else torch.from_numpy(occupancy != 0)
    name = "sigma_raw" if "sigma_raw" in arrays else "sigma"
    density = torch.from_numpy(arrays.pop(name).astype(np.float32, copy=False))
    if name == "sigma":
        diagonal = math.dist(box[:3], box[3:])
        if not FAINTER < diagonal < math.inf:
            raise UsageError(f"{path}: aabb is {box}, an empty box or one without end")
        density, faint = density.clamp(min=FAINTER / diagonal).log(), math.log(FAINT / diagonal)
        clip = clip or (math.log(FAINTER / diagonal), max(7.0, float(density.max())))
        if grid is None:
            grid = _cells(density > faint)
    colour = _colour(arrays, density.shape)
    shape = list(density.shape)
    return FieldFile(
        arch="tensors",
        options={
            "resolution": shape[0] if len(set(shape)) == 1 else shape,
            "degree": math.isqrt(colour.shape[0] // 3),
        },
        tensors={"volume": torch.cat([density[None], colour])},
        aabb=box,
        sigma_clip=None if clip is None else (clip[0], clip[1]),
        occupancy=None if grid is None else cubic(grid),
        background=_background(arrays),
        details={"format": "xarch voxels", "density": name},
    )


def write_voxels_npz(record: FieldFile, path: Path | str, *, half: bool = True, linear: bool = False) -> None:
    """Write a ``tensors`` record.

    Args:
        half: store in half precision.
        linear: store density instead of its logarithm, for programs that expect densities.

    Raises:
        UsageError: the architecture or warp is not supported, or the file cannot be written.
    """
    if record.arch != "tensors" or record.warp != "aabb":
        raise UsageError(
            f"voxel files do not support {record.arch} with warp {record.warp}", "convert it to tensors first"
        )
    volume = need(record.tensors, "volume", "the record", (None,) * 4).detach().float()
    kind = np.float16 if half else np.float32
    raw = volume[0]
    if linear:
        # Not clipped: the field clips after interpolation, with the bounds stored in the file.
        raw = raw.exp().clamp(max=65504.0 if half else float("inf"))
    degree = math.isqrt((volume.shape[0] - 1) // 3)
    colour = volume[1:].view(3, degree**2, *volume.shape[1:]).permute(2, 3, 4, 0, 1)
    arrays = {
        "sigma" if linear else "sigma_raw": raw.numpy().astype(kind),
        "sh": colour.numpy().astype(kind),
        "aabb": np.array(record.aabb, dtype=np.float64),
        "order": np.array("xyz"),
    }
    if record.sigma_clip is not None:
        arrays["sigma_clip"] = np.array(record.sigma_clip)
    if record.background is not None:
        arrays["background"] = np.array(record.background)
    if record.occupancy is not None:
        arrays["occupancy"] = record.occupancy.numpy()
    write_npz(Path(path), arrays)


def _check(path: Path, headers: Mapping[str, ArrayHeader]) -> None:
    """Check presence, shapes and types of all arrays.

    Raises:
        UsageError: one is missing or does not fit.
    """
    texts = sorted(name for name, header in headers.items() if name != "order" and not header.numeric())
    if texts:
        raise UsageError(f"{path}: {texts[0]} holds {headers[texts[0]].dtype}, expected numbers")
    for name, count in (("aabb", 6), ("sigma_clip", 2), ("background", 3)):
        if name in headers and (headers[name].elements != count or headers[name].dtype.kind == "b"):
            raise UsageError(f"{path}: {name} has {headers[name].elements} values, expected {count} numbers")
    if "aabb" not in headers:
        raise UsageError(f"{path} has no aabb of six numbers")
    volume = headers.get("sigma_raw", headers.get("sigma"))
    if volume is None or len(volume.shape) != 3 or not 2 <= min(volume.shape) <= max(volume.shape) <= MAX_SIDE:
        seen = "it holds " + ", ".join(sorted(headers)) if volume is None else f"its shape is {volume.shape}"
        raise UsageError(f"{path} has no sigma or sigma_raw [X, Y, Z] of 2 to {MAX_SIDE} samples; {seen}")
    grid = headers.get("occupancy")
    if grid is not None and (len(grid.shape) != 3 or not 1 <= min(grid.shape) <= max(grid.shape) <= MAX_OCCUPANCY):
        raise UsageError(f"{path}: occupancy has shape {grid.shape}, expected [H, H, H], 1 to {MAX_OCCUPANCY}")
    if "sh" in headers:
        degree = math.isqrt(headers["sh"].shape[-1]) if len(headers["sh"].shape) == 5 else 0
        if headers["sh"].shape != (*volume.shape, 3, degree**2) or not 1 <= degree <= MAX_DEGREE:
            raise UsageError(f"{path}: sh has shape {headers['sh'].shape}, expected {(*volume.shape, 3)} and degree²")
    elif "rgb" not in headers:
        raise UsageError(f"{path} has no colour: neither sh nor rgb")
    elif headers["rgb"].shape != (*volume.shape, 3):
        raise UsageError(f"{path}: rgb has shape {headers['rgb'].shape}, expected {(*volume.shape, 3)}")


def _colour(arrays: dict[str, np.ndarray], shape: torch.Size) -> Tensor:
    """Return harmonics [3*d²,X,Y,Z], grouped by colour channel."""
    if "sh" in arrays:
        values = torch.from_numpy(arrays.pop("sh").astype(np.float32, copy=False))
        return values.permute(3, 4, 0, 1, 2).reshape(-1, *shape)
    values = torch.from_numpy(arrays.pop("rgb").astype(np.float32, copy=False))
    return (torch.logit(values.clamp(1e-3, 1 - 1e-3)) / CONSTANT).permute(3, 0, 1, 2)


def _cells(full: Tensor) -> Tensor:
    """Return cells with an occupied corner."""
    for axis in range(3):
        size = full.shape[axis] - 1
        full = full.narrow(axis, 0, size) | full.narrow(axis, 1, size)
    return full


def _background(arrays: dict[str, np.ndarray]) -> tuple[float, float, float] | None:
    numbers = _numbers(arrays, "background")
    return None if numbers is None else (numbers[0], numbers[1], numbers[2])


def _numbers(arrays: dict[str, np.ndarray], name: str) -> tuple[float, ...] | None:
    return tuple(float(v) for v in arrays[name].reshape(-1)) if name in arrays else None
