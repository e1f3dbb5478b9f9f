"""What the conformance kit takes from a family: a small teacher, input for it, and a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from xarch.contracts.batch import Batch
from xarch.contracts.family import Family
from xarch.contracts.model import Teacher
from xarch.planning.describe import family_of
from xarch.planning.resolve import resolve_teacher
from xarch.registry.loader import get_registry

QUIET = {
    "runtime.device": "cpu",
    "runtime.threads": 1,
    "runtime.tensorboard": False,
    "export.bench": False,
    "tiny": True,
}
"""Settings of every run of the kit."""


def family_read_by(target: str) -> Family:
    """The first family whose teachers a target accepts."""
    registry = get_registry()
    return family_of(registry, registry.get("target", target).accepts[0])


def load_teacher(ref: str) -> Teacher:
    """A teacher by its reference, on the CPU in float32."""
    source = resolve_teacher(get_registry(), ref, {}, lambda text: None)
    loaded: Teacher = source.adapter.load(source.ref, source.options, device=torch.device("cpu"), dtype=torch.float32)
    return loaded


def example(model: Any) -> Batch:
    """Input of a model, from its family."""
    batch: Batch = family_of(get_registry(), model.family).example_batch(model.facts)
    return batch


def tiny_configuration(family: Family, folder: Path, teacher: str, target: str) -> dict[str, Any]:
    """Values of a tiny conversion, dotted keys."""
    return {"teacher": teacher, "student.target": target, **family.tiny_run(folder), **QUIET}
