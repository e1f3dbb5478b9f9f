"""Plans the stages of a configuration: matches, amounts of data, steps, memory and time."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch

from xarch.config.schema import RunConfig, Stage
from xarch.contracts.adapters import SourceInfo
from xarch.contracts.model import Student
from xarch.contracts.tap import Tap
from xarch.errors import UsageError
from xarch.matching.pairing import Pair, pairs_of
from xarch.optim import layer_matrices
from xarch.optim.muon import update_work
from xarch.planning import estimate
from xarch.planning.plan import (
    CachePlan,
    PlannedMatch,
    PlannedStage,
)
from xarch.planning.resolve import Resolved
from xarch.registry.registry import Registry

TINY_STEPS = 6


class StagePlanner:
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
        """One stage with everything resolved.

        Raises:
            UsageError, PlanError: it cannot run as configured.
        """
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
