"""Build the plan: describe the teacher, build the student on the meta device, pair taps, estimate, check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch

from xarch._version import __version__
from xarch.config.schema import RunConfig, Stage
from xarch.contracts.adapters import SourceInfo, TargetAdapter
from xarch.contracts.model import Student
from xarch.contracts.objective import Objective
from xarch.contracts.tap import Tap
from xarch.errors import PlanError, UsageError
from xarch.hardware import choose_device, choose_threads
from xarch.matching.pairing import Pair, pair_taps
from xarch.optim import layer_matrices
from xarch.optim.muon import update_work
from xarch.planning import estimate
from xarch.planning.export_check import trial_operators
from xarch.planning.plan import (
    CachePlan,
    Check,
    Estimates,
    Plan,
    PlannedExport,
    PlannedMatch,
    PlannedStage,
    PlannedStudent,
    PlannedTeacher,
)
from xarch.planning.resolve import Resolved, resolve_data, resolve_target, resolve_teacher
from xarch.registry.registry import Registry

Say = Callable[[str], None]
TINY_STEPS = 6


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
    source = resolve_teacher(registry, config.teacher, config.teacher_options, say, tiny=config.tiny)
    with registry.guard(registry.get("source", source.name), "describe"):
        info: SourceInfo = source.adapter.describe(source.ref, source.options)
    target = resolve_target(registry, config.student.target, config.student.options, tiny=config.tiny)
    spec = registry.get("target", target.name)
    if info.family not in spec.accepts:
        raise PlanError(
            f"target {target.name!r} accepts {', '.join(spec.accepts) or 'no family'}; "
            f"teacher {config.teacher} is of family {info.family!r}",
            "`xarch list pairs` shows what can be converted into what",
        )
    with registry.guard(spec, "build"):
        student: Student = target.adapter.build(info.facts, target.options, {}, device=torch.device("meta"))
        coverage = target.adapter.coverage(info.facts, student)
    data = resolve_data(registry, config.data.ref, config.data.options)
    with registry.guard(registry.get("data", data.name), "describe"):
        described = data.adapter.describe(data.ref, data.options)
    teacher_taps = family_taps(registry, info)
    builder = _Stages(config, registry, info, student, teacher_taps, data, device)
    active, left_out = _active(config, student, teacher_taps)
    if not active and coverage.new:
        raise PlanError(
            f"no stage trains the student, and {len(coverage.new)} of its tensors are not the teacher's: "
            f"{', '.join(coverage.new[:3])}{', ...' if len(coverage.new) > 3 else ''}",
            "give it a stage, or a recipe that has some: `xarch list recipes`",
        )
    stages = [builder.stage(i, n, s) for i, (n, s) in enumerate(active, start=1)]
    exports = [_export(registry, target, student, info.facts, t, config) for t in config.export.targets]
    parameters = sum(p.numel() for p in student.module.parameters())
    checks = [
        Check(name="family", ok=True, detail=f"{info.family} -> {spec.produces or info.family}"),
        Check(name="shapes", ok=True, detail=f"{sum(len(s.matches) for s in stages)} pairs of taps agree"),
        Check(
            name="coverage",
            ok=True,
            detail=f"{len(coverage.copied)} tensors copied, {len(coverage.mapped)} mapped, {len(coverage.new)} new",
        ),
    ]
    checks += [
        Check(
            name=f"export {e.target}",
            ok=True,
            detail="not tried: this family has no small copy"
            if e.operators is None
            else f"{len(e.operators)} operators fit the profile (tried on two layers)",
        )
        for e in exports
    ]
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
            sites=list(student.sites()),
            copied=list(coverage.copied),
            mapped=list(coverage.mapped),
            new=list(coverage.new),
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
        config=config,
    )


def _active(
    config: RunConfig, student: Student, teacher_taps: dict[str, Tap]
) -> tuple[list[tuple[str, Stage]], list[str]]:
    """The stages that run, and why optional ones do not."""
    active: list[tuple[str, Stage]] = []
    left_out: list[str] = []
    for name, stage in config.stages.items():
        if stage.skip:
            continue
        lacking = _lacking(stage, student, teacher_taps) if stage.optional else None
        if lacking is None:
            active.append((name, stage))
        else:
            left_out.append(f"stage {name} is left out: {lacking}")
    return active, left_out


def _lacking(stage: Stage, student: Student, teacher_taps: dict[str, Tap]) -> str | None:
    """The first tap of a stage's matches that one side does not have."""
    own = set(student.taps()) | {leaf for site in student.sites().values() for leaf in site.taps}
    known = set(teacher_taps) | {tap.leaf for tap in teacher_taps.values()}
    for match in stage.matches:
        if not any(fnmatchcase(tap, match.student) for tap in own):
            return f"the student has no tap {match.student}"
        wanted = match.student if match.teacher == "same" else match.teacher
        if wanted is None or wanted.startswith("batch:"):
            continue
        if not any(fnmatchcase(tap, wanted) for tap in known):
            return f"the teacher has no tap {wanted}"
    return None


def family_taps(registry: Registry, info: SourceInfo) -> dict[str, Tap]:
    """Taps of a teacher known by its facts alone; facts know the taps of their family."""
    taps = getattr(info.facts, "taps", None)
    if taps is None:
        raise PlanError(f"facts of family {info.family!r} do not declare taps (method `taps`)")
    return dict(taps())


def default_metric(registry: Registry, family: str) -> str | None:
    """The first registered metric of a family."""
    return next((s.name for s in registry.specs("metric") if family in s.accepts), None)


def pairs_of(name: str, stage: Stage, student: Student, teacher_taps: dict[str, Tap], registry: Registry) -> list[Pair]:
    """The proven pairs of a gradient stage; also used while running, after decisions changed the student."""

    def objective(wanted: str) -> type[Objective]:
        kind: type[Objective] = registry.resolve(registry.get("objective", wanted))
        return kind

    return pair_taps(
        name,
        stage,
        sites=student.sites(),
        student=student.taps(),
        teacher=teacher_taps,
        objective=objective,
    )


class _Stages:
    """Plans the stages of one configuration."""

    def __init__(
        self,
        config: RunConfig,
        registry: Registry,
        info: SourceInfo,
        student: Student,
        teacher_taps: dict[str, Tap],
        data: Resolved,
        device: torch.device,
    ) -> None:
        self.config, self.registry, self.info, self.student = config, registry, info, student
        self.teacher_taps, self.data = teacher_taps, data
        self.rate = estimate.matrix_rate(device) * estimate.EFFICIENCY
        self.student_size = sum(p.numel() for p in student.module.parameters())
        self.width = max([t.shape.get("D", 0) for t in teacher_taps.values()], default=0)

    def stage(self, index: int, name: str, stage: Stage) -> PlannedStage:
        kind = self.registry.create("stage", stage.kind)
        sample = {**self.config.data.sample, **stage.sample}
        each = self.data.adapter.units_per_sample(sample)
        sites = [s for s in self.student.sites() if fnmatchcase(s, stage.sites)]
        matches: list[Pair] = []
        trained: dict[str, int] = {}
        batch = stage.batch
        if stage.kind == "gradient":
            if not stage.matches or not stage.trains:
                missing = "matches" if not stage.matches else "trains"
                raise UsageError(f"stages.{name}: a gradient stage needs `{missing}`")
            matches = pairs_of(name, stage, self.student, self.teacher_taps, self.registry)
            unknown = sorted(set(stage.trains) - set(self.student.param_groups()))
            if unknown:
                known = ", ".join(sorted(self.student.param_groups()))
                raise UsageError(f"stages.{name}.trains: the student has no group {unknown[0]!r}", f"groups: {known}")
            trained = estimate.trained_parameters(self.student, stage.trains)
        elif stage.until is not None:
            raise UsageError(f"stages.{name}.until: only a gradient stage can end early, this one is {stage.kind}")
        units = self._units(name, stage, kind, each)
        if self.config.tiny:
            batch = min(batch, 2)
            units = min(units, TINY_STEPS * batch * each * stage.passes)
        per_pass = max(1, units // stage.passes // (batch * each))
        steps = per_pass * (stage.passes if stage.kind == "gradient" else 1)
        units = steps * batch * each
        taps = {t for p in matches for t in p.teacher_taps}
        if stage.scope == "local" and matches:
            taps |= {t for s in sites for t in self.student.sites()[s].inputs.values()}
        cache = CachePlan(use=False, bytes=0, why="not a gradient stage")
        if stage.kind == "gradient":
            cache = estimate.plan_cache(
                stage.teacher_cache,
                stage.passes,
                units // stage.passes,
                [self.teacher_taps[t] for t in taps],
                self.config.runtime.cache_gb,
            )
        return PlannedStage(
            index=index,
            name=name,
            folder=f"{index:02d}-{name}",
            kind=stage.kind,
            scope=stage.scope,
            config=stage,
            sites=sites if stage.scope == "local" else [],
            matches=[_match(p) for p in matches],
            trains=trained,
            units=units,
            steps=steps,
            passes=stage.passes,
            batch=batch,
            sample=sample,
            cache=cache,
            memory_bytes=estimate.stage_memory(
                teacher=self.info.parameters,
                student=self.student_size,
                trained=sum(trained.values()),
                width=self.width,
                batch_units=(stage.micro_batch or batch) * each,
                sites=len(self.student.sites()),
                scope=stage.scope,
            ),
            seconds=self._seconds(stage, sample, units, sum(trained.values()), cache.use)
            + steps * self._update_work(stage) / self.rate,
        )

    def _units(self, name: str, stage: Stage, kind: Any, each: int) -> int:
        if stage.units is not None:
            return stage.units
        if stage.share is not None:
            return int(self.config.budget * stage.share)
        if stage.kind == "closed_form":
            return stage.batch * each
        if stage.kind == "gradient":
            raise UsageError(f"stages.{name}: give `share` or `units`: how much data the stage reads")
        return int(kind.units({**stage.options}))

    def _seconds(self, stage: Stage, sample: Mapping[str, Any], units: int, trained: int, cached: bool) -> float:
        known = getattr(self.info.facts, "work", None)
        teacher = known(sample) if known else self.info.parameters
        own = 3.0 * trained
        if stage.scope == "global":
            own = self.student.work(sample) * (2 + trained / max(self.student_size, 1))
        return float((teacher * (units / stage.passes if cached else units) + own * units) / self.rate)

    def _update_work(self, stage: Stage) -> int:
        """Multiply-adds of one step of the optimiser where they count beside forward and backward: those of Muon."""
        if stage.kind != "gradient" or stage.optimiser.algorithm != "muon":
            return 0
        groups = self.student.param_groups()
        names = {name for group, options in stage.trains.items() if options.lr > 0 for name in groups[group]}
        sizes = {name: tuple(parameter.shape) for name, parameter in self.student.module.named_parameters()}
        return sum(update_work(sizes[name]) for name in names & layer_matrices(self.student.module))


def _match(pair: Pair) -> PlannedMatch:
    weight = pair.match.weight
    return PlannedMatch(
        site=pair.site,
        student=pair.student.name,
        teacher=pair.teacher.name if pair.teacher else None,
        objective=pair.match.objective,
        weight=weight if isinstance(weight, float | int) else weight.model_dump(),
        layouts=(pair.student.layout, pair.teacher.layout if pair.teacher else "none"),
    )


def _export(
    registry: Registry, target: Resolved, student: Student, facts: Any, name: str, config: RunConfig
) -> PlannedExport:
    profile = registry.create("export", name)
    adapter: TargetAdapter = target.adapter
    with registry.guard(registry.get("target", target.name), f"export graphs for {name}"):
        graphs = adapter.export_graphs(student, profile, config.export.options)
        free = [f"{g.name}.{i}" for g in graphs for i in g.dynamic]
        if profile.static and free:
            raise PlanError(f"export {name!r} needs static shapes; {', '.join(free[:3])} are dynamic")
        operators = trial_operators(adapter, facts, target.options, profile, config.export.options)
    return PlannedExport(target=name, opset=profile.max_opset, graphs=[g.name for g in graphs], operators=operators)
