"""Assembles a stage's matches and trainable parameters from its settings."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from xarch.config.schema import RunConfig, Stage
from xarch.config.validation import validated
from xarch.contracts.local import sites_of
from xarch.contracts.model import Student, TapModel
from xarch.contracts.objective import MatchContext
from xarch.contracts.optimiser import OptimiserWrapper
from xarch.engine.distributed import Distributed
from xarch.engine.matches import EngineMatches, MemoryLimit
from xarch.engine.modes import Modes
from xarch.engine.optimisers import Optimisers
from xarch.engine.seeds import seeded
from xarch.engine.teacher import Autocast, TeacherFeed
from xarch.engine.terms import StageModules, build_terms, phase_of
from xarch.engine.trainable import Trainable, all_buffers, trained_parameters
from xarch.engine.walks import GlobalWalk, LocalWalk
from xarch.errors import PlanError
from xarch.matching.coupling import cuttable, frozen_parts
from xarch.matching.pairing import Pair
from xarch.optim.ema import EMA
from xarch.registry.registry import Registry

EMA_COPY, SELF_COPY = "ema", "self"


@dataclass(frozen=True)
class StageParts:
    """Inputs from which a stage is assembled.

    Attributes:
        name, phases: name of the stage, and its settings before the first phase and in each phase.
        pairs: checked pairs.
        student: the model being trained.
        context: build context of objectives and connectors.
        registry, config: those of the run.
        seed, device, processes, autocast: those of the stage.
        estimated: bytes estimated by the plan.
        sharded: whether the student's parameters are sharded across processes.
        cutting: how batches are split after running out of memory.
        say: called with one line to display.
    """

    name: str
    phases: Sequence[Stage]
    pairs: Sequence[Pair]
    student: Student
    context: MatchContext
    registry: Registry
    config: RunConfig
    seed: int
    device: torch.device
    processes: Distributed
    autocast: Autocast
    estimated: int
    sharded: bool
    cutting: dict[str, Any]
    say: Callable[[str], None]


@dataclass(frozen=True)
class Assembled:
    """Matches and trainable parameters of a stage, with their shared state."""

    matches: EngineMatches
    trainable: Trainable
    modes: Modes


def copies_read(pairs: Sequence[Pair], aliases: Mapping[str, str]) -> dict[str, str]:
    """Return the names under which matches read copies of the student -> "ema" or "self".

    Args:
        aliases: further teachers defined as such a copy.
    """
    known = {EMA_COPY: EMA_COPY, SELF_COPY: SELF_COPY, **aliases}
    read = {r.model for p in pairs for r in (*p.right.values(), *p.aux.values())}
    return {name: kind for name, kind in known.items() if name in read}


def assemble(parts: StageParts, models: dict[str, TapModel], feed: TeacherFeed, copies: Mapping[str, str]) -> Assembled:
    """Build objectives, connectors, optimisers and averages, and put the student in train mode.

    Args:
        models: models run by ``feed``, by name; copies of the student are added.
        copies: see :func:`copies_read`.

    Raises:
        PlanError: the stage cannot run as it is configured.
    """
    stage, student, where = parts.phases[0], parts.student, f"stages.{parts.name}"
    with seeded(parts.seed):
        terms = build_terms(parts.pairs, parts.phases, parts.registry, parts.context, parts.device, where)
    modules = StageModules(terms)
    sites = {name: site for name, site in sites_of(student).items() if any(p.site == name for p in parts.pairs)}

    def owner(parameter: str) -> str:
        return next((name for name, site in sites.items() if site.owns(parameter)), "")

    trained = trained_parameters(student, modules, terms, parts.phases, owner)
    named = {name: t.parameter for name, t in trained.items()}
    frozen = [*frozen_parts(student.module, trained), *frozen_parts(modules, trained)]
    modes = Modes([student.module, modules], frozen)
    ema = None if stage.ema is None else EMA(named, stage.ema.decay)
    models |= _copies(parts, copies, ema)
    settings = stage.optimiser
    trainable = Trainable(
        trained,
        Optimisers(
            settings,
            f"{where}.optimiser",
            parts.registry,
            student.module,
            {name: (t.parameter, t.group, t.decay) for name, t in trained.items()},
            fused=not parts.sharded,
        ),
        [_wrapper(parts, name, options or {}) for name, options in settings.wrap.items()],
        settings.lr,
        settings.clip,
        all_buffers(student, modules),
        modes,
        parts.processes,
        ema,
        stage.ema is not None and stage.ema.adopt,
    )
    trainable.at(stage.trains)
    walk = LocalWalk if stage.scope == "local" else GlobalWalk
    matches = EngineMatches(
        terms=terms,
        walk=walk(student, terms, feed, parts.autocast),
        phases=parts.phases,
        coupled=cuttable(student, trained, parts.pairs) or "",
        micro_batch=stage.micro_batch,
        modes=modes,
        processes=parts.processes,
        limit=MemoryLimit(parts.name, parts.config.runtime.oom_retries, parts.estimated, parts.say),
        module=modules,
        trained=named,
        averaged=trainable.averaged,
        cutting=parts.cutting,
        on_progress=lambda progress: trainable.at(parts.phases[phase_of(parts.phases, progress)].trains),
    )
    modes.train()
    return Assembled(matches, trainable, modes)


def _wrapper(parts: StageParts, name: str, options: Mapping[str, object]) -> tuple[OptimiserWrapper, Any]:
    wrapper: OptimiserWrapper = parts.registry.create("wrapper", name)
    return wrapper, validated(wrapper.Options, options, f"stages.{parts.name}.optimiser.wrap.{name}")


def _copies(parts: StageParts, copies: Mapping[str, str], ema: EMA | None) -> dict[str, TapModel]:
    made: dict[str, Student] = {}
    for kind in set(copies.values()):
        if kind == EMA_COPY and ema is None:
            raise PlanError(
                f"stages.{parts.name}: a match reads ema:…, but the stage keeps no average",
                f"--set stages.{parts.name}.ema=0.999",
            )
        made[kind] = _copy(parts.student)
    if EMA_COPY in made and ema is not None:
        _bind_average(made[EMA_COPY], parts.student, ema)
    return {name: made[kind] for name, kind in copies.items()}


def _copy(student: Student) -> Student:
    for parameter in student.module.parameters():
        parameter.grad = None
    twin = copy.deepcopy(student)
    twin.module.eval().requires_grad_(False)
    return twin


def _bind_average(twin: Student, student: Student, ema: EMA) -> None:
    """Make a copy share the averaged tensors and the student's buffers."""
    for name, parameter in twin.module.named_parameters():
        if name in ema.averages:
            parameter.data = ema.averages[name]
    for theirs, mine in zip(twin.module.modules(), student.module.modules(), strict=True):
        for name in mine._buffers:
            theirs._buffers[name] = mine._buffers[name]
