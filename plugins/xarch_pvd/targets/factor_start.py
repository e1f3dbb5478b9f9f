"""Initialisation of planes and lines by factorising a teacher's volumes, without training.

Log-density and colour feature are sampled at the vertices of occupied cells and fitted with low-rank models
(:mod:`xarch_pvd.targets.low_rank`). Feature errors are weighted by their effect on colour: channels are first
rotated and scaled by the colour head's mean squared derivative, and directions without effect are dropped.

Legend: N points, G geometry features, Q directions of feature space that affect colour, R components, S samples per
axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from xarch_field import FEATURES
from xarch_field.model import occupancy as occupancies
from xarch_field.teacher import FieldTeacher
from xarch_pvd.targets.grids import resampled
from xarch_pvd.targets.low_rank import Volume, planes_times_lines, products_of_lines
from xarch_pvd.targets.representations.factor_fields import LINES, PLANES, CPField, FactorField, VMField

RESOLUTION = 64
"""Maximum number of sampled vertices per axis; finer grids are interpolated from them."""
OPAQUE = 7.0
"""Log-densities beyond these bounds are equivalent."""
LOOKS = 2000
"""Number of points at which colour is differentiated with respect to features."""
SHOWN = 0.999
"""Share of the colour variation that the fitted directions retain."""
SIZE = 0.3
"""Root mean square of a colour component's factors, suited to Adam's step size."""
VM_SWEEPS, CP_SWEEPS = (10, 6), (100, 20)
"""Sweeps for density and for colour."""
CHUNK = 1 << 15


@torch.no_grad()
def start_factors(teacher: FieldTeacher, field: FactorField) -> None:
    """Initialise the grids, and the basis if the teacher has a feature, for the current colour head."""
    seen = _look(teacher, field)
    low, high = max(teacher.facts.empty, field.sigma_clip[0]), min(OPAQUE, field.sigma_clip[1])
    density = Volume(seen.raw_XYZ[..., None], seen.known_XYZ, low, high)
    colour, back_GQ = None, None
    if seen.feature_NG is not None:
        towards_GQ, back_GQ = shown_directions(teacher, field, seen.feature_NG, seen.opacity_N)
        value_XYZQ = torch.zeros(*seen.known_XYZ.shape, towards_GQ.shape[1])
        value_XYZQ[seen.known_XYZ] = seen.feature_NG @ towards_GQ
        colour = Volume(value_XYZQ, seen.known_XYZ)
    if isinstance(field, VMField):
        _start_vm(field, density, colour, back_GQ)
    elif isinstance(field, CPField):
        _start_cp(field, density, colour, back_GQ)


@dataclass(frozen=True)
class Seen:
    """A teacher sampled at the vertices of a grid, N of which lie in occupied cells."""

    known_XYZ: Tensor
    raw_XYZ: Tensor
    feature_NG: Tensor | None
    opacity_N: Tensor


def _look(teacher: FieldTeacher, field: FactorField) -> Seen:
    sizes = [min(RESOLUTION, s) for s in field.sizes]
    axes = [torch.linspace(0, 1, size) for size in sizes]
    u_N3 = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).view(-1, 3)
    known = occupancies.lookup(occupancies.dilate(teacher.field.occupancy.cpu()), u_N3)
    want = ("sigma_raw", "feature") if teacher.has_feature else ("sigma_raw",)
    values = []
    for rows in u_N3[known].split(CHUNK):
        found = teacher.query(field.to_world(rows.to(field.aabb.device)), None, want)
        values.append({name: v.cpu() for name, v in found.items()})
    raw_N = torch.cat([v["sigma_raw"] for v in values]) if values else torch.zeros(0)
    feature_NG = torch.cat([v["feature"][:, 1:] for v in values]) if values and teacher.has_feature else None
    raw = torch.zeros(len(u_N3)).masked_scatter(known, raw_N)
    opacity_N = 1 - torch.exp(-teacher.field.density(raw_N) * teacher.step)
    return Seen(known.view(sizes), raw.view(sizes), feature_NG, opacity_N)


def shown_directions(
    teacher: FieldTeacher, field: FactorField, feature_NG: Tensor, opacity_N: Tensor
) -> tuple[Tensor, Tensor]:
    """Return maps [G, Q] from features to the whitened directions that affect colour, and back (transposed)."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.multinomial(opacity_N + 1e-3, LOOKS, replacement=True, generator=generator)
    dirs_N3 = F.normalize(torch.randn(LOOKS, 3, generator=generator), dim=-1)
    device = field.aabb.device
    metric_GG = torch.zeros(FEATURES - 1, FEATURES - 1)
    with torch.enable_grad():
        at_NG = feature_NG[rows].to(device).requires_grad_(True)
        rgb_N3 = field.color_net.colour(at_NG, dirs_N3.to(device))
        for channel in range(3):
            (slope_NG,) = torch.autograd.grad(rgb_N3[:, channel].sum(), at_NG, retain_graph=True)
            metric_GG += (slope_NG.T @ slope_NG).cpu() / LOOKS
    size_G, axes_GG = torch.linalg.eigh(metric_GG)
    root_G = size_G.clamp_min(1e-6 * size_G[-1].clamp_min(1e-12)).sqrt()
    scaled_NG = feature_NG[rows] @ (axes_GG * root_G)
    energy_G, turn_GG = torch.linalg.eigh(scaled_NG.T @ scaled_NG)
    energy_G, turn_GG = energy_G.flip(0).clamp_min(0), turn_GG.flip(1)
    count = min(FEATURES - 1, max(3, 1 + int((energy_G.cumsum(0) < SHOWN * energy_G.sum()).sum())))
    return (axes_GG * root_G) @ turn_GG[:, :count], (axes_GG / root_G) @ turn_GG[:, :count]


def _start_vm(field: VMField, density: Volume, colour: Volume | None, back_GQ: Tensor | None) -> None:
    axes = list(zip(PLANES, LINES, strict=True))
    split, ranks = field.split, field.planes[0].shape[-1] - field.split
    for m, (plane, line, mix) in enumerate(planes_times_lines(density, axes, _most(split, density), VM_SWEEPS[0])):
        _write_group(field, m, slice(0, split), *_absorbed([plane, line], mix))
    if colour is None or back_GQ is None:
        return
    for m, (plane, line, mix) in enumerate(planes_times_lines(colour, axes, _most(ranks, colour), VM_SWEEPS[1])):
        factors, mix_QR = _evened([plane, line], mix)
        _write_group(field, m, slice(split, None), *factors)
        _write_basis(field, m * ranks, back_GQ @ mix_QR)


def _start_cp(field: CPField, density: Volume, colour: Volume | None, back_GQ: Tensor | None) -> None:
    split, ranks = field.split, field.lines[0].shape[-1] - field.split
    *lines, mix = products_of_lines(density, split, CP_SWEEPS[0])
    for axis, line in enumerate(_absorbed(lines, mix)):
        _write(field.lines[LINES.index(axis)], slice(0, split), line)
    if colour is None or back_GQ is None:
        return
    *lines, mix = products_of_lines(colour, ranks, CP_SWEEPS[1])
    lines, mix_QR = _evened(lines, mix)
    for axis, line in enumerate(lines):
        _write(field.lines[LINES.index(axis)], slice(split, None), line)
    _write_basis(field, 0, back_GQ @ mix_QR)


def _most(rank: int, volume: Volume) -> int:
    """Limit the rank: an unfolding has at most as many components as its line has samples."""
    return min(rank, *volume.value_XYZK.shape[:3])


def _absorbed(factors: list[Tensor], mix_1R: Tensor) -> list[Tensor]:
    """Fold the mix of one channel into the factors, balanced in size."""
    sizes = [_size(f) for f in factors]
    each_R = (torch.stack(sizes).prod(dim=0) * mix_1R[0].abs()) ** (1 / len(factors))
    first, *others = (f / s * each_R for f, s in zip(factors, sizes, strict=True))
    return [first * mix_1R[0].sign(), *others]


def _evened(factors: list[Tensor], mix_QR: Tensor) -> tuple[list[Tensor], Tensor]:
    """Rescale factors to :data:`SIZE`, moving the remaining scale into the mix."""
    sizes = [_size(f) for f in factors]
    rest_R = torch.stack(sizes).prod(dim=0) / SIZE ** len(factors)
    return [f / s * SIZE for f, s in zip(factors, sizes, strict=True)], mix_QR * rest_R


def _size(factor: Tensor) -> Tensor:
    return factor.flatten(0, -2).square().mean(dim=0).sqrt().clamp_min(1e-12)


def _write_group(field: VMField, group: int, columns: slice, plane: Tensor, line: Tensor) -> None:
    """Write the components of a group; unused ones keep their random plane but contribute nothing without a line."""
    field.lines[group][:, columns] = 0
    _write(field.planes[group], columns, plane)
    _write(field.lines[group], columns, line)


def _write(grid: Tensor, columns: slice, values: Tensor) -> None:
    part = grid[..., columns][..., : values.shape[-1]]
    part.copy_(resampled(values, part.shape))


def _write_basis(field: FactorField, first: int, mix_GR: Tensor) -> None:
    field.basis.weight[:, first : first + mix_GR.shape[1]] = mix_GR.to(field.aabb.device)
