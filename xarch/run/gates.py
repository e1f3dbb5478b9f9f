"""Quality gates: limits that a student must meet before it may be exported."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xarch.config.schema import Gate, RunConfig
from xarch.errors import UsageError

EXPORTS = "exports."
"""Prefix of gate names for figures of exported files."""


@dataclass(frozen=True, slots=True)
class GateResult:
    """Result of comparing one figure with its limit.

    Attributes:
        name: name of the figure.
        value: measured value.
        limit: the limit in words, e.g. "<= 1.1".
        passed: whether the limit is met; NaN never passes.
    """

    name: str
    value: float
    limit: str
    passed: bool


def gateable(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Return every figure of eval.json that may have a gate: the student's, those comparing it with its teacher, and
    those of its operating points and exported files as ``variants.NAME.FIGURE`` and ``exports.PROFILE.FIGURE``."""
    own = {
        f"{kind}.{name}.{key}": value
        for kind in ("variants", "exports")
        for name, figures in evaluation.get(kind, {}).items()
        for key, value in figures.items()
    }
    return {**evaluation["student"], **evaluation["gated"], **own}


def before_export(gates: Mapping[str, Gate]) -> dict[str, Gate]:
    """Return the gates that a student must pass before export: all but those of exported files."""
    return {name: gate for name, gate in gates.items() if not name.startswith(EXPORTS)}


def check_export_gates(config: RunConfig) -> None:
    """Check that every gate on an exported file refers to a planned export.

    Raises:
        UsageError: exports are not evaluated, or that profile is not exported.
    """
    known = [f"{EXPORTS}{profile}." for profile in config.export.profiles] if config.evaluate.exports else []
    for name in config.gates:
        if name.startswith(EXPORTS) and not name.startswith(tuple(known)):
            wanted = "set evaluate.exports=true" if not config.evaluate.exports else f"one of {', '.join(known)}FIGURE"
            raise UsageError(f"gates.{name}: this figure will not be measured", wanted)


def check(gated: Mapping[str, float], gates: Mapping[str, Gate]) -> list[GateResult]:
    """Compare every gate with its figure (see :func:`gateable`), in the order of the gates.

    Raises:
        UsageError: a gate names a figure that was not measured.
    """
    return [_result(name, gated, gate) for name, gate in gates.items()]


def _result(name: str, gated: Mapping[str, float], gate: Gate) -> GateResult:
    if name not in gated:
        near = difflib.get_close_matches(name, gated, n=1)
        raise UsageError(
            f"gates.{name}: no such figure" + (f"; did you mean {near[0]!r}?" if near else ""),
            f"available figures: {', '.join(sorted(gated)) or 'none'}",
        )
    value = float(gated[name])
    above = gate.min is None or value >= gate.min
    below = gate.max is None or value <= gate.max
    return GateResult(name, value, describe(gate), above and below and not math.isnan(value))


def describe(gate: Gate) -> str:
    """Return a limit as text."""
    parts = [f">= {gate.min:g}"] if gate.min is not None else []
    parts += [f"<= {gate.max:g}"] if gate.max is not None else []
    return " and ".join(parts) or "any number"


def longer(config: RunConfig) -> str:
    """Return the setting that doubles the training of a run."""
    for name, stage in reversed(config.stages.items()):
        if stage.epochs is not None:
            return f"stages.{name}.epochs={2 * stage.epochs:g}"
        if stage.units:
            return f"stages.{name}.units={2 * stage.units}"
        if stage.share:
            break
    return f"budget={2 * config.budget}"
