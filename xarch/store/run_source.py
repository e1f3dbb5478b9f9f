"""Source ``run:DIR``: the student of an earlier run becomes a teacher, so conversions chain."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import BaseModel

from xarch.contracts.adapters import SourceAdapter, SourceInfo
from xarch.contracts.model import Teacher
from xarch.errors import PlanError, UsageError
from xarch.plugins.loader import get_registry
from xarch.store.atomic import read_json
from xarch.store.student_io import load_student


class RunSource(SourceAdapter):
    """Reads ``RUN/student`` (or a student folder). The student must offer ``as_teacher``."""

    def describe(self, ref: str, options: BaseModel) -> SourceInfo:
        folder = self._folder(ref)
        config = read_json(folder / "config.json")
        registry = get_registry()
        adapter = registry.create("target", f"{config['plugin']}:{config['target']}")
        weights = folder / "model.safetensors"
        return SourceInfo(
            family=config["family"],
            facts=adapter.Facts.from_json(config["facts"]),
            parameters=config["parameters"],
            weight_bytes=weights.stat().st_size if weights.exists() else 0,
            title=f"{config['target']} student of {config['teacher']['ref']}",
            details={"target": config["target"], "decisions": config["decisions"]},
        )

    def load(self, ref: str, options: BaseModel, *, device: torch.device, dtype: torch.dtype) -> Teacher:
        student, _, _ = load_student(self._folder(ref), get_registry(), device)
        convert = getattr(student, "as_teacher", None)
        if convert is None:
            raise PlanError(f"the student in {ref} cannot be a teacher: {type(student).__name__} has no as_teacher")
        student.module.to(dtype)
        teacher: Teacher = convert(ref=f"run:{ref}")
        return teacher

    @staticmethod
    def _folder(ref: str) -> Path:
        path = Path(ref)
        for folder in (path / "student", path):
            if (folder / "config.json").is_file():
                return folder
        raise UsageError(f"run:{ref}: there is no student in this folder")
