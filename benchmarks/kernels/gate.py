"""Correctness gate: outputs and gradients are compared with float64 before anything is timed.

Our own backends must be as precise as the plain-PyTorch form, up to a factor, in every token and head: a state that
decays 0.1 % too fast, or one wrong token among thousands, is 10 to 10,000 times above the error of right results.
Rivals have the benefit of the doubt, since nothing of ours looks better by letting one in: whole tensors, a wide limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from xarch.kernels.selfcheck import row_error

FACTOR = 10
"""A result may have so many times the error of the plain-PyTorch form on the same inputs in the same dtype."""
LEAST = {"float32": 1e-6, "bfloat16": 4e-3, "float16": 5e-4}
"""Limits are not below this: a few roundings of the result."""
MOST = {"float32": 1e-3, "bfloat16": 3e-2, "float16": 1e-2}
"""Limits are not above this, and this is the limit of rivals. TF32 products on a GPU need it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Relative errors of the result and of each gradient, and what they may be."""

    errors: dict[str, float]
    limits: dict[str, float]

    @property
    def passed(self) -> bool:
        """False also if an error is NaN."""
        return all(e <= self.limits[name] for name, e in self.errors.items())


def limits_of(plain: Mapping[str, float], dtype: str) -> dict[str, float]:
    """Limits by name from the errors of the plain-PyTorch form."""
    return {name: min(max(FACTOR * error, LEAST[dtype]), MOST[dtype]) for name, error in plain.items()}


def row_errors(found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, float]:
    """The worst row of each tensor by name; every name of ``truth`` must be found."""
    return {name: row_error(found[name], wanted) for name, wanted in truth.items()}


def compare(found: Mapping[str, Tensor], truth: Mapping[str, Tensor], limits: Mapping[str, float]) -> Verdict:
    """Judge one of ours, row by row."""
    return Verdict(row_errors(found, truth), dict(limits))


def compare_rival(found: Mapping[str, Tensor], truth: Mapping[str, Tensor], dtype: str) -> Verdict:
    """Judge a rival, by the norms of whole tensors."""
    errors = {}
    for name, wanted in truth.items():
        scale = torch.linalg.vector_norm(wanted).clamp_min(torch.finfo(torch.float64).tiny)
        errors[name] = float(torch.linalg.vector_norm(found[name].double() - wanted) / scale)
    return Verdict(errors, dict.fromkeys(errors, MOST[dtype]))
