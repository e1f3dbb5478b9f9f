"""Plans the stages of a configuration: matches, data budgets, steps, memory and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch

from xarch.config.intervals import checkpoint_every, log_every
from xarch.config.schema import Stage
from xarch.config.validation import validated
from xarch.contracts.data import DataInfo, DataProvider
from xarch.contracts.local import sites_of
from xarch.contracts.objective import MatchContext
from xarch.contracts.stage import StageKind, StageRequest
from xarch.contracts.tap import Tap
from xarch.errors import PlanError, UsageError
from xarch.matching.coupling import cuttable
from xarch.matching.pairing import Pair, pair_phases
from xarch.matching.places import at_places
from xarch.matching.references import COPIES, EMA, MAIN, RANDOM, STUDENT, MissingTap, near
from xarch.matching.schedules import phase_settings
from xarch.optim.groups import CONNECTORS, OBJECTIVES, trained_groups
from xarch.planning import estimate
from xarch.planning.batches import plan_batches
from xarch.planning.costs import StageCosts
from xarch.planning.describe import family_of
from xarch.planning.idle import ReadModels
from xarch.planning.optimisation import plan_optimiser
from xarch.planning.plan import CachePlan, Check, PlannedMatch, PlannedStage
from xarch.planning.sides import Sides
from xarch.planning.stage_settings import NamedFigures, check_figures, check_kind

TINY_STEPS = 6
TINY_BATCH = 2
PARTS = (CONNECTORS, OBJECTIVES)
"""Groups of ``trains`` that do not belong to the student."""
SIDES = ("teacher", "student")


class StagePlanner:
    """Plans the stages of one configuration.

    Args:
        sides: the plan's models and data.
        device: device of the run; its rates are measured briefly.
        threads: CPU threads of the run.
        metric: the run's metric, None without one.

    Attributes:
        read: models that the stages planned so far read.
    """

    def __init__(self, sides: Sides, device: torch.device, threads: int, metric: str | None = None) -> None:
        self.sides, self.config, self.registry = sides, sides.config, sides.registry
        self.student, self.taps = sides.student, sides.taps()
        self.data: DataProvider = sides.data.adapter.adapter
        self.figures = NamedFigures(self.registry, metric, self.student.family, self.student.spends)
        self.read = ReadModels()
        self.bf16 = self.config.runtime.precision == "bf16" or (
            self.config.runtime.precision == "auto" and device.type == "cuda"
        )
        self.rates = estimate.measure_rates(device, torch.bfloat16 if self.bf16 else torch.float32, threads)

    @property
    def rate(self) -> float:
        """Return the multiply-adds per second of a forward pass."""
        return self.rates.products

    def _models(self) -> dict[str, Mapping[str, Tap]]:
        """Taps of the models that batch steps may run; copies of the student exist only where matches read them."""
        given = self.config.teachers
        kept = {n: t for n, t in self.taps.items() if n == MAIN or (n in given and given[n].ref not in COPIES)}
        return {STUDENT: self.student.taps(), **kept}

    def active(self) -> tuple[list[tuple[str, Stage]], list[str]]:
        """Return the stages that run, and why others are left out: optional ones, and those without a budget."""
        chosen: list[tuple[str, Stage]] = []
        left_out: list[str] = []
        for name, stage in self.config.stages.items():
            if stage.skip:
                continue
            kind: StageKind = self.registry.create("stage", stage.kind, where=f"stages.{name}.kind")
            if kind.trains and self._given(stage) == 0:
                left_out.append(f"stage {name} is skipped: its budget is 0 units of training data")
                continue
            try:
                if stage.optional:
                    settings = self._settings(stage)
                    described = self._describe(settings.sample)
                    self._pairs(name, settings, described, self._context(1, described))
            except MissingTap as e:
                left_out.append(f"stage {name} is skipped: {e.what}")
            else:
                chosen.append((name, stage))
        return chosen, left_out

    def stage(self, index: int, name: str, given: Stage) -> PlannedStage:
        """Resolve one stage; its ``config`` holds the settings for the run's configuration.

        Raises:
            UsageError, PlanError: the stage cannot run as configured.
        """
        stage = self._settings(given)
        kind: StageKind = self.registry.create("stage", stage.kind, where=f"stages.{name}.kind")
        options = self._options(name, stage, kind)
        check_kind(f"stages.{name}", stage, kind)
        self._check_figures(name, stage)
        sites = [s for s in sites_of(self.student) if fnmatchcase(s, stage.sites)] if stage.scope == "local" else []
        each = self.data.units_per_sample(stage.sample)
        described = self._describe(stage.sample)
        budget = self._budget(name, stage, each, described)
        if kind.trains and budget is None:
            raise UsageError(f"stages.{name}: the stage has no data budget", "set `share`, `epochs` or `units`")
        request = StageRequest(options, stage, each, budget, tuple(sites))
        units, steps = self._amount(name, kind, request)
        intervals = {"checkpoint_every": checkpoint_every(stage, steps), "log_every": log_every(stage, steps)}
        stage = stage.model_copy(update=intervals)
        request = replace(request, settings=stage)
        batches = plan_batches(self.registry, name, stage, described, self._models())
        context = self._context(steps, described)
        pairs: list[Pair] = []
        trained: dict[str, int] = {}
        coupled = ""
        if kind.trains:
            pairs = self._pairs(name, stage, described, context)
            self._check_average(name, stage, pairs)
            trained = self._trained(name, stage, pairs)
            coupled = self._coupled(name, stage, pairs)
        self.read.add(stage, pairs, (model for step in batches.steps for model in step.taps()))
        costs = StageCosts(self, request, pairs, batches, context, units, steps)
        cache = self._cache(stage, pairs, costs, units // each)
        optimiser = plan_optimiser(self.registry, name, stage.optimiser)
        with self.registry.guard(self.registry.get("stage", stage.kind), f"stages.{name}"):
            estimated = costs.estimate(kind, cache.use, optimiser)
        return PlannedStage(
            index=index,
            name=name,
            folder=f"{index:02d}-{name}",
            sites=sites,
            matches=[_match(p) for p in pairs],
            trains=trained,
            coupled=coupled,
            units=units,
            steps=steps,
            cache=cache,
            memory_bytes=sum(estimated.memory.values()),
            memory=estimated.memory,
            seconds=sum(estimated.times.values()),
            times=estimated.times,
            notes=estimated.notes,
        ).bind(stage)

    def _settings(self, given: Stage) -> Stage:
        """Return the effective settings: places resolved, the data's sample filled in, and fewer samples for
        ``--tiny``."""
        sample = {**self.config.data.sample, **given.sample}
        changed: dict[str, Any] = {"sample": sample}
        if self.config.tiny:
            size = min(given.batch.size, TINY_BATCH)
            changed["batch"] = given.batch.model_copy(update={"size": size})
            changed["micro_batch"] = None if given.micro_batch is None else min(given.micro_batch, size)
        return at_places(given, self._places(self.student.family), self._teachers_places()).model_copy(update=changed)

    def _places(self, family: str) -> Mapping[str, str]:
        return family_of(self.registry, family).places

    def _teachers_places(self) -> dict[str, Mapping[str, str]]:
        families = {name: described.info.family for name, described in self.sides.teachers.items()}
        if self.sides.teacher is not None:
            families[MAIN] = self.sides.teacher.info.family
        for name, given in self.config.teachers.items():
            families.setdefault(name, families.get(MAIN, "") if given.ref == RANDOM else self.student.family)
        return {name: self._places(family) for name, family in families.items() if family}

    def _options(self, name: str, stage: Stage, kind: StageKind) -> Any:
        where = f"stages.{name}.options"
        if not kind.solves:
            return validated(kind.Options, stage.options, where)
        target = self.sides.target
        with self.registry.guard(self.registry.get("target", target.name), f"stages.{name}"):
            model = target.adapter.solver_options()
        return validated(model, stage.options, where)

    def _check_figures(self, name: str, stage: Stage) -> None:
        others = (n for n, given in self.config.teachers.items() if given.ref not in COPIES)
        check_figures(f"stages.{name}", stage, self.figures, [*SIDES, *others], teacher=self.sides.teacher is not None)

    def _describe(self, sample: Mapping[str, Any]) -> DataInfo:
        """Describe the data as batches of such samples."""
        sides = self.sides
        if dict(sample) == dict(sides.data.request.sample):
            return sides.data.info
        return sides.describer.data(self.config, sides.data.request.facts, sample).info

    def _context(self, steps: int, described: DataInfo) -> MatchContext:
        constants = {} if self.sides.teacher is None else self.sides.teacher.info.constants
        return MatchContext(
            steps=max(steps, 1),
            data=described.facts,
            teacher={key: torch.empty(shape, device="meta") for key, shape in constants.items()},
            student=self.student.constants(),
            weights={name: t.weight for name, t in self.config.teachers.items()},
        )

    def _pairs(self, name: str, stage: Stage, described: DataInfo, context: MatchContext) -> list[Pair]:
        """Return the pairs at the stage's start; pairs of its phases are checked too."""
        phases = phase_settings(stage, f"stages.{name}")
        return pair_phases(
            name,
            phases,
            [plan_batches(self.registry, name, settings, described, self._models()).tensors for settings in phases],
            student=self.student,
            teachers=self.taps,
            mask=family_of(self.registry, self.student.family).mask,
            registry=self.registry,
            context=context,
        )

    def _check_average(self, name: str, stage: Stage, pairs: Sequence[Pair]) -> None:
        averages = {EMA, *(n for n, given in self.config.teachers.items() if given.ref == EMA)}
        read = [p.match for p in pairs if any(p.reads(model) for model in averages)]
        if read and stage.ema is None:
            raise PlanError(
                f"stages.{name}.matches.{read[0]} reads the averaged student, but the stage keeps no average",
                f"--set stages.{name}.ema=0.999",
            )

    def _trained(self, name: str, stage: Stage, pairs: Sequence[Pair]) -> dict[str, int]:
        """Return group -> number of parameters."""
        known = self.student.param_groups()
        unknown = sorted(set(stage.trains) - set(known) - set(PARTS))
        if unknown:
            raise UsageError(
                f"stages.{name}.trains: the student has no group {unknown[0]!r}",
                near(unknown[0], [*known, *PARTS], "groups"),
            )
        sizes = {n: p.numel() for n, p in self.student.module.named_parameters()}
        trained: dict[str, int] = {}
        for parameter, group in trained_groups(self.student, phase_settings(stage, f"stages.{name}")).items():
            trained[group] = trained.get(group, 0) + sizes[parameter]
        parts = {
            "connectors": sum(p.connector_parameters for p in pairs),
            "objectives": sum(p.objective_parameters for p in pairs),
        }
        return trained | {part: count for part, count in parts.items() if count}

    def _coupled(self, name: str, stage: Stage, pairs: Sequence[Pair]) -> str:
        trained = trained_groups(self.student, phase_settings(stage, f"stages.{name}"))
        reason = cuttable(self.student, trained, pairs) or ""
        if reason and stage.micro_batch is not None and stage.micro_batch < stage.batch.size:
            raise PlanError(
                f"stages.{name}.micro_batch: {reason}, so a batch of {stage.batch.size} cannot be split into "
                f"{stage.micro_batch}",
                f"--set stages.{name}.micro_batch=null, or use a smaller batch",
            )
        return reason

    def _amount(self, name: str, kind: StageKind, request: StageRequest) -> tuple[int, int]:
        """Return (units read, optimiser steps) of the stage."""
        stage, each = request.settings, request.units_per_sample
        with self.registry.guard(self.registry.get("stage", stage.kind), f"stages.{name}"):
            units = kind.units(request)
        size = stage.batch.size
        if self.config.tiny:
            units = min(units, TINY_STEPS * size * each * stage.passes)
        if not kind.trains and units == 0:
            return 0, 0
        passes = stage.passes if kind.trains else 1
        steps = max(1, units // passes // (size * each)) * passes
        return steps * size * each, steps

    def _budget(self, name: str, stage: Stage, each: int, described: DataInfo) -> int | None:
        if stage.units is not None and stage.epochs is not None:
            raise UsageError(
                f"stages.{name}: `units` and `epochs` are mutually exclusive",
                f"remove one: --set stages.{name}.units=null or --set stages.{name}.epochs=null",
            )
        if stage.epochs is not None:
            samples = dict(described.facts.get("samples") or {}).get("train")
            if not samples:
                raise UsageError(
                    f"stages.{name}.epochs: {self.config.data.ref} does not declare its number of training samples",
                    "set `share` or `units` instead",
                )
            return round(stage.epochs * samples * each)
        return self._given(stage)

    def _given(self, stage: Stage) -> int | None:
        """Return the stage's budget if the configuration alone fixes it, in units."""
        if stage.units is not None or stage.epochs is not None or stage.share is None:
            return stage.units
        return int(self.config.budget * stage.share)

    def _cache(self, stage: Stage, pairs: Sequence[Pair], costs: StageCosts, samples: int) -> CachePlan:
        if not pairs:
            return CachePlan(use=False, bytes=0, why="the stage has no matches")
        read = [self.taps[MAIN][tap] for tap in sorted(costs.read(MAIN))]
        limit = self.config.runtime.cache_gb
        return estimate.plan_cache(stage.teacher_cache, stage.passes, samples // stage.passes, read, costs.sizes, limit)


def coupling_checks(stages: Sequence[PlannedStage]) -> list[Check]:
    """Return one check for every stage whose batches may not be split."""
    return [
        Check(name=f"batch {s.name}", state="ok", detail=f"not split, in one process: {s.coupled}")
        for s in stages
        if s.coupled
    ]


def _match(pair: Pair) -> PlannedMatch:
    right = [f"{k}={r}" if pair.several and not pair.joined else str(r) for k, r in pair.right.items()]
    left, _ = pair.declared()
    through = pair.settings.through
    return PlannedMatch(
        match=pair.match,
        label=pair.label,
        site=pair.site,
        student=[tap.name for tap in pair.student.values()],
        right=", ".join(right),
        aux={key: str(reference) for key, reference in pair.aux.items()},
        objective=pair.settings.objective,
        connector=through.connector if through else None,
        weight=pair.settings.weight,
        mask=pair.masks[0].objective or pair.masks[0].connector,
        units=pair.units,
        parameters=pair.parameters,
        layouts=(
            left.layout if isinstance(left, Tap) else ", ".join(sorted({t.layout for t in left.values()})),
            ", ".join(sorted({r.tap.layout for r in pair.right.values()})) or "none",
        ),
    )
