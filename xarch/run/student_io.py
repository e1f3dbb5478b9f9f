"""Saving a student and building it again from its folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from xarch._version import __version__
from xarch.contracts.adapters import TargetAdapter
from xarch.contracts.model import Student, Teacher
from xarch.errors import UsageError
from xarch.files.atomic import new_folder, read_json, write_json
from xarch.planning.resolve import resolve_target
from xarch.registry.registry import Registry

FORMAT = 1


def save_student(
    folder: Path,
    student: Student,
    *,
    target: str,
    plugin: str,
    options: dict[str, Any],
    decisions: dict[str, Any],
    teacher: Teacher | None,
    teacher_facts: dict[str, Any],
) -> None:
    """Write config.json, model.safetensors and the processor's files; the folder appears whole."""
    tensors = {k: v.detach().to("cpu").contiguous().clone() for k, v in student.module.state_dict().items()}
    with new_folder(folder) as part:
        save_file(tensors, part / "model.safetensors", {"format": "pt"})
        if teacher is not None:
            teacher.save_processor(str(part))
        write_json(
            part / "config.json",
            {
                "format": FORMAT,
                "xarch": __version__,
                "target": target,
                "plugin": plugin,
                "family": student.family,
                "facts": student.facts.to_json(),
                "options": options,
                "decisions": decisions,
                "teacher": teacher_facts,
                "parameters": sum(p.numel() for p in student.module.parameters()),
            },
        )


def load_student(
    folder: Path, registry: Registry, device: torch.device
) -> tuple[Student, TargetAdapter, dict[str, Any]]:
    """(student in eval mode, its adapter, config.json) from a student folder or the run around it.

    Raises:
        UsageError: not a student folder, or the weights do not fit its configuration.
    """
    folder = folder / "student" if (folder / "student" / "config.json").is_file() else folder
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder} holds no student: there is no config.json")
    config = read_json(folder / "config.json")
    if config.get("format") != FORMAT:
        raise UsageError(f"{folder}/config.json has format {config.get('format')!r}, this xarch reads {FORMAT}")
    target = resolve_target(registry, f"{config['plugin']}:{config['target']}", config["options"])
    adapter: TargetAdapter = target.adapter
    spec = registry.get("target", f"{config['plugin']}:{config['target']}")
    with registry.guard(spec, "build"):
        facts = adapter.Facts.from_json(config["facts"])
        student = adapter.build(facts, target.options, config["decisions"], device=torch.device("cpu"))
    try:
        weights = load_file(folder / "model.safetensors")
        student.module.load_state_dict(weights, strict=True)
    except (OSError, RuntimeError, ValueError) as e:
        raise UsageError(f"{folder}/model.safetensors does not fit its config.json: {str(e).splitlines()[0]}") from e
    student.module.to(device).eval().requires_grad_(False)
    return student, adapter, config
