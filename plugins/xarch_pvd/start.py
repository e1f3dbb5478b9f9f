"""What a student takes from its teacher before training: occupancy, blocks of equal shape, resampled grids, bakes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from xarch import Coverage
from xarch.families.field import RadianceField
from xarch.families.field.facts import FieldFacts
from xarch.families.field.model import FieldStudent, FieldTeacher
from xarch_pvd.baking import bake
from xarch_pvd.representations import OPTIONS, build_field
from xarch_pvd.representations.voxel_field import VoxelField


def planned_start(facts: FieldFacts, student: FieldStudent, arch: str) -> Coverage:
    """What :func:`start` will do, from the architecture alone."""
    theirs: dict[str, dict[str, Tensor]] = {}
    if facts.arch in OPTIONS:
        known = OPTIONS[facts.arch].model_fields
        options = OPTIONS[facts.arch].model_validate({k: v for k, v in facts.options.items() if k in known})
        with torch.device("meta"):
            theirs = build_field(facts.arch, options, aabb=facts.aabb).state_blocks()
        if facts.inherits is not None:
            theirs = {name: block for name, block in theirs.items() if name in facts.inherits}
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
    sources = {
        full: theirs[block][short]
        for block, tensors in field.state_blocks().items()
        for short, full in zip(tensors, _full_names(field, tensors), strict=True)
        if short in theirs.get(block, {})
    }
    for name, parameter in field.named_parameters():
        with torch.no_grad():
            if name in done.copied:
                parameter.copy_(sources[name])
            elif name in done.mapped and not isinstance(field, VoxelField):
                parameter.copy_(resampled(sources[name], parameter.shape))
            elif name not in done.mapped:
                parameter.copy_(values[name])
    if isinstance(field, VoxelField) and done.mapped:
        bake(teacher.field, field)
    return done


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
