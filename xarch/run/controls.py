"""Controls of a run: built when the student is evaluated, and what the student gains over the best of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from xarch.contracts.control import TO_CONTROL, Control
from xarch.contracts.metric import Evaluation
from xarch.contracts.model import Student
from xarch.errors import PluginError
from xarch.planning.describe import family_of
from xarch.registry.registry import Registry
from xarch.run.sides import RunSides


def controls_of(registry: Registry, sides: RunSides, student: Student) -> Mapping[str, Control]:
    """Return the controls of a student by name: its target's, or else those of its family.

    Raises:
        PluginError: the plugin that gives them failed, or uses the name of another model.
    """
    if sides.viewed is None:
        return {}
    with registry.guard(registry.get("target", sides.target.name), "controls"):
        found: Mapping[str, Control] | None = sides.target.adapter.controls(sides.viewed, student)
    if found is None:
        with registry.attributed("its family's controls"):
            found = family_of(registry, student.family).controls(sides.viewed, student)
    taken = sorted(set(found) & {"student", "teacher", "before training"})
    if taken:
        raise PluginError(f"a control is named {taken[0]!r}, which is another model of the evaluation")
    return found


def compare(found: Evaluation, controls: Mapping[str, Control]) -> None:
    """Add the controls' facts to an evaluation, and the student's figures divided by those of the best control.

    Only figures with a known direction and positive values are compared; the headline comes first.
    """
    names = [name for name in controls if name in found.baselines]
    found.controls = {name: dict(controls[name].facts) for name in names}
    gained: dict[str, float] = {}
    for figure, higher in {found.metric: found.higher_is_better, **found.directions}.items():
        values = [found.baselines[name][figure] for name in names if figure in found.baselines[name]]
        own = found.student.get(figure)
        if not values or own is None:
            continue
        best = max(values) if higher else min(values)
        if best > 0 and math.isfinite(own / best):
            gained[f"{figure}{TO_CONTROL}"] = own / best
    # A metric may give the same mapping in every evaluation.
    found.units = {**found.units, **dict.fromkeys(gained, "× best control")}
    found.gated = {**gained, **found.gated}
