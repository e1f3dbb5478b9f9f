"""The hooks a plugin may implement. An implementation may take any subset of a hook's arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import click
    from pydantic import BaseModel

    from xarch.contracts.adapters import TargetAdapter
    from xarch.contracts.export import ExportGraph, Profile
    from xarch.contracts.model import Student
    from xarch.contracts.stage import StageOutcome
    from xarch.planning.plan import Plan, PlannedStage
    from xarch.registry.declare import Declarations

PROJECT = "xarch"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def xarch_register(registry: Declarations) -> None:
    """Declare sources, targets, objectives, stages, recipes, data, exports, metrics and named teachers.

    Runs whenever xarch starts, so import nothing heavy here: every declaration names a
    ``"module:attribute"`` that is imported on first use.
    """


@hookspec
def xarch_modify_plan(plan: Plan) -> None:
    """Change the plan in place before it is shown, or veto it by raising ``PlanError(what, hint)``."""


@hookspec
def xarch_stage_started(run: Any, stage: PlannedStage) -> None:
    """Called before a stage runs. ``run`` is the run folder (``run.path`` is its path)."""


@hookspec
def xarch_stage_finished(run: Any, stage: PlannedStage, outcome: StageOutcome) -> None:
    """Called when a stage is done and its checkpoint is written."""


@hookspec
def xarch_step_finished(run: Any, stage: PlannedStage, step: int, metrics: Mapping[str, float]) -> None:
    """Called when an optimiser step is logged, on rank 0 only, at the stage's logging interval."""


@hookspec(firstresult=True)
def xarch_export(student: Student, profile: Profile, graphs: Sequence[ExportGraph]) -> Sequence[ExportGraph] | None:
    """Return replacements for the graphs of a target for a profile, or None to keep them.

    The first result wins. Checker and parity gate run on what was returned: each graph is compared
    with the student's taps as its ``reads`` and ``gives`` say, and by the target's own cases, so names, inputs and
    outputs must stay.
    """


@hookspec(firstresult=True)
def xarch_rebuild(facts: Any) -> tuple[TargetAdapter, BaseModel] | None:
    """Return a target whose students have exactly the architecture of a model with these facts, and its options; None
    for facts of other libraries.

    ``xarch.rebuilder`` asks for it, for targets that change parts of any model. The target's ``initialise`` copies
    every weight, and its students say in ``Student.replaceable`` which parts may change.
    """


@hookspec
def xarch_commands(group: click.Group) -> None:
    """Add click commands to ``group``; they appear as ``xarch PLUGIN COMMAND``."""
