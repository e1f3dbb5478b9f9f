"""Reader and writer of svox2 grids (Plenoxels, arXiv 2112.05131), ``.npz``.

``links`` int32 [X,Y,Z] (row of the data, negative: empty), ``density_data`` float32 [K,1], ``sh_data`` float16
[K,3*degree²], ``radius`` and ``center`` [3], ``basis_type`` (1: spherical harmonics, the only one supported). The arch
is ``svox2`` with these three tensors (``sh_data`` as float32) and the options ``resolution`` [3], ``center``,
``radius``, ``degree``.

A sample (i, j, k) lies at center + radius * ((2i + 1) / X - 1): at the centres of the cells of the box, not at its
corners. sigma = relu(interpolated density), rgb = max(0, sum of harmonics + 0.5): no exponential, no sigmoid.

Conversion to and from ``tensors`` (samples at the corners of the box, raw log-density, harmonics before a sigmoid)
keeps every sample in place. Between samples, one is linear in sigma, the other in log sigma: densities are either exact
at samples or preserve the opacity of voxels (:mod:`xarch_pvd.source.formats.svox2_density`). Harmonics are refitted to
the other form's colour by least squares over fixed directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from xarch import UsageError
from xarch_field import spherical_harmonics
from xarch_pvd.source.formats.npz_file import ArrayHeader, read_npz, write_npz
from xarch_pvd.source.formats.occupancy import cubic
from xarch_pvd.source.formats.record import FieldFile, need
from xarch_pvd.source.formats.svox2_density import line_of

NAMES = ("links", "density_data", "sh_data", "radius", "center", "basis_type")
HARMONICS = 1
MAX_DEGREE = 4
MAX_SIDE = 1 << 14
DIRECTIONS = 64
CLIP = (-2.0, 7.0)
CHUNK = 1 << 16


def read_svox2_npz(path: Path | str) -> FieldFile:
    """Read the grid as stored, arch ``svox2``.

    Raises:
        UsageError: the file is damaged, or has another basis, links beyond the data, or inconsistent shapes.
    """
    path = Path(path)
    arrays = read_npz(path, NAMES, partial(_check, path))
    basis = int(arrays.get("basis_type", np.array(HARMONICS)).reshape(-1)[0])
    if basis != HARMONICS:
        raise UsageError(f"{path} has basis_type {basis}, expected {HARMONICS} (spherical harmonics)")
    links, density, harmonics = arrays["links"], arrays["density_data"], arrays["sh_data"]
    degree = math.isqrt(harmonics.shape[-1] // 3)
    if links.max() >= len(density):
        raise UsageError(f"{path}: links refer to row {links.max()}, but there are {len(density)}")
    radius, center = (_three(arrays.get(n), usual, path, n) for n, usual in (("radius", 1.0), ("center", 0.0)))
    if min(radius) <= 0:
        raise UsageError(f"{path}: radius is {radius}, expected positive numbers")
    tensors = {
        # Far below zero an int64 would wrap around to a row.
        "links": torch.from_numpy(links.clip(min=-1).astype(np.int32)),
        "density_data": torch.from_numpy(density.astype(np.float32, copy=False)),
        "sh_data": torch.from_numpy(harmonics.astype(np.float32, copy=False)),
    }
    low, high = ([c + s * r for c, r in zip(center, radius, strict=True)] for s in (-1, 1))
    return FieldFile(
        arch="svox2",
        options={"resolution": list(links.shape), "center": center, "radius": radius, "degree": degree},
        tensors=tensors,
        aabb=(low[0], low[1], low[2], high[0], high[1], high[2]),
        occupancy=_occupied(tensors["links"], tensors["density_data"]),
        details={"format": "svox2", "rows": len(density), "samples": links.size},
    )


def _check(path: Path, headers: Mapping[str, ArrayHeader]) -> None:
    """Check presence, shapes and types of all arrays.

    Raises:
        UsageError: one is missing or does not fit.
    """
    missing = sorted({"links", "density_data", "sh_data"} - set(headers))
    if missing:
        raise UsageError(f"{path} is not a svox2 grid: it lacks {', '.join(missing)}")
    texts = sorted(name for name, header in headers.items() if not header.numeric())
    if texts:
        raise UsageError(f"{path}: {texts[0]} holds {headers[texts[0]].dtype}, expected numbers")
    links, density, harmonics = headers["links"], headers["density_data"].shape, headers["sh_data"].shape
    if len(links.shape) != 3 or links.dtype.kind != "i" or not 2 <= min(links.shape) <= max(links.shape) <= MAX_SIDE:
        raise UsageError(f"{path}: links are {links.dtype} {links.shape}, expected int32 [X, Y, Z], 2 to {MAX_SIDE}")
    degree = math.isqrt(harmonics[-1] // 3) if len(harmonics) == 2 else 0
    fits = density == (harmonics[0], 1) and harmonics[1] == 3 * degree**2 if degree else False
    if not fits or degree > MAX_DEGREE or density[0] == 0:
        raise UsageError(f"{path}: density_data {density} and sh_data {harmonics} are not [K,1], [K,3*d²]")
    for name, counts in (("basis_type", (1,)), ("radius", (1, 3)), ("center", (1, 3))):
        if name in headers and headers[name].elements not in counts:
            raise UsageError(f"{path}: {name} has shape {headers[name].shape}, expected {counts[-1]} numbers")


def write_svox2_npz(record: FieldFile, path: Path | str) -> None:
    """Write a ``svox2`` record unchanged, or a converted ``tensors`` record.

    Raises:
        UsageError: the architecture or warp is not supported, or the file cannot be written.
    """
    if record.arch == "tensors":
        record = tensors_to_svox2(record)
    if record.arch != "svox2" or record.warp != "aabb":
        raise UsageError(
            f"svox2 does not support {record.arch} with warp {record.warp}",
            "convert it to tensors first (target voxels)",
        )
    tensors = record.tensors
    arrays = {
        "radius": np.array(record.options["radius"], dtype=np.float32),
        "center": np.array(record.options["center"], dtype=np.float32),
        "links": need(tensors, "links", "the record", (None,) * 3).numpy().astype(np.int32),
        "density_data": need(tensors, "density_data", "the record", (None, 1)).float().numpy(),
        "sh_data": need(tensors, "sh_data", "the record", (None, None)).numpy().astype(np.float16),
        "basis_type": np.array(HARMONICS),
    }
    write_npz(Path(path), arrays)


def tensors_to_svox2(record: FieldFile, *, exact: bool = True) -> FieldFile:
    """Convert samples in occupied cells to rows; the box grows by half a cell to keep samples in place.

    Args:
        exact: write the density of each sample, which thickens surfaces; otherwise a linear function of the
            log-density, which preserves surfaces but loses low densities.

    Raises:
        UsageError: the field is empty.
    """
    volume = need(record.tensors, "volume", "the record", (None,) * 4)
    shape = volume.shape[1:]
    low_clip, high_clip = record.sigma_clip or (-math.inf, math.inf)
    raw = volume[0].clamp(low_clip, high_clip)
    # A sample at the lower clip is empty space; without a mask it would render as haze.
    kept = raw > (low_clip if record.sigma_clip else -12.0)
    if record.occupancy is not None:
        kept &= _touched(record.occupancy, shape)
    if not bool(kept.any()):
        raise UsageError("this field is empty: none of its samples holds matter")
    degree = math.isqrt((volume.shape[0] - 1) // 3)
    sigma = raw.exp()
    sizes = [(record.aabb[axis + 3] - record.aabb[axis]) / (count - 1) for axis, count in enumerate(shape)]
    if not exact:
        slope, zero = line_of(raw, kept, sum(sizes) / 3)
        sigma = slope * (raw - zero)
        # Next to matter, write negative values too: the surface ends between the two samples.
        around = torch.nn.functional.max_pool3d((kept & (sigma > 0))[None, None].float(), 3, 1, 1)[0, 0] > 0
        kept = around & (kept | (sigma < 0))
    links = torch.full(shape, -1, dtype=torch.int32)
    links[kept] = torch.arange(int(kept.sum()), dtype=torch.int32)
    center, radius = [], []
    for axis, count in enumerate(shape):
        low, high = record.aabb[axis], record.aabb[axis + 3]
        center.append((low + high) / 2)
        radius.append((high - low) / 2 * count / (count - 1))
    colour = _refit(volume[1:, kept].T, degree, lambda v: torch.sigmoid(v) - 0.5)
    box = [c + s * r for s in (-1, 1) for c, r in zip(center, radius, strict=True)]
    tensors = {"links": links, "density_data": sigma[kept][:, None], "sh_data": colour}
    return FieldFile(
        arch="svox2",
        options={"resolution": list(shape), "center": center, "radius": radius, "degree": degree},
        tensors=tensors,
        aabb=(box[0], box[1], box[2], box[3], box[4], box[5]),
        occupancy=_occupied(links, tensors["density_data"]),
        background=record.background,
        details={**record.details, "density": "exact at samples" if exact else "opacity of voxels"},
    )


def svox2_to_tensors(record: FieldFile) -> FieldFile:
    """Convert to dense voxels; empty samples get the lowest log-density, colours are refitted."""
    links = need(record.tensors, "links", "the record", (None,) * 3)
    density, harmonics = record.tensors["density_data"][:, 0], record.tensors["sh_data"]
    shape, degree = links.shape, int(record.options["degree"])
    high = max(CLIP[1], math.log(max(float(density.max()), 1e-3)))
    raw = density.clamp(min=1e-30).log().clamp(CLIP[0], high)

    def logit(v: Tensor) -> Tensor:
        return torch.logit((v + 0.5).clamp(1e-3, 1 - 1e-3))

    rows = torch.cat([raw[:, None], _refit(harmonics, degree, logit)], dim=1)
    volume = torch.zeros(*shape, rows.shape[1])
    volume[..., 0] = CLIP[0]
    full = links >= 0
    volume[full] = rows[links[full].long()]
    box = []
    for sign in (-1, 1):
        for axis, count in enumerate(shape):
            box.append(record.options["center"][axis] + sign * record.options["radius"][axis] * (count - 1) / count)
    occupied = (links >= 0) & (density[links.clamp(min=0).long()] > math.exp(CLIP[0]))
    for axis in range(3):
        size = occupied.shape[axis] - 1
        occupied = occupied.narrow(axis, 0, size) | occupied.narrow(axis, 1, size)
    side = {*shape}
    return FieldFile(
        arch="tensors",
        options={"resolution": shape[0] if len(side) == 1 else list(shape), "degree": degree},
        tensors={"volume": volume.permute(3, 0, 1, 2).contiguous()},
        aabb=(box[0], box[1], box[2], box[3], box[4], box[5]),
        sigma_clip=(CLIP[0], high),
        occupancy=cubic(occupied),
        background=record.background,
        details=dict(record.details),
    )


def _refit(rows: Tensor, degree: int, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Fit harmonics [K,3*d²] to ``change`` of the values of ``rows`` over fixed directions."""
    order = torch.arange(DIRECTIONS, dtype=torch.float64) + 0.5
    z, angle = 1 - 2 * order / DIRECTIONS, order * math.pi * (1 + math.sqrt(5))
    flat = (1 - z * z).sqrt()
    basis = spherical_harmonics(torch.stack((flat * angle.cos(), flat * angle.sin(), z), dim=-1).float(), degree)
    back = torch.linalg.pinv(basis.double()).float()
    parts = [change(part.reshape(-1, 3, degree**2) @ basis.T) @ back.T for part in rows.float().split(CHUNK)]
    return torch.cat(parts).flatten(1)


def _occupied(links: Tensor, density: Tensor) -> Tensor:
    """Return occupied cells; a sample at the centre of a cell extends halfway into its neighbours."""
    full = (links >= 0) & (density[links.clamp(min=0).long(), 0] > 0)
    for axis in range(3):
        size = full.shape[axis] - 1
        grown = full.clone()
        grown.narrow(axis, 0, size).logical_or_(full.narrow(axis, 1, size))
        grown.narrow(axis, 1, size).logical_or_(full.narrow(axis, 0, size))
        full = grown
    return cubic(full)


def _touched(grid: Tensor, shape: torch.Size) -> Tensor:
    """Return the samples (cell corners) that interpolation in occupied cells reads, bool of ``shape``."""
    result = grid
    for axis, count in enumerate(shape):
        cells = result.shape[axis]
        place = torch.arange(count, dtype=torch.float64) * cells / (count - 1)
        reach = cells / (count - 1)
        first = torch.floor(place - reach + 1e-6).clamp(0, cells).long()
        last = torch.ceil(place + reach - 1e-6).clamp(0, cells).long()
        total = torch.cumsum(result.int(), dim=axis)
        total = torch.cat([torch.zeros_like(total.narrow(axis, 0, 1)), total], dim=axis)
        result = total.index_select(axis, last) > total.index_select(axis, first)
    return result


def _three(value: np.ndarray | None, usual: float, path: Path, name: str) -> list[float]:
    numbers = [usual] if value is None else [float(v) for v in value.reshape(-1)]
    if len(numbers) not in (1, 3):
        raise UsageError(f"{path}: {name} has {len(numbers)} numbers, expected one or three")
    return numbers * 3 if len(numbers) == 1 else numbers
