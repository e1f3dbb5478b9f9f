"""Small models of registered families, for the conformance classes."""

from __future__ import annotations

from typing import Any

import torch

from xarch.contracts.model import Teacher
from xarch.planning.resolve import resolve_teacher
from xarch.registry.loader import get_registry


def load_teacher(ref: str, options: Any = None) -> Teacher:
    """A teacher on the CPU in float32."""
    source = resolve_teacher(get_registry(), ref, options or {}, lambda text: None)
    loaded: Teacher = source.adapter.load(source.ref, source.options, device=torch.device("cpu"), dtype=torch.float32)
    return loaded


def family_of(name: str) -> Any:
    """The object of a registered family."""
    assert name, "name the family"
    return get_registry().create("family", name)
