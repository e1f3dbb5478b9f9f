"""Quality gates: limits on figures of eval.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from xarch.config.schema import Gate
from xarch.errors import UsageError


@dataclass(frozen=True)
class GateResult:
    """One gate and how it went; ``limit`` is text such as "<= 1.09"."""

    name: str
    value: float
    limit: str
    passed: bool


def check(gated: Mapping[str, float], gates: Mapping[str, Gate]) -> list[GateResult]:
    """Compare the figures an evaluation offers with the limits of a configuration. NaN passes nothing.

    Raises:
        UsageError: a gate names a figure that the evaluation does not give.
    """
    results = []
    for name, gate in gates.items():
        if name not in gated:
            raise UsageError(f"gates.{name}: the evaluation has no such figure", f"figures: {', '.join(sorted(gated))}")
        value = float(gated[name])
        limits = []
        passed = math.isfinite(value)
        if gate.min is not None:
            limits.append(f">= {gate.min:g}")
            passed = passed and value >= gate.min
        if gate.max is not None:
            limits.append(f"<= {gate.max:g}")
            passed = passed and value <= gate.max
        results.append(GateResult(name, value, " and ".join(limits) or "no limit", passed))
    return results
