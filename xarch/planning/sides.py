"""Descriptions of both sides of a conversion and its data: the student on the meta device, teachers by their facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from xarch.config.schema import RunConfig
from xarch.contracts.local import sites_of
from xarch.contracts.model import Initialisation, Student
from xarch.contracts.tap import Tap
from xarch.errors import PlanError, PluginError, UsageError
from xarch.planning.describe import COPIES, NO_TEACHER, RANDOM, DescribedData, DescribedTeacher, Describer
from xarch.planning.resolve import Resolved, resolve_target
from xarch.registry.registry import Registry


def start_of(config: RunConfig, describer: Describer) -> tuple[Resolved, DescribedTeacher | None, Any]:
    """Return target, teacher, and the facts from which the student is built.

    Raises:
        UsageError: a name or an option is invalid.
        PlanError: the target does not accept this family, or needs a teacher.
        PluginError: an adapter failed.
    """
    if not config.teacher:
        raise UsageError(
            "no teacher given", f"use --teacher SCHEME:REF, or --teacher {NO_TEACHER} for a student without one"
        )
    if not config.student.target:
        raise UsageError("no target given", "use --to TARGET; `xarch list targets` shows them")
    registry = describer.registry
    target = resolve_target(registry, config.student.target, config.student.options, tiny=config.tiny)
    spec = registry.get("target", target.name)
    teacher = describer.teacher(config)
    if teacher is None:
        data = describer.data(config, None).info
        with registry.guard(spec, "facts_from_data"):
            return target, None, target.adapter.facts_from_data(data, target.options)
    if not spec.serves(teacher.info.family):
        raise PlanError(
            f"target {target.name!r} accepts {', '.join(spec.accepts) or 'no family'}; "
            f"teacher {teacher.ref} is of family {teacher.info.family!r}",
            "`xarch list pairs` shows what can be converted into what",
        )
    return target, teacher, teacher.info.facts


@dataclass(frozen=True)
class Sides:
    """Descriptions of both sides of a conversion and its data.

    Attributes:
        config, registry: those of the plan.
        teacher: the main teacher; None with ``teacher: none``.
        teachers: further teachers with their own weights, by name.
        target: the student's adapter.
        facts, family: facts from which the student is built, and the name of their family.
        student: on the meta device.
        start: its planned initialisation.
        data: description of the data with the configuration's ``data.sample``.
        describer: describes the data with other samples.
    """

    config: RunConfig
    registry: Registry
    teacher: DescribedTeacher | None
    teachers: Mapping[str, DescribedTeacher]
    target: Resolved
    facts: Any
    family: str
    student: Student
    start: Initialisation
    data: DescribedData
    describer: Describer

    @classmethod
    def of(cls, config: RunConfig, describer: Describer) -> Sides:
        """Describe everything that a configuration names.

        Raises:
            UsageError, PlanError, PluginError: see :func:`start_of`.
        """
        registry = describer.registry
        target, teacher, facts = start_of(config, describer)
        spec = registry.get("target", target.name)
        data = describer.data(config, facts if teacher else None)
        with registry.guard(spec, "build"):
            student: Student = target.adapter.build(facts, target.options, {}, device=torch.device("meta"))
            given = Initialisation(new=tuple(student.module.state_dict()))
            start = given if teacher is None else target.adapter.initialisation(facts, student)
            own = set(target.adapter.own_weights(student, target.options))
            new, kept = (tuple(n for n in start.new if (n in own) is known) for known in (False, True))
            start = replace(start, new=new, own=kept)
        if spec.produces not in ("*", student.family):
            said = f"is registered for students of the family {spec.produces!r} but built one of {student.family!r}"
            raise PluginError(f"{registry.owner(spec)} {said}")
        family = teacher.info.family if teacher is not None else student.family
        others = describer.teachers(config)
        return cls(config, registry, teacher, others, target, facts, family, student, start, data, describer)

    @property
    def parameters(self) -> int:
        """Number of parameters of the student."""
        return sum(p.numel() for p in self.student.module.parameters())

    @property
    def sites(self) -> list[str]:
        """Names of the student's sites."""
        return list(sites_of(self.student))

    def taps(self) -> dict[str, dict[str, Tap]]:
        """Taps by name of the model on the right side of matches; "" is the main teacher as viewed by the target."""
        found: dict[str, dict[str, Tap]] = {}
        if self.teacher is not None:
            with self.registry.guard(self.registry.get("target", self.target.name), "view_taps"):
                viewed = self.target.adapter.view_taps(self.facts, self.target.options, self.teacher.taps)
            found[""] = found[RANDOM] = dict(viewed)
        found |= {name: dict(t.taps) for name, t in self.teachers.items()}
        for name, given in self.config.teachers.items():
            if given.ref in COPIES:
                found[name] = dict(self.student.taps())
            elif given.ref == RANDOM:
                found[name] = self._random_taps(name, found)
        return found

    def _random_taps(self, name: str, found: Mapping[str, dict[str, Tap]]) -> dict[str, Tap]:
        if RANDOM not in found:
            raise PlanError(f"teachers.{name}: random weights need an architecture, but there is no teacher")
        return found[RANDOM]

    def warnings(self) -> list[str]:
        """Warnings of the sources and the data."""
        teachers = [t for t in (self.teacher, *self.teachers.values()) if t is not None]
        told = [text for t in teachers for text in t.info.warnings]
        return list(dict.fromkeys([*told, *self.data.info.warnings]))
