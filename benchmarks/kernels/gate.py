"""Correctness gate: outputs and gradients are compared with float64 before anything is timed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LIMITS = {"float32": 1e-3, "bfloat16": 3e-2, "float16": 1e-2}
"""Relative norm of the error. float32 results are usually below 1e-5; TF32 products on a GPU are not."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Relative error norms of the result and of each gradient."""

    errors: dict[str, float]
    limit: float

    @property
    def passed(self) -> bool:
        return all(e <= self.limit for e in self.errors.values())

    @property
    def worst(self) -> float:
        """Return the largest error; infinite if one is NaN."""
        return max((e if e == e else float("inf") for e in self.errors.values()), default=0.0)


def compare(found: dict[str, Tensor], truth: dict[str, Tensor], dtype: str) -> Verdict:
    """Compare by name; every name of ``truth`` must be found."""
    errors = {}
    for name, wanted in truth.items():
        scale = torch.linalg.vector_norm(wanted).clamp_min(torch.finfo(torch.float64).tiny)
        errors[name] = float(torch.linalg.vector_norm(found[name].double() - wanted) / scale)
    return Verdict(errors, LIMITS[dtype])
