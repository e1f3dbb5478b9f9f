"""Graphs of an acm student: its gates with all or only the chosen learners, or a fixed number of them per module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

from torch import nn

from xarch import ExportGraph, PlanError, Profile, Student, rebuilder, validated
from xarch_acm.budget_input import with_budget
from xarch_acm.cut import DynamicModule, FilledModule, StaticModule
from xarch_acm.module import AdaptiveModule, Point
from xarch_acm.options import AcmExport
from xarch_acm.sharing import sharing
from xarch_acm.student import BUCKETED, GATED, STATIC, AcmStudent

NEEDED = ("NonZero", "ScatterND", "ArgMax")
"""Operators of a graph that runs only the chosen learners."""


def rebuilt(student: AcmStudent, form: Callable[[str, AdaptiveModule], nn.Module]) -> Student:
    """Return the model around the modules with other forms of them; everything else shares the student's weights."""
    places = tuple(f"{path}." for path in student.adaptive)
    shared = {n: t for n, t in student.module.state_dict().items() if not n.startswith(places)}

    def change(model: Student) -> None:
        for path, module in student.adaptive.items():
            parent, _, leaf = path.rpartition(".")
            setattr(model.module.get_submodule(parent), leaf, form(path, module))

    return sharing(student.facts, shared, next(iter(student.module.parameters())).device, change)


def static_model(student: AcmStudent, name: str) -> Student:
    """Return the model at a static operating point."""
    fixed = learners_of(student, name)
    return rebuilt(student, lambda path, module: StaticModule(module, fixed[path]))


def learners_of(student: AcmStudent, name: str) -> dict[str, int]:
    """Return path -> learners of a static operating point."""
    return {path: int(point.fixed or 0) for path, point in student.points(name).items()}


def masked_model(student: AcmStudent, name: str) -> Student:
    """Return the model with gates, at a gated operating point; "" for gates as they were trained."""
    points = points_of(student, name)
    return rebuilt(student, lambda path, module: _aimed(module, points[path]))


def dynamic_model(student: AcmStudent, name: str) -> Student:
    """Return the same model, running only the chosen learners."""
    points = points_of(student, name)
    return rebuilt(student, lambda path, module: DynamicModule(module, points[path]))


def points_of(student: AcmStudent, name: str) -> dict[str, Point]:
    """Return how every module is run at an operating point; "" for the student itself."""
    return dict(student.points(name)) if name else {path: module.point for path, module in student.adaptive.items()}


def bucketed_model(student: AcmStudent, name: str) -> Student:
    """Return the model whose learners have room for fixed shares of the positions."""
    points = student.points(name)
    return rebuilt(student, lambda path, module: FilledModule(module, points[path]))


def _aimed(module: AdaptiveModule, point: Point) -> AdaptiveModule:
    made = copy(module)
    made.point = point
    return made


def exported_model(student: AcmStudent, variant: str) -> Student:
    """Return a model that computes what the graphs of a variant do; "" for gates as they were trained."""
    static = variant.startswith(f"{STATIC}-")
    return static_model(student, variant) if static else masked_model(student, variant)


def acm_graphs(student: AcmStudent, profile: Profile, options: AcmExport) -> list[ExportGraph]:
    """Return the graphs of the model around the modules, in the mode that the options choose; if asked, also those of
    the other operating points.

    Raises:
        PlanError: the student has no such budget, or the profile no such mode.
    """
    mode = _mode(student, profile, options.mode, budget_input=options.budget_input)
    kind = {"static_budget": STATIC, "bucketed": BUCKETED}.get(mode, STATIC if student.ungated else GATED)
    if mode in ("dynamic", "masked") and options.budget is None:
        variant = ""
    else:
        variant = _variant(student, kind, options.budget or student.options.budget, exact=options.budget is not None)
    graphs = _graphs(student, profile, options, mode, variant)
    if not options.every_point:
        return graphs
    modes = {STATIC: "static_budget", BUCKETED: "bucketed"}
    if kind == GATED or (_free(profile) and not student.ungated):
        modes[GATED] = mode if kind == GATED else "dynamic"
    for name in student.names():
        other = modes.get(name.partition("-")[0])
        if other is not None and name != variant:
            further = _graphs(student, profile, options.model_copy(update={"budget_input": False}), other, name)
            graphs += [replace(graph, name=f"{graph.name}-{name}") for graph in further]
    return graphs


def _graphs(student: AcmStudent, profile: Profile, options: AcmExport, mode: str, variant: str) -> list[ExportGraph]:
    """Return the graphs of an operating point; "" for gates as they were trained."""
    facts: dict[str, Any] = {"mode": mode, "modules": {p: m.learners for p, m in student.adaptive.items()}}
    if mode == "static_budget":
        model, facts["learners"] = static_model(student, variant), learners_of(student, variant)
        facts["executed"] = round(executed(student, facts["learners"]), 4)
    elif mode == "bucketed":
        model = masked_model(student, variant) if _is_plan(student) else bucketed_model(student, variant)
    else:
        form = masked_model if mode == "masked" or _is_plan(student) else dynamic_model
        model = form(student, variant)
    adapter, _ = rebuilder(student.facts)
    given = validated(adapter.ExportOptions, options.graph, "export.options.graph")
    graphs = adapter.export_graphs(model, profile, given)
    if options.budget_input:
        facts["budgets"] = student.shares()
        wanted = options.budget or student.options.budget
        graphs = [with_budget(graph, student, model.module, wanted, mode) for graph in graphs]
    return [replace(graph, variant=variant, metadata={**graph.metadata, "acm": facts}) for graph in graphs]


def _mode(student: AcmStudent, profile: Profile, wanted: str, *, budget_input: bool) -> str:
    """Return the mode of the graphs.

    Raises:
        PlanError: the student or the profile does not have it.
    """
    hint = "--set export.options.mode=static_budget, with a fixed number of learners per module"
    if student.options.gates in ("experts", "exits"):
        what = f"export: {student.options.gates} are a rival to measure, and have no graph"
        raise PlanError(what, "--set export.profiles=[]")
    free = _free(profile)
    if wanted == "auto":
        return "dynamic" if free and not student.ungated else "static_budget"
    if wanted != "static_budget" and student.ungated and not (wanted == "masked" and budget_input):
        raise PlanError(f"export.options.mode: {wanted} needs gates, and this student has none", hint)
    if wanted == "bucketed" and BUCKETED not in student.kinds():
        raise PlanError("export.options.mode: bucketed gates compare a position with later ones, also of text", hint)
    if wanted == "dynamic" and not free:
        raise PlanError(
            f"export {profile.name}: in a dynamic graph the gates choose how many positions a learner runs on, so "
            f"shapes depend on values ({', '.join(NEEDED)}), which this profile does not support",
            f"{hint}, or mode=bucketed, where every learner has room for a fixed share of positions",
        )
    return wanted


def _free(profile: Profile) -> bool:
    """Return whether shapes of a graph may depend on values."""
    return not profile.static and profile.allows(*NEEDED)


def _is_plan(student: AcmStudent) -> bool:
    """Return whether the student has no values, from which the rows of a learner follow; the graphs of its masked form
    have the same names and inputs."""
    return any(p.is_meta for p in student.module.parameters())


def executed(student: AcmStudent, learners: Mapping[str, int]) -> float:
    """Return the share of all learners' multiply-adds that so many learners take, at equal numbers of positions."""
    ran = sum(k * student.adaptive[path].cost for path, k in learners.items())
    return float(ran / sum(m.learners * m.cost for m in student.adaptive.values()))


def _variant(student: AcmStudent, kind: str, wanted: float, *, exact: bool) -> str:
    shares: Sequence[float] = student.options.budgets
    nearest = min(shares, key=lambda share: abs(share - wanted), default=None)
    if nearest is None or (exact and abs(nearest - wanted) > 1e-9):
        known = ", ".join(f"{share:g}" for share in shares) or "none"
        raise PlanError(
            f"export.options.budget: this student has no operating point at {wanted:g}; its budgets are {known}",
            "choose one of them, or convert with student.options.budgets",
        )
    return f"{kind}-{round(100 * nearest)}"
