"""Saving a student, and rebuilding it from its folder alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from xarch._version import __version__
from xarch.config.validation import validated
from xarch.contracts.local import sites_of
from xarch.contracts.model import Student, Teacher
from xarch.errors import UsageError
from xarch.files.atomic import new_folder, save_tensors, write_json
from xarch.files.bounded_json import read_json
from xarch.files.header import weights_header
from xarch.files.manifest import seal, verify
from xarch.files.run_dir import CARD
from xarch.planning.describe import family_of
from xarch.planning.resolve import Resolved, resolve_target
from xarch.registry.registry import Registry

FORMAT: Literal[3] = 3


class StudentConfig(BaseModel):
    """Everything except weights needed to rebuild a student."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[3] = FORMAT
    xarch: str
    target: str
    plugin: str = Field(description="that registers the target")
    options: dict[str, Any] = Field(description="of the target")
    family: str
    facts: dict[str, Any] = Field(description="the student's facts, in its family")
    built_from: dict[str, Any] = Field(description="family and facts from which the target builds it")
    decisions: dict[str, Any] = Field(description="decisions of stages about its structure")
    teacher: dict[str, Any] | None = Field(description="ref, title and fingerprint; none without a teacher")
    parameters: int
    sites: list[str] = Field(default_factory=list, description="modules that local stages may train")


def save_student(
    folder: Path,
    student: Student,
    registry: Registry,
    *,
    target: Resolved,
    built_from: dict[str, Any],
    decisions: dict[str, Any],
    teacher: Teacher | None,
    teacher_facts: dict[str, Any] | None,
    processor: Any = None,
) -> None:
    """Write config.json, model.safetensors, the processor's files and their manifest; the folder appears atomically.
    Tensors that are one in the module are stored once; the file's metadata map their further names to the stored one.

    Args:
        built_from: ``{"family", "facts"}`` from which the target builds it.
        teacher: writes the processor's files if ``processor`` is the teacher's.
        teacher_facts: ref, title and fingerprint of the teacher; None without a teacher.
        processor: the student's.
    """
    tensors, tied = _once(student.module.state_dict())
    config = StudentConfig(
        xarch=__version__,
        target=target.name,
        plugin=target.plugin,
        options=target.options.model_dump(mode="json"),
        family=student.family,
        facts=student.facts.to_json(),
        built_from=built_from,
        decisions=decisions,
        teacher=teacher_facts,
        parameters=sum(p.numel() for p in student.module.parameters()),
        sites=list(sites_of(student)),
    )
    with new_folder(folder) as part:
        save_tensors(tensors, part / "model.safetensors", {"format": "pt", **tied})
        with registry.attributed("save its processor"):
            if teacher is not None and processor is teacher.processor():
                teacher.save_processor(str(part))
            elif processor is not None:
                family_of(registry, student.family).save_processor(processor, part)
        write_json(part / "config.json", config.model_dump(mode="json"))
        seal(part, leave_out=(CARD,))


def _once(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors to store, on the CPU, and further name -> stored name of those that are the same tensor."""
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    names: dict[tuple[Any, ...], str] = {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and place in names:
            tied[name] = names[place]
            continue
        names[place] = name
        tensors[name] = tensor.detach().to("cpu").contiguous().clone()
    return tensors, tied


def student_folder(path: Path) -> Path:
    """Return the student folder at ``path``, which may be a run folder that contains it.

    Raises:
        UsageError: there is none.
    """
    for folder in (path / "student", path):
        if (folder / "config.json").is_file():
            return folder
    raise UsageError(f"{path} holds no student: config.json is missing", "pass a run folder, or its student/ folder")


def read_student_config(folder: Path) -> StudentConfig:
    """Read config.json of a student folder.

    Raises:
        UsageError: its format is not the one of this xarch version, or it is damaged.
    """
    data = read_json(folder / "config.json")
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        seen = data.get("format") if isinstance(data, dict) else None
        raise UsageError(f"{folder}/config.json has format {seen!r}, this xarch reads {FORMAT}", "convert again")
    verify(folder, ["config.json"])
    return validated(StudentConfig, data, f"{folder}/config.json: ", "convert again")


def build_student(config: StudentConfig, registry: Registry, device: torch.device) -> tuple[Student, Resolved]:
    """Return the student of a config.json with newly initialised weights (none on ``meta``), and its adapter."""
    name = f"{config.plugin}:{config.target}"
    target = resolve_target(registry, name, config.options)
    family = family_of(registry, config.built_from["family"])
    with registry.guard(registry.get("target", name), "build"):
        facts = family.Facts.from_json(config.built_from["facts"])
        student: Student = target.adapter.build(facts, target.options, config.decisions, device=device)
    return student, target


def load_student(folder: Path, registry: Registry, device: torch.device) -> tuple[Student, Resolved, StudentConfig]:
    """Return (student in eval mode, its adapter, config.json) from a student folder or the run that contains it.

    Raises:
        UsageError: not a student folder, a damaged file, or weights that do not fit its configuration.
    """
    folder = student_folder(folder)
    verify(folder)
    config = read_student_config(folder)
    weights = folder / "model.safetensors"
    # A configuration may claim any size: compared with the file before memory is taken.
    _compare_shapes(build_student(config, registry, torch.device("meta"))[0], weights)
    student, target = build_student(config, registry, torch.device("cpu"))
    try:
        found = load_file(weights)
        found |= {name: found[kept] for name, kept in _tied(weights).items()}
        student.module.load_state_dict(found, strict=True)
    except (RuntimeError, ValueError, SafetensorError) as e:
        raise UsageError(f"{weights} does not fit its config.json: {str(e).splitlines()[0]}") from e
    student.module.to(device).eval().requires_grad_(False)
    return student, target, config


def _compare_shapes(student: Student, weights: Path) -> None:
    """Compare the tensors of a student on ``meta`` with the header of its file.

    Raises:
        UsageError: names or shapes differ.
    """
    wanted = {name: tuple(value.shape) for name, value in student.module.state_dict().items()}
    stored = {name: entry.shape for name, entry in weights_header(weights).tensors.items()}
    stored |= {name: stored[kept] for name, kept in _tied(weights).items()}
    other = sorted(n for n in wanted.keys() | stored.keys() if wanted.get(n) != stored.get(n))
    if other:
        raise UsageError(
            f"{weights} does not fit its config.json: {other[0]} has shape {stored.get(other[0])}, "
            f"wanted {wanted.get(other[0])} ({len(other)} tensors differ)",
            "convert again",
        )


def _tied(weights: Path) -> dict[str, str]:
    """Return name -> stored name of tensors that are stored once under another name."""
    header = weights_header(weights)
    return {n: kept for n, kept in header.metadata.items() if kept in header.tensors and n not in header.tensors}
