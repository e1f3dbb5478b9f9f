"""Targets ``hash``, ``mlp``, ``vm``, ``cp``, ``hash+vm`` and ``tensors``: the same scene in another representation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import BaseModel

from xarch import Batch, ExportGraph, Initialisation, ParityCase, PlanError, Profile, Student, TargetAdapter, Teacher
from xarch_field.facts import FieldFacts
from xarch_field.student import FieldStudent
from xarch_field.teacher import FieldTeacher
from xarch_pvd import USUAL
from xarch_pvd.export.calibration import occupied_points
from xarch_pvd.export.encoded_graph import encoded_parity
from xarch_pvd.export.graphs import FieldExport, field_graphs, teacher_points
from xarch_pvd.export.parity import field_parity, thinned
from xarch_pvd.targets.representations import OPTIONS, build_field
from xarch_pvd.targets.start import planned_start, start

UNSEEN = {"preset", "start"}
"""Options that have no effect on a trained field."""


class FieldTarget(TargetAdapter):
    """Builds, initialises and exports students of one representation."""

    ExportOptions = FieldExport

    arch: ClassVar[str]

    def build(
        self, facts: FieldFacts, options: BaseModel, decisions: Mapping[str, Any], *, device: torch.device
    ) -> FieldStudent:
        """Build an untrained student over the teacher's box.

        Raises:
            PlanError: the teacher's warp is unknown.
        """
        cells = facts.occupancy
        with torch.device(device):
            field = build_field(
                self.arch,
                options,
                aabb=facts.aabb,
                warp=facts.warp,
                warp_parameters=facts.warp_parameters,
                sigma_clip=facts.sigma_clip,
                background=facts.background,
                occupancy=torch.ones(cells, cells, cells, dtype=torch.bool, device=device),
            )
        return FieldStudent(field.to(device), facts, options)

    def initialisation(self, facts: FieldFacts, student: Student) -> Initialisation:
        return planned_start(facts, _own(student))

    def initialise(self, student: Student, teacher: Teacher) -> Initialisation:
        if not isinstance(teacher, FieldTeacher):
            raise PlanError(
                f"target {self.arch} converts radiance fields, but the teacher is a {type(teacher).__name__}"
            )
        return start(teacher, _own(student))

    def recipe(self, facts: FieldFacts, options: BaseModel) -> str:
        if getattr(options, "start", "") == "random":
            return "pvd"
        return "pvd-copy" if self._same_function(facts, options) else USUAL.get(self.arch, "pvd")

    def _same_function(self, facts: FieldFacts, options: BaseModel) -> bool:
        """Return whether a copied student computes the same function as the teacher.

        Equal shapes are not sufficient: level resolutions may differ, and an edited field is more than the blocks that
        a student inherits.
        """
        if facts.arch != self.arch or facts.edits or facts.inherits is not None:
            return False
        known = {k: v for k, v in facts.options.items() if k in OPTIONS[self.arch].model_fields}
        theirs = OPTIONS[self.arch].model_validate(known)
        if theirs.model_dump(exclude=UNSEEN) != options.model_dump(exclude=UNSEEN):
            return False
        done = self.initialisation(facts, self.build(facts, options, {}, device=torch.device("meta")))
        return not done.mapped and not done.new

    def export_graphs(self, student: Student, profile: Profile, options: Any) -> Sequence[ExportGraph]:
        return field_graphs(_own(student), profile, options)

    def teacher_graphs(self, teacher: Teacher, profile: Profile, options: Any) -> Sequence[ExportGraph]:
        return teacher_points(teacher, profile, options) if isinstance(teacher, FieldTeacher) else ()

    def parity_cases(
        self, student: Student, graphs: Sequence[ExportGraph], batches: Sequence[Batch], profile: Profile
    ) -> Iterable[ParityCase]:
        if graphs[0].name == "encoded":
            return encoded_parity(_own(student), graphs[0], thinned(batches[0]), profile)
        return field_parity(_own(student), graphs, batches, profile)

    def calibration_cases(
        self, student: Student, graphs: Sequence[ExportGraph], batches: Sequence[Batch], profile: Profile
    ) -> Iterable[ParityCase]:
        return occupied_points(_own(student), graphs[0])


class HashTarget(FieldTarget):
    """Multi-resolution hash tables (Instant-NGP, arXiv 2201.05989)."""

    arch = "hash"
    Options = OPTIONS["hash"]


class MLPTarget(FieldTarget):
    """MLP on a sinusoidal encoding (NeRF, arXiv 2003.08934)."""

    arch = "mlp"
    Options = OPTIONS["mlp"]


class VMTarget(FieldTarget):
    """Planes times lines (TensoRF VM, arXiv 2203.09517)."""

    arch = "vm"
    Options = OPTIONS["vm"]


class CPTarget(FieldTarget):
    """Products of three lines (TensoRF CP, arXiv 2203.09517)."""

    arch = "cp"
    Options = OPTIONS["cp"]


class HashVMTarget(FieldTarget):
    """Sum of hash tables and planes times lines."""

    arch = "hash+vm"
    Options = OPTIONS["hash+vm"]


class VoxelTarget(FieldTarget):
    """Dense voxels of log-density and spherical harmonics (Plenoxels, arXiv 2112.05131)."""

    arch = "tensors"
    Options = OPTIONS["tensors"]


def _own(student: Student) -> FieldStudent:
    if not isinstance(student, FieldStudent):
        raise PlanError(f"this target did not build the student, a {type(student).__name__}")
    return student


__all__ = ["CPTarget", "FieldTarget", "HashTarget", "HashVMTarget", "MLPTarget", "VMTarget", "VoxelTarget"]
