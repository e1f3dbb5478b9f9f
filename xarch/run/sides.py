"""Loads the models and data of a run: teachers, their view, processors, and streams of every split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from xarch.config.schema import RunConfig
from xarch.contracts.data import BatchStream, DataRequest, Split
from xarch.contracts.model import Teacher
from xarch.engine.guards import require_finite_weights
from xarch.errors import PlanError
from xarch.planning.describe import COPIES, RANDOM, Describer
from xarch.planning.plan import Plan, PlannedTeacher
from xarch.planning.resolve import Resolved, Say, resolve_target, resolve_teacher
from xarch.registry.registry import Registry


@dataclass
class RunSides:
    """Models and data shared by the stages, evaluation and exports of a run.

    Attributes:
        registry: the loaded plugins.
        target: the student's adapter.
        teacher: the main teacher, unmodified; None with ``teacher: none``.
        viewed: the main teacher as seen by the target's matches.
        teachers: further teachers by name, and "random" if a match uses it.
        request: request with which the data are opened.
        data: the provider.
        processors: "teacher", "student" and names of further teachers -> tokenizer or image processor, None without
            one.
        facts: facts of the data set.
        digest: identity of its content.
    """

    registry: Registry
    target: Resolved
    teacher: Teacher | None
    viewed: Teacher | None
    teachers: Mapping[str, Teacher]
    request: DataRequest
    data: Resolved
    processors: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""

    def open(self, split: Split, samples: int, sample: Mapping[str, Any], seed: int) -> BatchStream:
        """Open batches of ``samples`` samples of a split, on the CPU.

        Raises:
            PluginError: the provider failed.
        """
        request = replace(self.request, split=split, samples=samples, sample=sample, seed=seed)
        with self.registry.guard(self.registry.get("data", self.data.name), f"open {split}"):
            stream: BatchStream = self.data.adapter.open(request)
        return stream


def load_sides(plan: Plan, registry: Registry, device: torch.device, say: Say) -> RunSides:
    """Load teachers and processors of a plan.

    Raises:
        UsageError, PlanError, PluginError: an adapter rejected its input or failed.
        DivergedError: a weight of a teacher is NaN or infinite.
    """
    config = plan.config
    target = resolve_target(registry, plan.student.target, config.student.options, tiny=config.tiny)
    spec = registry.get("target", target.name)
    teacher = viewed = None
    if plan.teacher is not None:
        teacher = viewed = _load(registry, plan.teacher, config.teacher_options, config, device, say)
        with registry.guard(spec, "view"):
            viewed = target.adapter.view(teacher)
    others = {
        name: _load(registry, planned, config.teachers[name].options, config, device, say)
        for name, planned in plan.teachers.items()
        if planned.ref not in (*COPIES, RANDOM)
    }
    for number, name in enumerate(_random_names(plan), start=1):
        # Teachers of different names are different ones; the unnamed one belongs to the run's own seed.
        seed = config.seed if name == RANDOM else config.seed + number
        others[name] = _random(plan, registry, target, device, say, seed)
    with registry.guard(spec, "processor"):
        processors = {"student": target.adapter.processor(teacher)}
    with registry.attributed("its processor"):
        processors = {name: other.processor() for name, other in others.items()} | processors
        processors["teacher"] = None if teacher is None else teacher.processor()
    described = Describer(registry, say).data(config, None if teacher is None else teacher.facts)
    request = replace(described.request, processors=processors, teacher=teacher)
    info = described.info
    return RunSides(
        registry, target, teacher, viewed, others, request, described.adapter, processors, info.facts, info.digest
    )


def _load(
    registry: Registry,
    planned: PlannedTeacher,
    options: Mapping[str, Any],
    config: RunConfig,
    device: torch.device,
    say: Say,
) -> Teacher:
    source = resolve_teacher(registry, planned.resolved, options, say, tiny=config.tiny)
    with registry.guard(registry.get("source", source.name), f"load {planned.ref}"):
        teacher: Teacher = source.adapter.load(source.ref, source.options, device=device, dtype=torch.float32)
    require_finite_weights(teacher, f"the teacher {planned.ref}")
    return teacher


def _random_names(plan: Plan) -> list[str]:
    """Return the names under which the plan uses the teacher's architecture with random weights."""
    named = [name for name, planned in plan.teachers.items() if planned.ref == RANDOM]
    reads = [text for s in plan.stages for m in s.matches for text in (m.right, *m.aux.values())]
    used = any(text.startswith(f"{RANDOM}:") for line in reads for text in line.replace(",", " ").split())
    return [*named, RANDOM] if used else named


def _random(plan: Plan, registry: Registry, target: Resolved, device: torch.device, say: Say, seed: int) -> Teacher:
    if plan.teacher is None:
        raise PlanError("random weights need an architecture, but there is no teacher")
    config = plan.config
    source = resolve_teacher(registry, plan.teacher.resolved, config.teacher_options, say, tiny=config.tiny)
    with registry.guard(registry.get("source", source.name), "random"):
        made: Teacher = source.adapter.random(source.ref, source.options, device=device, seed=seed)
    with registry.guard(registry.get("target", target.name), "view"):
        viewed: Teacher = target.adapter.view(made)
    return viewed
