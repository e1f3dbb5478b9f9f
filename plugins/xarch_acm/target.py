"""Target ``acm``: the teacher's own architecture, with adaptive computation modules in place of some of its parts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import BaseModel

from xarch import (
    Batch,
    Control,
    ExportGraph,
    Initialisation,
    ParityCase,
    PlanError,
    Profile,
    Student,
    Tap,
    TapModel,
    TargetAdapter,
    Teacher,
    rebuilder,
    validated,
)
from xarch_acm.budget_input import budget_cases
from xarch_acm.controls import name_of, truncated
from xarch_acm.experts import ExpertModule, Grouper
from xarch_acm.export import acm_graphs, exported_model
from xarch_acm.learners import chosen, factors, left_out, renamed
from xarch_acm.options import AcmExport, AcmOptions
from xarch_acm.sharing import plain, sharing
from xarch_acm.sort import Sorter
from xarch_acm.student import AcmStudent
from xarch_acm.view import PartsTeacher, part_taps

MEASURED = 500_000_000
"""Most parameters of a model whose projections the plan measures; of a larger one the stage `sort` tells."""
SHOWN = 16
"""Most projections that the plan measures."""


class AcmTarget(TargetAdapter):
    """Serves every family whose models a plugin can rebuild from their facts, see ``xarch.rebuilder``."""

    Options = AcmOptions
    ExportOptions = AcmExport

    def build(
        self, facts: Any, options: BaseModel, decisions: Mapping[str, Any], *, device: torch.device
    ) -> AcmStudent:
        """Build the model and replace its parts.

        Raises:
            PlanError: nobody can rebuild it, or it has no such parts.
        """
        student = AcmStudent(plain(facts, device), cast(AcmOptions, options))
        student.decide(decisions)
        return student

    def initialisation(self, facts: Any, student: Student) -> Initialisation:
        acm, copies = own(student), _copies(facts)
        copied: list[str] = []
        mapped: list[str] = []
        sources: dict[str, tuple[str, ...]] = {}
        for name, theirs in copies.items():
            part = next((p for p in acm.parts if name.startswith(f"{p.path}.")), None)
            names = (name,) if part is None else renamed(part, name)
            (copied if len(names) == 1 else mapped).extend(names)
            sources |= {n: (theirs,) for n in names if theirs != n}
        taken = {*copied, *mapped}
        new = [n for n in acm.module.state_dict() if n not in taken]
        return Initialisation(tuple(copied), tuple(mapped), tuple(new), sources=sources)

    @torch.no_grad()
    def initialise(self, student: Student, teacher: Teacher) -> Initialisation:
        """Copy everything; projections become the nearest product of two layers."""
        acm, weights = own(student), teacher.weights()
        planned, state = self.initialisation(teacher.facts, student), acm.module.state_dict()
        sources = planned.sources or {}
        for name in planned.copied:
            state[name].copy_(weights[sources.get(name, (name,))[0]])
        for part in (p for p in acm.parts if not p.out):
            into, out = (state[name] for name in renamed(part, f"{part.path}.weight"))
            [theirs] = sources[f"{part.path}.out.weight"]
            for target, value in zip((into, out), factors(weights[theirs], into.shape[0]), strict=True):
                target.copy_(value)
        return planned

    def forecast(self, student: Student, load: Callable[[], Teacher]) -> Mapping[str, str]:
        """Return how much of the projections' weights their products of two layers do not hold."""
        acm = own(student)
        places = [part.path for part in acm.parts if not part.out]
        if not places or sum(p.numel() for p in acm.module.parameters()) > MEASURED:
            return {}
        shown = [places[i * len(places) // SHOWN] for i in range(SHOWN)] if len(places) > SHOWN else places
        weights, copies = load().weights(), _copies(student.facts)
        lost = {path: left_out(weights[copies[f"{path}.weight"]], acm.adaptive[path].units) for path in shown}
        worst = max(lost, key=lost.__getitem__)
        mean = 100 * sum(lost.values()) / len(lost)
        said = f"{mean:.2g} % of the squared weights of projections are lost to it on average"
        which = "" if len(places) == len(shown) else f"; {len(shown)} of {len(places)} measured"
        return {"rank": f"{said}, {100 * lost[worst]:.2g} % at {worst}{which}"}

    def view(self, teacher: Teacher) -> Teacher:
        """Return the teacher with the inputs and outputs of all parts that may be replaced as taps."""
        weights = teacher.weights()
        tensors = {name: weights[theirs] for name, theirs in _copies(teacher.facts).items()}
        model = sharing(teacher.facts, tensors, next(iter(tensors.values())).device)
        return PartsTeacher(teacher, model, model.replaceable())

    def view_taps(self, facts: Any, options: BaseModel, taps: Mapping[str, Tap]) -> Mapping[str, Tap]:
        model = plain(facts, torch.device("meta"))
        chosen(model.replaceable(), cast(AcmOptions, options), "the teacher")
        return {**taps, **part_taps(model.replaceable(), model.module)}

    def solver(self, student: Student, site: str, options: Mapping[str, Any]) -> Sorter:
        """Return what sorts the hidden units of a module."""
        path = site.rpartition(".")[0]
        module = own(student).adaptive[path]
        return Grouper(module, path) if isinstance(module, ExpertModule) else Sorter(module, path)

    def recipe(self, facts: Any, options: BaseModel) -> str:
        gates = cast(AcmOptions, options).gates
        known = {"estimate": "acm", "classify": "acm-classify", "experts": "acm-experts", "exits": "acm-exits"}
        return known.get(gates, "acm-fixed")

    def controls(self, teacher: Teacher, student: Student) -> Mapping[str, Control]:
        """Return the teacher truncated to the student's budget."""
        acm = own(student)
        device = next(iter(acm.module.parameters())).device
        fresh = self.build(teacher.facts, acm.options, {}, device=device)
        self.initialise(fresh, teacher)
        return {name_of(acm): truncated(fresh)}

    def control_names(self, student: Student) -> Collection[str]:
        return [name_of(own(student))]

    def export_graphs(self, student: Student, profile: Profile, options: Any) -> Sequence[ExportGraph]:
        return acm_graphs(own(student), profile, options)

    def teacher_graphs(self, teacher: Teacher, profile: Profile, options: Any) -> Sequence[ExportGraph]:
        adapter, _ = rebuilder(teacher.facts)
        given = validated(adapter.ExportOptions, cast(AcmExport, options).graph, "export.options.graph")
        return adapter.teacher_graphs(teacher, profile, given)

    def parity_cases(
        self, student: Student, graphs: Sequence[ExportGraph], batches: Sequence[Batch], profile: Profile
    ) -> Iterable[ParityCase]:
        adapter, _ = rebuilder(student.facts)
        for variant in dict.fromkeys(graph.variant for graph in graphs):
            its = [graph for graph in graphs if graph.variant == variant]
            yield from adapter.parity_cases(exported_model(own(student), variant), its, batches, profile)
        for graph in graphs:
            yield from budget_cases(own(student), graph, batches)

    def exported(self, folder: Path, student: Student, threads: int) -> TapModel | None:
        adapter, _ = rebuilder(student.facts)
        return adapter.exported(folder, own(student).inner, threads)

    def exported_point(self, folder: Path, student: Student, threads: int, point: str) -> TapModel | None:
        adapter, _ = rebuilder(student.facts)
        return adapter.exported_point(folder, own(student).inner, threads, point)


def _copies(facts: Any) -> dict[str, str]:
    """Return tensor of the model as it is -> the teacher's tensor that it is a copy of.

    Raises:
        PlanError: a tensor is not simply one of the teacher's.
    """
    adapter, _ = rebuilder(facts)
    planned = adapter.initialisation(facts, plain(facts, torch.device("meta")))
    if planned.mapped or planned.new or planned.unused:
        raise PlanError(f"{type(adapter).__name__} does not copy every tensor of the teacher, so none can be shared")
    return {name: (planned.sources or {}).get(name, (name,))[0] for name in planned.copied}


def own(student: Student) -> AcmStudent:
    """Return a student as what this target builds.

    Raises:
        PlanError: another target built it.
    """
    if not isinstance(student, AcmStudent):
        raise PlanError(f"this student is a {type(student).__name__}, the target acm builds AcmStudent")
    return student
