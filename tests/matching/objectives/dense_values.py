"""Taps and values of every kind of dense layout, and objectives over them by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xarch import Batch, MatchContext, Objective, Tap
from xarch.registry.loader import get_registry

SIZES = {"B": 4, "N": 4, "R": 4, "L": 5, "T": 5, "D": 6, "C": 6, "K": 6, "H": 2, "W": 3, "E": 6, "F": 6}
LAYOUTS = ("BK", "BLD", "BTD", "BCHW", "BLHE", "BCL", "NF", "RC")


def tap(layout: str, name: str = "tap", **shape: int) -> Tap:
    return Tap(name, "hidden", layout, shape or {letter: SIZES[letter] for letter in layout[1:]})


def value(layout: str, seed: int = 0, *, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn([SIZES[letter] for letter in layout], generator=generator, dtype=dtype)


def batch(samples: int = 4) -> Batch:
    return Batch({"x": torch.zeros(samples, 1)}, samples)


def objective(
    name: str, student: Any = "BLD", teacher: Any = None, context: MatchContext | None = None, **options: Any
) -> Objective:
    """``student`` and ``teacher`` are layouts or declarations; the right side has the student's layout by default."""
    left = tap(student) if isinstance(student, str) else student
    right = tap(teacher or student) if isinstance(teacher or student, str) else teacher
    registry = get_registry()
    layout = left.layout if isinstance(left, Tap) else next(iter(left.values())).layout
    kind: type[Objective] = registry.resolve(registry.get("objective", name, layout))
    return kind(left, right, kind.Options.model_validate(options), context or MatchContext("m"))


def loss(found: Objective, student: Any, teacher: Any, mask: Tensor | None = None) -> Tensor:
    """What the engine minimises: sum of losses over sum of weights."""
    own = batch(len(next(iter(student.values())) if isinstance(student, dict) else student))
    return found(student, teacher, own, mask=mask).sum() / found.weight(own, teacher, mask=mask).sum()
