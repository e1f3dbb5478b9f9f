"""Build the plan: describe the teacher, build the student on the meta device, pair taps, estimate, check."""

from __future__ import annotations

from collections.abc import Callable

import torch

from xarch._version import __version__
from xarch.config.schema import RunConfig
from xarch.contracts.adapters import SourceInfo
from xarch.contracts.data import DataRequest
from xarch.contracts.local import sites_of
from xarch.contracts.model import Student
from xarch.errors import PlanError, UsageError
from xarch.hardware import choose_device, choose_threads
from xarch.matching.references import COPIES, RANDOM
from xarch.planning.estimate import measure_rates
from xarch.planning.feasibility import planned_export
from xarch.planning.plan import (
    Check,
    Estimates,
    Plan,
    PlannedStudent,
    PlannedTeacher,
)
from xarch.planning.resolve import Resolved, resolve_data, resolve_target, resolve_teacher
from xarch.planning.stages import StagePlanner, coupling_checks, with_settings
from xarch.registry.registry import Registry

Say = Callable[[str], None]


def build_plan(
    config: RunConfig, registry: Registry, *, name: str, provenance: dict[str, str], command: str, say: Say
) -> Plan:
    """The plan of a configuration whose stages are given.

    Raises:
        UsageError: a name or an option is wrong.
        PlanError: the conversion is not feasible, with the reason.
        PluginError: an adapter failed.
    """
    if not config.teacher:
        raise UsageError("no teacher is given", "use --teacher SCHEME:REF or `teacher:` in the configuration")
    if not config.student.target:
        raise UsageError("no target is given", "use --to TARGET; `xarch list targets` shows them")
    device = choose_device(config.runtime.device)
    target = resolve_target(registry, config.student.target, config.student.options, tiny=config.tiny)
    source = resolve_teacher(registry, config.teacher, config.teacher_options, say, tiny=config.tiny)
    info = described_teacher(registry, source)
    spec = registry.get("target", target.name)
    if info.family not in spec.accepts:
        raise PlanError(
            f"target {target.name!r} accepts {', '.join(spec.accepts) or 'no family'}; "
            f"teacher {config.teacher} is of family {info.family!r}",
            "`xarch list pairs` shows what can be converted into what",
        )
    with registry.guard(spec, "build"):
        student: Student = target.adapter.build(info.facts, target.options, {}, device=torch.device("meta"))
        start = target.adapter.initialisation(info.facts, student)
        taps = target.adapter.view_taps(info.facts, target.options, info.facts.taps())
    data = resolve_data(registry, config.data.ref, config.data.options)
    request = DataRequest(data.ref, data.options, sample=config.data.sample, facts=info.facts)
    with registry.guard(registry.get("data", data.name), "describe"):
        described = data.adapter.describe(request)
    further = {
        name: described_teacher(registry, resolve_teacher(registry, t.ref, t.options, say, tiny=config.tiny))
        for name, t in config.teachers.items()
        if t.ref not in (*COPIES, RANDOM)
    }
    rates = measure_rates(device)
    builder = StagePlanner(
        config, registry, student, target, data, request, teacher=info, taps=taps, teachers=further, rates=rates
    )
    active, left_out = builder.active()
    if not active and start.new:
        raise PlanError(
            f"no stage trains the student, and {len(start.new)} of its tensors are not the teacher's: "
            f"{', '.join(start.new[:3])}{', ...' if len(start.new) > 3 else ''}",
            "give it a stage, or a recipe that has some: `xarch list recipes`",
        )
    stages = [builder.stage(i, n, s) for i, (n, s) in enumerate(active, start=1)]
    exports = [planned_export(registry, target, student, info.facts, p, config) for p in config.export.profiles]
    parameters = sum(p.numel() for p in student.module.parameters())
    checks = [
        Check(name="family", ok=True, detail=f"{info.family} -> {spec.produces or info.family}"),
        Check(name="shapes", ok=True, detail=f"{sum(len(s.matches) for s in stages)} pairs of taps agree"),
        Check(
            name="initialisation",
            ok=True,
            detail=f"{len(start.copied)} tensors copied, {len(start.mapped)} mapped, {len(start.new)} new",
        ),
    ]
    checks += [
        Check(
            name=f"export {e.profile}",
            ok=True,
            detail="not tried: this family has no small copy"
            if e.operators is None
            else f"{len(e.operators)} operators fit the profile (tried on two layers)",
        )
        for e in exports
    ]
    checks += coupling_checks(stages)
    metric = config.evaluate.metric or default_metric(registry, info.family)
    if metric is None and config.evaluate.curve is not None:
        raise UsageError(f"evaluate.curve: no metric is registered for the family {info.family!r}", "leave it out")
    caches = max([s.cache.bytes for s in stages if s.cache.use], default=0)
    return Plan(
        xarch=__version__,
        name=name,
        unit=described.unit,
        teacher=PlannedTeacher(
            ref=config.teacher,
            resolved=f"{source.name}:{source.ref}",
            adapter=source.name,
            title=info.title,
            family=info.family,
            parameters=info.parameters,
            weight_bytes=info.weight_bytes,
            facts=info.facts.to_json(),
            details=info.details,
        ),
        student=PlannedStudent(
            target=target.name,
            plugin=target.plugin,
            options=target.options.model_dump(mode="json"),
            family=student.family,
            parameters=parameters,
            sites=list(sites_of(student)),
            copied=list(start.copied),
            mapped=list(start.mapped),
            new=list(start.new),
        ),
        data={
            "ref": config.data.ref,
            "title": described.title,
            "digest": described.digest,
            "unit": described.unit,
            "size": described.size,
        },
        stages=stages,
        metric=metric,
        export=exports,
        gates={k: g.model_dump() for k, g in config.gates.items()},
        checks=checks,
        warnings=[*info.warnings, *left_out],
        estimates=Estimates(
            seconds=sum(s.seconds for s in stages),
            peak_bytes=max([s.memory_bytes for s in stages], default=4 * (info.parameters + parameters)),
            disk_bytes=4 * parameters * (1 + len(exports)) + caches,
        ),
        device=str(device),
        threads=choose_threads(config.runtime.threads),
        command=command,
        provenance=provenance,
        plugins=registry.versions(),
        config=with_settings(config, stages),
    )


def described_teacher(registry: Registry, source: Resolved) -> SourceInfo:
    """A teacher without its weights."""
    with registry.guard(registry.get("source", source.name), "describe"):
        info: SourceInfo = source.adapter.describe(source.ref, source.options)
    return info


def default_metric(registry: Registry, family: str) -> str | None:
    """The first registered metric of a family."""
    return next((s.name for s in registry.specs("metric") if family in s.accepts), None)
