"""What a student takes from its teacher before training: occupancy, blocks of equal shape, resampled grids, bakes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from xarch import Coverage
from xarch.families.field import RadianceField, spherical_harmonics
from xarch.families.field import occupancy as occupancies
from xarch.families.field.facts import FieldFacts
from xarch.families.field.model import FieldStudent, FieldTeacher
from xarch_pvd.representations import OPTIONS, build_field
from xarch_pvd.representations.voxel_field import VoxelField

DIRECTIONS = 16
"""Directions in which a colour is looked at to fit spherical harmonics (at least degree²)."""
CHUNK = 1 << 15
COLOUR_LIMIT = 1e-3


def planned_start(facts: FieldFacts, student: FieldStudent, arch: str) -> Coverage:
    """What :func:`start` will do, from the architecture alone."""
    theirs: dict[str, dict[str, Tensor]] = {}
    if facts.arch in OPTIONS:
        known = OPTIONS[facts.arch].model_fields
        options = OPTIONS[facts.arch].model_validate({k: v for k, v in facts.options.items() if k in known})
        with torch.device("meta"):
            theirs = build_field(facts.arch, options, aabb=facts.aabb).state_blocks()
    return _coverage(theirs, student.field, arch)


def start(teacher: FieldTeacher, student: FieldStudent, arch: str) -> Coverage:
    """Write everything that can be written without training; the rest keeps its random start."""
    field = student.field
    field.aabb.copy_(teacher.field.aabb)
    field.set_occupancy(teacher.field.occupancy.clone())
    theirs = teacher.field.state_blocks()
    done = _coverage(theirs, field, arch)
    fresh = build_field(arch, student.options, aabb=teacher.facts.aabb)
    values = dict(fresh.named_parameters())
    sources = {name: t for block in theirs.values() for name, t in _full_names(teacher.field, block).items()}
    for name, parameter in field.named_parameters():
        with torch.no_grad():
            if name in done.copied:
                parameter.copy_(sources[name])
            elif name in done.mapped and not isinstance(field, VoxelField):
                parameter.copy_(resampled(sources[name], parameter.shape))
            elif name not in done.mapped:
                parameter.copy_(values[name])
    if isinstance(field, VoxelField) and done.mapped:
        bake(teacher, field)
    return done


def bake(teacher: FieldTeacher, voxels: VoxelField) -> None:
    """Fill a volume with the teacher's values at its vertices; no training.

    Colours are looked at in fixed directions and fitted by least squares before the sigmoid. Vertices outside the
    occupied cells (dilated once) get the lowest density.
    """
    low, high = voxels.sigma_clip
    grid = occupancies.dilate(voxels.occupancy)
    axes = [torch.linspace(0, 1, size, device=voxels.volume.device) for size in voxels.volume.shape[:3]]
    u_N3 = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).view(-1, 3)
    inside = occupancies.lookup(grid, u_N3).nonzero()[:, 0]
    dirs = _sphere(max(DIRECTIONS, 2 * voxels.degree**2)).to(u_N3.device)
    fit_KM = torch.linalg.pinv(spherical_harmonics(dirs, voxels.degree))
    with torch.no_grad():
        flat = torch.zeros_like(voxels.volume).flatten(0, 2)
        flat[:, 0] = low
        for rows in inside.split(CHUNK):
            x_N3 = voxels.to_world(u_N3[rows])
            # A feature is the same in every direction: it is asked for once.
            source = teacher.field.block1(x_N3) if teacher.field.has_feature else x_N3
            raw_N = source[:, 0] if teacher.field.has_feature else teacher.field.sigma_raw(x_N3)
            flat[rows, 0] = raw_N.clamp(low, high)
            colours = [teacher.field.colour(source, d.expand(len(rows), 3)) for d in dirs]
            logits_MN3 = torch.logit(torch.stack(colours).clamp(COLOUR_LIMIT, 1 - COLOUR_LIMIT))
            flat[rows, 1:] = torch.einsum("km,mnc->nck", fit_KM, logits_MN3).flatten(1)
        voxels.volume.copy_(flat.view(voxels.volume.shape))


def resampled(grid: Tensor, shape: torch.Size) -> Tensor:
    """A grid [S, ..., C] at another number of samples an axis; corners stay corners."""
    axes = grid.ndim - 1
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[axes]
    moved = grid.movedim(-1, 0)[None]
    return F.interpolate(moved, size=tuple(shape[:-1]), mode=mode, align_corners=True)[0].movedim(0, -1)


def _coverage(theirs: dict[str, dict[str, Tensor]], field: RadianceField, arch: str) -> Coverage:
    """Equal name and shape: copied. Grids of the same kind and width: resampled. Voxels: baked."""
    shapes = {f"{b}/{n}": t.shape for b, block in theirs.items() for n, t in block.items()}
    copied, mapped, new = [], [], []
    for block, tensors in field.state_blocks().items():
        whole = all(shapes.get(f"{block}/{n}") == t.shape for n, t in tensors.items())
        full = _full_names(field, tensors)
        for (short, tensor), name in zip(tensors.items(), full, strict=True):
            other = shapes.get(f"{block}/{short}")
            if whole:
                copied.append(name)
            elif arch == "tensors" or (_grid_like(name) and other is not None and other[-1] == tensor.shape[-1]):
                mapped.append(name)
            else:
                new.append(name)
    return Coverage(copied=tuple(copied), mapped=tuple(mapped), new=tuple(new))


def _grid_like(name: str) -> bool:
    return name.startswith(("planes.", "lines.")) or name == "volume"


def _full_names(field: RadianceField, block: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of a block's tensors in the whole field."""
    names = {id(p): n for n, p in field.named_parameters()}
    return {names[id(t)]: t for t in block.values()}


def _sphere(count: int) -> Tensor:
    """Even directions on the sphere [count, 3] (a Fibonacci spiral)."""
    place = torch.arange(count) + 0.5
    z = 1 - 2 * place / count
    around = torch.pi * (1 + 5**0.5) * place
    ring = (1 - z * z).sqrt()
    return torch.stack((ring * torch.cos(around), ring * torch.sin(around), z), dim=-1)
