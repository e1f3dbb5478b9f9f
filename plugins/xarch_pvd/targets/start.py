"""Initialisation of a student from its teacher: occupancy, blocks of equal shape, resampled grids, baking, low-rank
fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from xarch import Initialisation
from xarch_field import ColourHead, RadianceField, named_tensors
from xarch_field.facts import FieldFacts
from xarch_field.student import FieldStudent
from xarch_field.teacher import FieldTeacher
from xarch_pvd.targets.baking import bake
from xarch_pvd.targets.factor_start import start_factors
from xarch_pvd.targets.grids import resampled
from xarch_pvd.targets.representations import OPTIONS, build_field
from xarch_pvd.targets.representations.factor_fields import FactorField
from xarch_pvd.targets.representations.voxel_field import VoxelField


def planned_start(facts: FieldFacts, student: FieldStudent) -> Initialisation:
    """Return what :func:`start` will do, from the architecture alone."""
    theirs: dict[str, Mapping[str, Tensor]] = {}
    teacher: RadianceField | None = None
    with torch.device("meta"):
        if facts.arch in OPTIONS:
            known = OPTIONS[facts.arch].model_fields
            options = OPTIONS[facts.arch].model_validate({k: v for k, v in facts.options.items() if k in known})
            teacher = build_field(facts.arch, options, aabb=facts.aabb)
            theirs |= teacher.state_blocks()
        if facts.inherits is not None:
            theirs = {name: block for name, block in theirs.items() if name in facts.inherits}
        if facts.feature:
            theirs.setdefault("color_net", named_tensors(ColourHead()))
    return _accounted(*_initialisation(_fitting(theirs, facts, student), student, facts.feature), teacher)


def start(teacher: FieldTeacher, student: FieldStudent) -> Initialisation:
    """Initialise everything that needs no training; the rest keeps its random initialisation."""
    field = student.field
    field.aabb.copy_(teacher.field.aabb)
    field.set_occupancy(teacher.field.occupancy.clone())
    theirs = _fitting(teacher.blocks(field.state_blocks()), teacher.facts, student)
    done, sources = _initialisation(theirs, student, teacher.has_feature)
    fresh = dict(build_field(field.arch, student.options, aabb=teacher.facts.aabb).named_parameters())
    for name, parameter in field.named_parameters():
        given = sources.get(name, fresh[name])
        with torch.no_grad():
            parameter.copy_(given if given.shape == parameter.shape else resampled(given, parameter.shape))
    if isinstance(field, VoxelField) and done.mapped:
        bake(teacher.field, field)
    elif isinstance(field, FactorField) and set(done.mapped) - sources.keys():
        start_factors(teacher, field)
    return _accounted(done, sources, teacher.field)


def _accounted(done: Initialisation, sources: Mapping[str, Tensor], teacher: RadianceField | None) -> Initialisation:
    """Add the names of the teacher's tensors that are read.

    The others are unused on purpose: a student learns what it does not inherit from the teacher's values.
    """
    if teacher is None:
        return done
    names = {id(p): name for name, p in teacher.named_parameters()}
    taken = {own: names.get(id(sources.get(own))) for own in (*done.copied, *done.mapped)}
    read = {own: () if name is None else (name,) for own, name in taken.items()}
    unused = tuple(name for name in teacher.state_dict() if (name,) not in read.values())
    return replace(done, unused=unused, sources=read)


def _fitting(
    theirs: Mapping[str, Mapping[str, Tensor]], facts: FieldFacts, student: FieldStudent
) -> Mapping[str, Mapping[str, Tensor]]:
    """Return the teacher's blocks, except planes and lines divided differently between density and colour."""
    ours = getattr(student.options, "density_rank", None)
    if facts.options.get("density_rank", ours) == ours:
        return theirs
    return {name: block for name, block in theirs.items() if name not in ("factors", "basis")}


def _initialisation(
    theirs: Mapping[str, Mapping[str, Tensor]], student: FieldStudent, feature: bool
) -> tuple[Initialisation, dict[str, Tensor]]:
    """Return the origin of every parameter, and the inherited teacher tensors by student name.

    Blocks of equal names and shapes are copied, grids of equal width resampled. Voxels are baked; planes and lines of
    another kind or width are fitted, with their basis if the teacher has a ``feature``.
    """
    field = student.field
    names = {id(p): n for n, p in field.named_parameters()}
    made = _made(theirs, student, feature)
    sources: dict[str, Tensor] = {}
    copied: list[str] = []
    mapped: list[str] = []
    new: list[str] = []
    for block, tensors in field.state_blocks().items():
        other = theirs.get(block, {})
        full = [names[id(t)] for t in tensors.values()]
        if block in made:
            mapped += full
            continue
        same = _same(tensors, other, slice(None))
        if not same and not (block == "factors" and _resampled(field, tensors, other)):
            new += full
            continue
        (copied if same else mapped).extend(full)
        sources |= {name: other[short] for name, short in zip(full, tensors, strict=True)}
    return Initialisation(copied=tuple(copied), mapped=tuple(mapped), new=tuple(new)), sources


def _made(theirs: Mapping[str, Mapping[str, Tensor]], student: FieldStudent, feature: bool) -> set[str]:
    """Return blocks that are computed from the teacher's values rather than its tensors."""
    field = student.field
    blocks = field.state_blocks()
    if isinstance(field, VoxelField):
        return set() if _same(blocks["volume"], theirs.get("volume", {}), slice(None)) else {"volume"}
    if not isinstance(field, FactorField) or student.options.start == "random":
        return set()
    if _resampled(field, blocks["factors"], theirs.get("factors", {})):
        return set()
    if "encoder" in blocks and _same(blocks["encoder"], theirs.get("encoder", {}), slice(None)):
        # A composition that inherits the teacher's tables needs no planes at the start.
        return set()
    return {"factors", "basis"} if feature else {"factors"}


def _resampled(field: RadianceField, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return isinstance(field, FactorField) and _same(ours, theirs, slice(-1, None))


def _same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], axes: slice) -> bool:
    """Return whether names match, and sizes along ``axes``."""
    return {n: t.shape[axes] for n, t in ours.items()} == {n: t.shape[axes] for n, t in theirs.items()}
