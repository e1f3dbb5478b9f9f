"""Builds the plan: describes teachers and data, builds the student on the meta device, pairs taps, estimates,
checks."""

from __future__ import annotations

import torch

from xarch._version import __version__
from xarch.config.packaged import without_teacher
from xarch.config.schema import RunConfig
from xarch.contracts.model import Teacher
from xarch.errors import PlanError, PluginError, UsageError
from xarch.hardware import choose_device
from xarch.planning.describe import (
    COPIES,
    DescribedTeacher,
    Describer,
    family_of,
    prove_accepted,
    prove_tensors,
)
from xarch.planning.feasibility import initialisation_checks, planned_export
from xarch.planning.idle import idle_settings
from xarch.planning.plan import Check, Plan, PlannedExport, PlannedStudent, PlannedTeacher
from xarch.planning.resolve import Say, check_samples, resolve_metric, target_title
from xarch.planning.sides import Sides, start_of
from xarch.planning.stages import StagePlanner, coupling_checks
from xarch.planning.totals import Totals
from xarch.registry.registry import Registry
from xarch.threads import choose_threads


def default_recipe(config: RunConfig, describer: Describer) -> str:
    """Return the name of the recipe or method that a target uses by default, or the control among its controls that
    needs no teacher, if there is none.

    Raises:
        UsageError: the target has none, or a name or an option is invalid.
        PlanError, PluginError: see :func:`build_plan`.
    """
    registry = describer.registry
    target, teacher, facts = start_of(config, describer)
    spec = registry.get("target", target.name)
    with registry.guard(spec, "recipe"):
        name = str(target.adapter.recipe(facts, target.options))
    declared = spec.data.get("recipes", [])
    if name and declared and name not in declared:
        raise PluginError(
            f"{registry.owner(spec)} uses the recipe {name!r}, but is registered with {', '.join(declared)}"
        )
    if not name:
        raise UsageError(
            f"target {target.name!r} has no default recipe",
            "choose one with --method NAME; see `xarch list methods` and `xarch list recipes`",
        )
    return name if teacher is not None else without_teacher(name)


def build_plan(
    config: RunConfig,
    registry: Registry,
    *,
    name: str,
    provenance: dict[str, str],
    command: str,
    say: Say,
    describer: Describer | None = None,
) -> Plan:
    """Return the plan of a configuration with stages.

    Args:
        describer: reused if it already described the teacher to find the default recipe.

    Raises:
        UsageError: a name or an option is invalid.
        PlanError: the conversion is not feasible, with the reason.
        PluginError: an adapter failed.
    """
    check_samples(registry, config)
    sides = Sides.of(config, describer or Describer(registry, say))
    target, student, start, described = sides.target, sides.student, sides.start, sides.data.info
    device, threads = choose_device(config.runtime.device), choose_threads(config.runtime.threads)
    _prove_family(sides)
    _prove_data(sides)
    metric = choose_metric(sides)
    with registry.attributed("while planning"):
        planner = StagePlanner(sides, device, threads.count, metric)
        planner.figures.check_gates(config.gates)
        active, left_out = planner.active()
        if not active and start.new and sides.teacher is not None:
            raise PlanError(
                f"no stage trains the student, but {len(start.new)} of its tensors do not come from the teacher: "
                f"{', '.join(start.new[:3])}{', ...' if len(start.new) > 3 else ''}"
                + "".join(f"; {reason}" for reason in left_out),
                "add a stage, or use a recipe with stages: `xarch list recipes`",
            )
        stages = [planner.stage(i, n, s) for i, (n, s) in enumerate(active, start=1)]
        config = config.model_copy(update={"stages": {**config.stages, **{s.name: s.config for s in stages}}})
    totals = Totals(sides, planner.rate)
    planner.figures.check_control_gates(config, totals.controls)
    exports = []
    for profile in config.export.profiles:
        with totals.trial(profile):
            exports.append(planned_export(registry, target, student, sides.facts, profile, config))
    return Plan(
        xarch=__version__,
        name=name,
        unit=described.unit,
        teacher=None if sides.teacher is None else planned_teacher(sides.teacher),
        teachers=_planned_teachers(sides),
        student=PlannedStudent(
            target=target.name,
            title=target_title(registry, target.name, target.options.model_dump()),
            plugin=target.plugin,
            options=target.options.model_dump(mode="json"),
            family=student.family,
            parameters=sides.parameters,
            sites=sides.sites,
            copied=list(start.copied),
            mapped=list(start.mapped),
            new=list(start.new),
            own=list(start.own),
            unused=list(start.unused),
            built_from={"family": sides.family, "facts": sides.facts.to_json()},
            traits={**student.traits(), **_forecast(sides)},
        ),
        data={
            "ref": config.data.ref,
            "title": described.title,
            "digest": described.digest,
            "unit": described.unit,
            "size": dict(described.size),
            "facts": dict(described.facts),
        },
        stages=stages,
        metric=metric,
        export=exports,
        checks=[
            *_checks(sides, sum(len(s.matches) for s in stages)),
            *coupling_checks(stages),
            *_export_checks(exports),
        ],
        warnings=[
            *sides.warnings(),
            *left_out,
            *idle_settings(config, planner.read, described.facts, trains_all=all(s.matches for s in stages)),
        ],
        estimates=totals.estimates(stages, exports, metric),
        device=str(device),
        threads=threads.count,
        threads_why=threads.why,
        command=command,
        provenance=provenance,
        plugins=registry.versions(),
        config=config,
    )


def _forecast(sides: Sides) -> dict[str, str]:
    """Return what the target says of the student from the teacher's weights, where it asks for them."""
    if sides.teacher is None:
        return {}
    registry, source = sides.registry, sides.teacher.source

    def load() -> Teacher:
        with registry.guard(registry.get("source", source.name), "load"):
            teacher: Teacher = source.adapter.load(
                source.ref, source.options, device=torch.device("cpu"), dtype=torch.float32
            )
        return teacher

    with registry.guard(registry.get("target", sides.target.name), "forecast"):
        return dict(sides.target.adapter.forecast(sides.student, load))


def _prove_family(sides: Sides) -> None:
    """Check that the method is one for students of this family.

    Raises:
        PlanError: it is not.
    """
    wanted, family = sides.config.families, sides.student.family
    if wanted and family not in wanted:
        raise PlanError(
            f"the method {sides.config.recipe or 'of this configuration'} is for students of "
            f"{', '.join(wanted)}; {sides.target.name} builds one of the family {family!r}",
            "choose another method (`xarch list methods`), or, if it fits, --set families=[]",
        )


def _prove_data(sides: Sides) -> None:
    """Check that tensors, layouts and sizes of the data fit every model that reads them.

    Raises:
        UsageError: the data need a tokenizer or image processor that the teacher does not have.
        PlanError: they do not fit, with the reason.
    """
    registry, info = sides.registry, sides.data.info
    models = [("the teacher", sides.teacher), *((f"teacher {n}", t) for n, t in sides.teachers.items())]
    for who, teacher in models:
        if teacher is not None:
            prove_tensors(teacher.family, teacher.info.family, info, "teacher", who)
            prove_accepted(teacher.family, registry, teacher.info.family, teacher.info.facts, info, who)
    main = sides.teacher
    if info.processor_hint and main is not None and main.info.processor is False:
        raise UsageError(
            f"data.ref: {sides.config.data.ref} needs the teacher's processor, and {main.ref} has none",
            info.processor_hint,
        )
    student = sides.student
    family = family_of(registry, student.family)
    prove_tensors(family, student.family, info, "student", "the student")
    prove_accepted(family, registry, student.family, student.facts, info, "the student")


def choose_metric(sides: Sides) -> str | None:
    """Return the metric of a run: the configuration's, else the target's, else that of the student's family.

    Raises:
        UsageError: the metric does not exist, one of its options is invalid, or a curve or a gate needs a metric.
        PlanError: it does not support students of this family.
    """
    config, registry, family = sides.config, sides.registry, sides.student.family
    named = config.evaluate.metric
    if named is None:
        with registry.guard(registry.get("target", sides.target.name), "metric"):
            named = sides.target.adapter.metric(sides.facts, sides.target.options)
    named = named or family_of(registry, family).metric or None
    if named is None:
        wanting = "evaluate.curve" if config.evaluate.curve is not None else "gates" if config.gates else ""
        if wanting:
            raise UsageError(f"{wanting}: the family {family!r} has no default metric", "set evaluate.metric")
        return None
    spec = registry.get("metric", named, where="evaluate.metric")
    if not spec.serves(family):
        fitting = sorted(s.name for s in registry.specs("metric") if s.serves(family))
        raise PlanError(
            f"metric {named!r} is for {', '.join(spec.accepts) or 'no family'}; the student is of family {family!r}",
            f"--set evaluate.metric=NAME with one of: {', '.join(fitting) or 'none'}",
        )
    resolve_metric(registry, named, config.evaluate.metric_options)
    return named


def planned_teacher(teacher: DescribedTeacher) -> PlannedTeacher:
    """Return a described teacher as plain data."""
    info, source = teacher.info, teacher.source
    return PlannedTeacher(
        ref=teacher.ref,
        resolved=f"{source.name}:{source.ref}",
        adapter=source.name,
        title=info.title,
        family=info.family,
        parameters=info.parameters,
        weight_bytes=info.weight_bytes,
        facts=info.facts.to_json(),
        details=info.details,
        weight=teacher.weight,
    )


def _planned_teachers(sides: Sides) -> dict[str, PlannedTeacher]:
    """Return further teachers in configuration order, including those derived from the student or the main teacher."""
    planned: dict[str, PlannedTeacher] = {}
    for name, given in sides.config.teachers.items():
        if name in sides.teachers:
            planned[name] = planned_teacher(sides.teachers[name])
            continue
        copied = given.ref in COPIES
        title = "a copy of the student" if copied else "the teacher's architecture with random weights"
        planned[name] = PlannedTeacher(
            ref=given.ref,
            resolved=given.ref,
            adapter=given.ref,
            title=title,
            family=sides.student.family if copied else sides.family,
            parameters=sides.parameters if copied else sides.teacher.info.parameters if sides.teacher else 0,
            weight_bytes=0,
            facts={},
            weight=given.weight,
        )
    return planned


def _checks(sides: Sides, pairs: int) -> list[Check]:
    came = sides.family if sides.teacher is not None else "no teacher"
    student = family_of(sides.registry, sides.student.family)
    tensors = ", ".join(key for key in student.tensors if not key.endswith("?"))
    weights = None if sides.teacher is None else sides.teacher.info.weights
    return [
        Check(name="family", state="ok", detail=f"{came} -> {sides.student.family}"),
        Check(name="data", state="ok", detail=f"provide {tensors or 'what the models read'}, in matching sizes"),
        Check(name="matches", state="ok", detail=f"{pairs} pairs agree in layout and size"),
        *initialisation_checks(sides.start, weights),
    ]


def _export_checks(exports: list[PlannedExport]) -> list[Check]:
    return [
        Check(
            name=f"export {e.profile}",
            state="not checked" if e.operators is None else "ok",
            detail="the target exports no graphs"
            if e.operators is None
            else f"all {len(e.operators)} operators are in the profile (checked on a small copy)",
        )
        for e in exports
    ]
