"""Runs the stages of a plan in order; finished stages are restored from their checkpoints."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xarch.config.schema import RunConfig
from xarch.contracts.stage import StageKind, StageOutcome
from xarch.engine.checkpoint import Checkpoint, CheckpointFolder, assert_handover
from xarch.engine.context import EngineContext
from xarch.engine.guards import first_nonfinite_tensor
from xarch.engine.seeds import seed_everything
from xarch.engine.stopwatch import Spent, Stopwatch
from xarch.engine.teacher_cache import TeacherCache
from xarch.errors import DivergedError, UsageError
from xarch.files.digest import combined_hash, tensor_hashes
from xarch.files.run_dir import NO_ROWS
from xarch.planning.plan import PlannedStage
from xarch.run.parts import RunParts
from xarch.run.requirements import check_requirements
from xarch.run.stage_context import ContextBuilder


@dataclass
class StageRunner(RunParts):
    """Runs one stage after the other on the run's student.

    Attributes:
        initialising: time spent on the student's initialisation.
        decided: what decides bits, kept with every checkpoint.
        decisions: decisions of the stages so far.
    """

    initialising: Spent
    decided: Callable[[], dict[str, Any]]

    def __post_init__(self) -> None:
        self.decisions: dict[str, Any] = {}
        self.data_counters: dict[str, int] = {}
        self._metrics_end: Mapping[str, Any] = NO_ROWS
        self._curve_end: Mapping[str, Any] = NO_ROWS

    @property
    def config(self) -> RunConfig:
        """Configuration of the plan."""
        return self.plan.config

    def say(self, text: str) -> None:
        """Write one line to the display and the log."""
        self.reporter.message(text)

    def run_all(self) -> dict[str, Any]:
        """Run all stages of the plan, starting with the first unfinished one; return their decisions."""
        self._curve_end = self.curve.begin(self.student, self.initialising)
        hashes = tensor_hashes(self.student.module.state_dict())
        trained = False
        for planned in self.plan.stages:
            folder = self.run.stage(planned.index, planned.name)
            checkpoints = CheckpointFolder(folder / "checkpoints", self.say, self.decided)
            kind: StageKind = self.registry.create("stage", planned.kind)
            found = checkpoints.latest(final_only=True)
            if found is not None:
                hashes = self._restore(planned, found, hashes, folder)
                trained = trained or kind.trains
                continue
            if kind.trains and not trained:
                trained = True
                self.evaluator.baseline(self.student, folder)
            hashes = self._run(planned, kind, folder, checkpoints, hashes)
        self.student.finish()
        return self.decisions

    def _restore(
        self, planned: PlannedStage, found: Checkpoint, before: dict[str, str], folder: Path
    ) -> dict[str, str]:
        assert_handover(found.state["hash_before"], combined_hash(before), planned.name)
        outcome = StageOutcome(**found.state["outcome"])
        with self._hooks():
            self.student.begin(planned.name, planned.config.options)
            self.student.end(outcome)
        self._decide(outcome)
        self._load_delta(found.model)
        hashes = tensor_hashes(self.student.module.state_dict())
        assert_handover(found.state["hash_after"], combined_hash(hashes), f"after {planned.name}")
        self._metrics_end, self._curve_end = found.state["metrics"], found.state["curve"]
        self.curve.before += Spent(**found.state["summary"]["training"])
        if self.ranks.main and not (folder / "summary.json").exists():
            self.run.write_json(folder / "summary.json", found.state["summary"])
        self.say(f"stage {planned.name} is already done")
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
        self,
        planned: PlannedStage,
        kind: StageKind,
        folder: Path,
        checkpoints: CheckpointFolder,
        before: dict[str, str],
    ) -> dict[str, str]:
        steps = planned.steps if kind.trains else 0
        self.reporter.stage_started(planned.index, len(self.plan.stages), planned.name, planned.kind, steps)
        if planned.config.requires and checkpoints.latest() is None and not self.config.tiny:
            check_requirements(planned, self.student, self.sides, self.evaluator)
        self.data_counters.clear()
        with self._hooks():
            self.student.begin(planned.name, planned.config.options)
        context, caches = self._context(planned, kind, checkpoints)
        self.registry.call("xarch_stage_started", run=self.run, stage=planned)
        seed_everything(context.seed)
        whole = Stopwatch()
        if not kind.resumes:
            # Such a stage restarts from its beginning, so rows logged by an interrupted attempt must be removed.
            self.metrics.cut(self._metrics_end)
            self.curve.cut(self._curve_end)
        spec = self.registry.get("stage", planned.kind)
        # A stage that saves checkpoints stops after one. Others restart from their beginning, so they stop at once, but
        # several processes stop together.
        waits = kind.resumes or self.ranks.world > 1
        with (
            self.stop.deferred() if waits else contextlib.nullcontext(),
            self.registry.guard(spec, f"stage {planned.name!r}"),
        ):
            outcome = kind.run(context)
        outcome.training = outcome.training or context.clock.spent.rounded()
        context.finish()
        _require_numbers(planned.name, {"": outcome.metrics, **outcome.per_site})
        # An infinite figure (e.g. an infinite half-life) cannot be stored in JSON and is useless in a table.
        outcome.metrics = _stated(outcome.metrics)
        outcome.per_site = {name: _stated(row) for name, row in outcome.per_site.items()}
        with self._hooks():
            self.student.end(outcome)
        self._decide(outcome)
        hashes = self._keep(planned, outcome, folder, checkpoints, before, caches, whole)
        for cache in caches.values() if self.ranks.main else ():
            cache.clear()
        self.reporter.stage_finished(planned.name, outcome)
        self.registry.call("xarch_stage_finished", run=self.run, stage=planned, outcome=outcome)
        return hashes

    def _hooks(self) -> contextlib.AbstractContextManager[None]:
        """Attribute errors of the student's hooks to its target."""
        return self.registry.guard(self.registry.get("target", self.sides.target.name), "stage hooks")

    def _keep(
        self,
        planned: PlannedStage,
        outcome: StageOutcome,
        folder: Path,
        checkpoints: CheckpointFolder,
        before: dict[str, str],
        caches: dict[str, TeacherCache],
        whole: Stopwatch,
    ) -> dict[str, str]:
        """Write the stage's final checkpoint and its summary; return the hashes of the student's tensors."""
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
        broken = first_nonfinite_tensor(changed.items())
        if broken is not None:
            raise DivergedError(
                f"stage {planned.name} left NaN or infinity in the student; first non-finite: {broken}",
                "the stage is not marked as done; change its settings in a new run",
            )
        if planned.trains and not changed and not outcome.undone:
            outcome.undone = "it changed no tensor of the student"
            self.say(f"stage {planned.name}: {outcome.undone}")
        said = {
            "metrics": outcome.metrics,
            "decisions": outcome.decisions,
            "per_site": outcome.per_site,
            "undone": outcome.undone,
        }
        summary = {
            "name": planned.name,
            "kind": planned.kind,
            **whole.spent.rounded(),
            "training": outcome.training,
            "units": units,
            "steps": taken,
            "ended": vars(ended) if ended else None,
            "undone": outcome.undone,
            "changed_tensors": len(changed),
            **said,
            "data": dict(self.data_counters),
            "teacher_cache": {
                "hits": sum(c.hits for c in caches.values()),
                "writes": sum(c.writes for c in caches.values()),
            }
            if caches
            else None,
        }
        self._metrics_end, self._curve_end = self.metrics.mark(), self.curve.mark()
        if self.ranks.main:
            checkpoints.save(
                taken,
                model=changed,
                trainer={},
                final=True,
                state={
                    "hash_before": combined_hash(before),
                    "hash_after": combined_hash(hashes),
                    "outcome": said,
                    "metrics": dict(self._metrics_end),
                    "curve": dict(self._curve_end),
                    "summary": summary,
                },
            )
            self.run.write_json(folder / "summary.json", summary)
        self.ranks.barrier()
        return hashes

    def _context(
        self, planned: PlannedStage, kind: StageKind, checkpoints: CheckpointFolder
    ) -> tuple[EngineContext, dict[str, TeacherCache]]:
        builder = ContextBuilder(
            **self.shared(),
            planned=planned,
            kind=kind,
            folder=checkpoints,
            metrics_start=self._metrics_end,
            curve_start=self._curve_end,
            data_counters=self.data_counters,
        )
        return builder.build()


def _require_numbers(stage: str, tables: Mapping[str, Mapping[str, float]]) -> None:
    """Check the figures of a stage.

    Raises:
        DivergedError: one is not a number.
    """
    for table, figures in tables.items():
        for name, value in figures.items():
            if math.isnan(value):
                raise DivergedError(
                    f"stage {stage}: {f'{table} of ' if table else ''}{name} is not a number",
                    "the values it was computed from are not finite; check the stage's options",
                )


def _stated(figures: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if math.isfinite(value)}
