"""Source ``run:DIR``: the student of an earlier run becomes a teacher, so conversions chain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from xarch.contracts.adapters import SourceAdapter, SourceInfo
from xarch.contracts.model import Student, Teacher
from xarch.errors import PlanError, UsageError
from xarch.files.atomic import read_json
from xarch.planning.resolve import resolve_target
from xarch.registry.loader import get_registry
from xarch.run.student_io import load_student


class RunSource(SourceAdapter):
    """Reads ``RUN/student`` (or a student folder). The student must offer ``as_teacher``."""

    def describe(self, ref: str, options: BaseModel) -> SourceInfo:
        folder = self._folder(ref)
        config = read_json(folder / "config.json")
        registry = get_registry()
        target = resolve_target(registry, f"{config['plugin']}:{config['target']}", config["options"])
        facts = target.adapter.Facts.from_json(config["facts"])
        student = target.adapter.build(facts, target.options, config["decisions"], device=torch.device("meta"))
        facts = student.facts_as_teacher()
        _refuse_incomplete(ref, student, facts)
        weights = folder / "model.safetensors"
        return SourceInfo(
            family=config["family"],
            facts=facts,
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
        teacher: Teacher = convert(ref=f"run:{ref}", processor=_tokenizer(self._folder(ref)))
        return teacher

    @staticmethod
    def _folder(ref: str) -> Path:
        path = Path(ref)
        for folder in (path / "student", path):
            if (folder / "config.json").is_file():
                return folder
        raise UsageError(f"run:{ref}: there is no student in this folder")


def _refuse_incomplete(ref: str, student: Student, facts: Any) -> None:
    """A teacher gives every tap its family declares; a student whose modules were replaced gives others.

    Raises:
        PlanError: taps are missing or of another layout, so nothing could be matched or copied there.
    """
    own = student.taps()
    other = [n for n, tap in facts.taps().items() if n not in own or own[n].layout != tap.layout]
    if other:
        raise PlanError(
            f"run:{ref} cannot be a teacher: {len(other)} of the family's taps are not as declared, first {other[0]}",
            "a student whose modules were replaced cannot be converted again yet; start from its own teacher",
        )


def _tokenizer(folder: Path) -> Any:
    if not (folder / "tokenizer.json").is_file():
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
