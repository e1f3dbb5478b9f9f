"""Small models of registered families, for the conformance classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from xarch.contracts.family import Family
from xarch.contracts.model import Teacher
from xarch.planning.resolve import resolve_teacher
from xarch.registry.declare import ANY_FAMILY, Spec
from xarch.registry.loader import get_registry


def load_teacher(ref: str, options: Mapping[str, Any] | None = None) -> Teacher:
    """A teacher on the CPU in float32."""
    source = resolve_teacher(get_registry(), ref, options or {}, lambda text: None)
    loaded: Teacher = source.adapter.load(source.ref, source.options, device=torch.device("cpu"), dtype=torch.float32)
    return loaded


def family_named(name: str) -> Family:
    """Return the object of a registered family."""
    assert name, "name the family"
    made: Family = get_registry().create("family", name)
    return made


def family_of(facts: Any) -> Family:
    """Return the family of facts."""
    names = [spec.name for spec in get_registry().specs("family")]
    found = [name for name in names if type(facts) is family_named(name).Facts]
    assert len(found) == 1, f"{type(facts).__name__} is the Facts of {' and '.join(found) or 'no registered family'}"
    return family_named(found[0])


def student_family(spec: Spec) -> Family:
    """Return the family of a target's students, whose data a conversion to it reads: the teacher's unless the target
    says otherwise."""
    return family_named(spec.accepts[0] if spec.produces in ("", ANY_FAMILY) else spec.produces)


def tiny_conversion(family: str, folder: Path) -> dict[str, Any]:
    """Return the values (dotted keys) for a conversion whose student is of this family: a teacher of the family, or,
    where no target converts one, of the family that a target makes such students of, and that target."""
    targets = get_registry().specs("target")
    if any(family in spec.accepts for spec in targets):
        return tiny_configuration(family, folder)
    made = [spec for spec in targets if spec.produces == family]
    assert made, f"no target converts a model of family {family!r} or makes one"
    teacher = {**tiny_configuration(made[0].accepts[0], folder), "student.target": made[0].name}
    return {**teacher, **family_named(family).tiny_run(folder)}


def tiny_configuration(family: str, folder: Path) -> dict[str, Any]:
    """Return the values (dotted keys) for a conversion of a family's tiny teacher, without the target."""
    made = family_named(family)
    return {
        "teacher": made.tiny_teacher(folder),
        **made.tiny_run(folder),
        "runtime.device": "cpu",
        "runtime.threads": 1,
        "runtime.tensorboard": False,
        "export.bench": False,
        "tiny": True,
    }
