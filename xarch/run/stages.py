"""Run the stages of a plan in order; finished ones are restored from their checkpoints instead."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xarch.config.schema import RunConfig
from xarch.contracts.adapters import TargetAdapter
from xarch.contracts.model import Student, Teacher
from xarch.contracts.stage import StageOutcome
from xarch.engine.checkpoint import Checkpoint, StageCheckpoints, assert_handover
from xarch.engine.context import EngineContext, OpenStream
from xarch.engine.curve import QualityCurve
from xarch.engine.distributed import Distributed
from xarch.engine.events import Reporter
from xarch.engine.metrics import MetricsLog
from xarch.engine.seeds import seed_everything
from xarch.engine.signals import StopRequest
from xarch.engine.stopwatch import Spent, Stopwatch
from xarch.engine.teacher import TeacherCache, TeacherFeed
from xarch.errors import UsageError
from xarch.files.atomic import write_json
from xarch.files.digest import combined_hash, tensor_hashes
from xarch.files.run_dir import RunDir
from xarch.matching.pairing import pairs_of
from xarch.planning.plan import Plan, PlannedStage
from xarch.registry.registry import Registry


@dataclass
class StageRunner:
    """Runs one stage after the other on the run's student.

    Attributes:
        plan, run, registry, reporter, ranks, device, metrics, curve, stop, student, teacher, adapter: of the run.
        initialising: what the student's initialisation took.
        open_stream: opens the data of a split.
        baseline: evaluates the student before any gradient step; its figures go into the stage's folder.
        autocast: precision of forward passes.
        decisions: what the stages decided so far.
    """

    plan: Plan
    run: RunDir
    registry: Registry
    reporter: Reporter
    ranks: Distributed
    device: torch.device
    metrics: MetricsLog
    curve: QualityCurve
    stop: StopRequest
    student: Student
    teacher: Teacher
    adapter: TargetAdapter
    initialising: Spent
    open_stream: OpenStream
    baseline: Callable[[Student, Path], None]
    autocast: Callable[[], contextlib.AbstractContextManager[object]]

    def __post_init__(self) -> None:
        self.decisions: dict[str, Any] = {}
        self.data_counters: dict[str, int] = {}
        self._metrics_end = self._curve_end = 0

    @property
    def config(self) -> RunConfig:
        """Of the plan."""
        return self.plan.config

    def say(self, text: str) -> None:
        """One line for a person and the log."""
        self.reporter.message(text)

    def run_all(self) -> dict[str, Any]:
        """Every stage of the plan, from the first unfinished one on; returns what they decided."""
        self._curve_end = self.curve.begin(self.student, self.initialising)
        hashes = tensor_hashes(self.student.module.state_dict())
        trained = False
        for planned in self.plan.stages:
            folder = self.run.stage(planned.index, planned.name)
            checkpoints = StageCheckpoints(folder / "checkpoints", self.say)
            found = checkpoints.latest(final_only=True)
            if found is not None:
                hashes = self._restore(planned, found, hashes, folder)
                trained = trained or planned.kind == "gradient"
                continue
            if planned.kind == "gradient" and not trained:
                trained = True
                self.baseline(self.student, folder)
            hashes = self._run(planned, folder, checkpoints, hashes)
        self.student.finish()
        return self.decisions

    def _restore(
        self, planned: PlannedStage, found: Checkpoint, before: dict[str, str], folder: Path
    ) -> dict[str, str]:
        assert_handover(found.state["hash_before"], combined_hash(before), planned.name)
        outcome = StageOutcome(**found.state["outcome"])
        self._decide(outcome)
        self._load_delta(found.model)
        hashes = tensor_hashes(self.student.module.state_dict())
        assert_handover(found.state["hash_after"], combined_hash(hashes), f"after {planned.name}")
        self._metrics_end, self._curve_end = found.state["metrics_size"], found.state["curve_size"]
        self.curve.before += Spent(**found.state["summary"]["training"])
        if self.ranks.main and not (folder / "summary.json").exists():
            write_json(folder / "summary.json", found.state["summary"])
        self.say(f"stage {planned.name} is done already")
        return hashes

    def _load_delta(self, tensors: dict[str, Tensor]) -> None:
        state = self.student.module.state_dict()
        with torch.no_grad():
            for name, tensor in tensors.items():
                if name not in state:
                    raise UsageError(f"checkpoint holds {name!r}, which the student does not have")
                state[name].copy_(tensor)

    def _decide(self, outcome: StageOutcome) -> None:
        if outcome.decisions:
            self.student.decide(outcome.decisions)
            self.decisions |= outcome.decisions

    def _run(
        self, planned: PlannedStage, folder: Path, checkpoints: StageCheckpoints, before: dict[str, str]
    ) -> dict[str, str]:
        total = len(self.plan.stages)
        steps = planned.steps if planned.kind == "gradient" else 0
        self.reporter.stage_started(planned.index, total, planned.name, planned.kind, steps)
        context, cache = self._context(planned, checkpoints)
        self.registry.call("xarch_stage_started", run=self.run, stage=planned)
        seed_everything(context.seed)
        self.data_counters.clear()
        kind = self.registry.create("stage", planned.kind)
        spec = self.registry.get("stage", planned.kind)
        started = time.monotonic()
        watch = Stopwatch()
        if planned.kind != "gradient":
            # Such a stage starts again from its beginning, so what an interrupted one has logged must go.
            self.metrics.cut(self._metrics_end)
            self.curve.cut(self._curve_end)
        with self.registry.guard(spec, f"stage {planned.name!r}"):
            outcome: StageOutcome = kind.run(context)
        outcome.training = outcome.training or watch.spent.rounded()
        # A figure without a finite value (an endless half-life) cannot be written down and says nothing in a table.
        outcome.metrics = _stated(outcome.metrics)
        outcome.per_site = {name: _stated(row) for name, row in outcome.per_site.items()}
        self._decide(outcome)
        ended, spent = outcome.ended, Spent(**outcome.training)
        taken = ended.step if ended else planned.steps
        units = ended.units if ended else planned.units
        if self.curve.on:
            self.curve.point(planned.folder, taken, units, self.student, spent)
            self.curve.before += spent
            self.ranks.barrier()
        state = self.student.module.state_dict()
        hashes = tensor_hashes(state)
        changed = {k: v for k, v in state.items() if before.get(k) != hashes[k]}
        summary = {
            "name": planned.name,
            "kind": planned.kind,
            "seconds": round(time.monotonic() - started, 3),
            "training": outcome.training,
            "units": units,
            "steps": taken,
            "ended": vars(ended) if ended else None,
            "undone": outcome.undone,
            "changed_tensors": len(changed),
            "metrics": outcome.metrics,
            "per_site": outcome.per_site,
            "decisions": outcome.decisions,
            "data": dict(self.data_counters),
            "teacher_cache": {"hits": cache.hits, "writes": cache.writes} if cache else None,
        }
        self._metrics_end, self._curve_end = self.metrics.size(), self.curve.size()
        if self.ranks.main:
            checkpoints.save(
                taken,
                model=changed,
                trainer={},
                final=True,
                state={
                    "hash_before": combined_hash(before),
                    "hash_after": combined_hash(hashes),
                    "outcome": {
                        "metrics": outcome.metrics,
                        "decisions": outcome.decisions,
                        "per_site": outcome.per_site,
                    },
                    "metrics_size": self._metrics_end,
                    "curve_size": self._curve_end,
                    "summary": summary,
                },
            )
            write_json(folder / "summary.json", summary)
        self.ranks.barrier()
        if cache is not None and self.ranks.main:
            cache.clear()
        self.reporter.stage_finished(planned.name, outcome)
        self.registry.call("xarch_stage_finished", run=self.run, stage=planned, outcome=outcome)
        return hashes

    def _context(
        self, planned: PlannedStage, checkpoints: StageCheckpoints
    ) -> tuple[EngineContext, TeacherCache | None]:
        sites = [s for s in self.student.sites() if fnmatchcase(s, planned.config.sites)]
        planned = planned.model_copy(update={"sites": sites if planned.scope == "local" else []})
        pairs = []
        if planned.kind == "gradient":
            pairs = pairs_of(planned.name, planned.config, self.student, dict(self.teacher.taps()), self.registry)
        cache = None
        if planned.cache.use:
            identity = f"{self.teacher.fingerprint}|{self.config.runtime.precision}|{self.device.type}"
            cache = TeacherCache(
                checkpoints.folder.parent / "teacher-cache", identity, int(self.config.runtime.cache_gb * 1e9), self.say
            )
        return (
            EngineContext(
                name=planned.name,
                options=planned.config.options,
                seed=self.config.seed * 1000 + planned.index,
                student=self.student,
                teacher=self.teacher,
                planned=planned,
                config=self.config,
                adapter=self.adapter,
                pairs=pairs,
                objective=lambda name: self.registry.resolve(self.registry.get("objective", name)),
                guard=lambda name: self.registry.guard(self.registry.get("objective", name), f"stage {planned.name!r}"),
                device=self.device,
                ranks=self.ranks,
                feed=TeacherFeed(self.teacher, self.autocast, cache),
                checkpoints=checkpoints,
                metrics=self.metrics,
                curve=self.curve,
                reporter=self.reporter,
                stop=self.stop,
                open_stream=self.open_stream,
                autocast=self.autocast,
                say=self.say,
                metrics_start=self._metrics_end,
                curve_start=self._curve_end,
                data_counters=self.data_counters,
                on_step=lambda step, row: self.registry.call(
                    "xarch_step_finished", run=self.run, stage=planned, step=step, metrics=row
                ),
            ),
            cache,
        )


def _stated(figures: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if math.isfinite(value)}
