"""Source ``run:DIR``: uses the student of an earlier run as teacher, so conversions can be chained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from xarch.contracts.adapters import SourceAdapter, SourceInfo
from xarch.contracts.model import Student, Teacher
from xarch.errors import PlanError
from xarch.files.digest import weights_digest
from xarch.planning.describe import family_of
from xarch.planning.resolve import target_title
from xarch.registry.loader import get_registry
from xarch.run.student_io import StudentConfig, build_student, load_student, read_student_config, student_folder


class RunSource(SourceAdapter):
    """Reads ``RUN/student`` (or a student folder). The student must implement ``as_teacher``."""

    def describe(self, ref: str, options: BaseModel) -> SourceInfo:
        folder = student_folder(Path(ref))
        config = read_student_config(folder)
        student, _ = build_student(config, get_registry(), torch.device("meta"))
        teacher = student.as_teacher(f"run:{ref}", "", None)
        _refuse_incomplete(ref, teacher)
        weights = folder / "model.safetensors"
        origin = f"of {config.teacher['ref']}" if config.teacher else "made without a teacher"
        return SourceInfo(
            family=teacher.family,
            facts=teacher.facts,
            parameters=config.parameters,
            weight_bytes=weights.stat().st_size if weights.exists() else 0,
            title=f"{target_title(get_registry(), config.target, config.options)} student {origin}",
            details={"target": config.target, "decisions": config.decisions, **_licence(config)},
            constants={name: tuple(tensor.shape) for name, tensor in teacher.constants().items()},
            weights=tuple(teacher.weights()),
        )

    def load(self, ref: str, options: BaseModel, *, device: torch.device, dtype: torch.dtype) -> Teacher:
        folder = student_folder(Path(ref))
        student, _, config = load_student(folder, get_registry(), device)
        fingerprint = weights_digest(student.module.state_dict())
        return _as_teacher(student, config, ref, folder, dtype, fingerprint)

    def random(self, ref: str, options: BaseModel, *, device: torch.device, seed: int) -> Teacher:
        folder = student_folder(Path(ref))
        config = read_student_config(folder)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            student, _ = build_student(config, get_registry(), torch.device("cpu"))
        student.module.to(device).eval().requires_grad_(False)
        return _as_teacher(student, config, ref, folder, torch.float32, f"random-{seed}")


def _licence(config: StudentConfig) -> dict[str, str]:
    """Return the licence of the teacher that the student comes from, {} if it states none."""
    licence = (config.teacher or {}).get("licence")
    return {"licence": str(licence)} if licence else {}


def _as_teacher(
    student: Student, config: StudentConfig, ref: str, folder: Path, dtype: torch.dtype, fingerprint: str
) -> Teacher:
    student.module.to(dtype)
    processor: Any = family_of(get_registry(), config.family).load_processor(folder)
    return student.as_teacher(f"run:{ref}", fingerprint, processor)


def _refuse_incomplete(ref: str, teacher: Teacher) -> None:
    """Reject a student whose taps differ from those its facts declare, e.g. after modules were replaced.

    Raises:
        PlanError: taps are missing or have another layout, so nothing could be matched or copied there.
    """
    own, declared = teacher.taps(), teacher.facts.taps()
    other = [n for n, tap in declared.items() if n not in own or own[n].layout != tap.layout]
    if other:
        raise PlanError(
            f"run:{ref} cannot be a teacher: {len(other)} of the family's taps are not as declared, first: {other[0]}",
            "a student whose modules were replaced cannot be converted again; start from its teacher",
        )
