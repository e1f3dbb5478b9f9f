"""Run the stages of a plan in order; finished ones are restored from their checkpoints instead."""

from __future__ import annotations

import math
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xarch.contracts.stage import StageOutcome
from xarch.engine.checkpoint import Checkpoint, StageCheckpoints, assert_handover, combined_hash, tensor_hashes
from xarch.engine.context import EngineContext
from xarch.engine.seeds import seed_everything
from xarch.engine.stopwatch import Spent, Stopwatch
from xarch.engine.teacher import TeacherCache, TeacherFeed
from xarch.errors import UsageError
from xarch.files.atomic import write_json
from xarch.planning.build import pairs_of
from xarch.planning.plan import PlannedStage

if TYPE_CHECKING:
    from xarch.run.conversion import Conversion


class StageRunner:
    """Runs one stage after the other on the conversion's student.

    Attributes:
        decisions: what the stages decided so far.
    """

    def __init__(self, conversion: Conversion) -> None:
        self.conversion = conversion
        self.decisions: dict[str, Any] = {}
        self._metrics_end = self._curve_end = 0

    def run_all(self) -> None:
        """Every stage of the plan, from the first unfinished one on."""
        c = self.conversion
        self._curve_end = c.curve.begin(c.student, c.initialising)
        hashes = tensor_hashes(c.student.module.state_dict())
        trained = False
        for planned in c.plan.stages:
            folder = c.run.stage(planned.index, planned.name)
            checkpoints = StageCheckpoints(folder / "checkpoints", c.say)
            found = checkpoints.latest(final_only=True)
            if found is not None:
                hashes = self._restore(planned, found, hashes, folder)
                trained = trained or planned.kind == "gradient"
                continue
            if planned.kind == "gradient" and not trained:
                trained = True
                c.baseline(folder)
            hashes = self._run(planned, folder, checkpoints, hashes)
        c.student.finish()

    def _restore(
        self, planned: PlannedStage, found: Checkpoint, before: dict[str, str], folder: Path
    ) -> dict[str, str]:
        c = self.conversion
        assert_handover(found.state["hash_before"], combined_hash(before), planned.name)
        outcome = StageOutcome(**found.state["outcome"])
        self._decide(outcome)
        self._load_delta(found.model)
        hashes = tensor_hashes(c.student.module.state_dict())
        assert_handover(found.state["hash_after"], combined_hash(hashes), f"after {planned.name}")
        self._metrics_end, self._curve_end = found.state["metrics_size"], found.state["curve_size"]
        c.curve.before += Spent(**found.state["summary"]["training"])
        if c.ranks.main and not (folder / "summary.json").exists():
            write_json(folder / "summary.json", found.state["summary"])
        c.say(f"stage {planned.name} is done already")
        return hashes

    def _load_delta(self, tensors: dict[str, Tensor]) -> None:
        state = self.conversion.student.module.state_dict()
        with torch.no_grad():
            for name, tensor in tensors.items():
                if name not in state:
                    raise UsageError(f"checkpoint holds {name!r}, which the student does not have")
                state[name].copy_(tensor)

    def _decide(self, outcome: StageOutcome) -> None:
        if outcome.decisions:
            self.conversion.student.decide(outcome.decisions)
            self.decisions |= outcome.decisions

    def _run(
        self, planned: PlannedStage, folder: Path, checkpoints: StageCheckpoints, before: dict[str, str]
    ) -> dict[str, str]:
        c = self.conversion
        total = len(c.plan.stages)
        steps = planned.steps if planned.kind == "gradient" else 0
        c.reporter.stage_started(planned.index, total, planned.name, planned.kind, steps)
        context, cache = self._context(planned, checkpoints)
        c.registry.call("xarch_stage_started", run=c.run, stage=planned)
        seed_everything(context.seed)
        c.data_counters.clear()
        kind = c.registry.create("stage", planned.kind)
        spec = c.registry.get("stage", planned.kind)
        started = time.monotonic()
        watch = Stopwatch()
        if planned.kind != "gradient":
            # Such a stage starts again from its beginning, so what an interrupted one has logged must go.
            c.metrics.cut(self._metrics_end)
            c.curve.cut(self._curve_end)
        with c.registry.guard(spec, f"stage {planned.name!r}"):
            outcome: StageOutcome = kind.run(context)
        outcome.training = outcome.training or watch.spent.rounded()
        # A figure without a finite value (an endless half-life) cannot be written down and says nothing in a table.
        outcome.metrics = _stated(outcome.metrics)
        outcome.tables = {name: _stated(row) for name, row in outcome.tables.items()}
        self._decide(outcome)
        ended, spent = outcome.ended, Spent(**outcome.training)
        taken = ended.step if ended else planned.steps
        units = ended.units if ended else planned.units
        if c.curve.on:
            c.curve.point(planned.folder, taken, units, c.student, spent)
            c.curve.before += spent
            c.ranks.barrier()
        state = c.student.module.state_dict()
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
            "changed_tensors": len(changed),
            "metrics": outcome.metrics,
            "tables": outcome.tables,
            "decisions": outcome.decisions,
            "data": dict(c.data_counters),
            "teacher_cache": {"hits": cache.hits, "writes": cache.writes} if cache else None,
        }
        self._metrics_end, self._curve_end = c.metrics.size(), c.curve.size()
        if c.ranks.main:
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
                        "tables": outcome.tables,
                    },
                    "metrics_size": self._metrics_end,
                    "curve_size": self._curve_end,
                    "summary": summary,
                },
            )
            write_json(folder / "summary.json", summary)
        c.ranks.barrier()
        if cache is not None and c.ranks.main:
            cache.clear()
        c.reporter.stage_finished(planned.name, outcome)
        c.registry.call("xarch_stage_finished", run=c.run, stage=planned, outcome=outcome)
        return hashes

    def _context(
        self, planned: PlannedStage, checkpoints: StageCheckpoints
    ) -> tuple[EngineContext, TeacherCache | None]:
        c = self.conversion
        sites = [s for s in c.student.sites() if fnmatchcase(s, planned.config.sites)]
        planned = planned.model_copy(update={"sites": sites if planned.scope == "local" else []})
        pairs = []
        if planned.kind == "gradient":
            pairs = pairs_of(planned.name, planned.config, c.student, dict(c.teacher.taps()), c.registry)
        cache = None
        if planned.cache.use:
            identity = f"{c.teacher.fingerprint}|{c.config.runtime.precision}|{c.device.type}"
            cache = TeacherCache(
                checkpoints.folder.parent / "teacher-cache", identity, int(c.config.runtime.cache_gb * 1e9), c.say
            )
        return (
            EngineContext(
                name=planned.name,
                options=planned.config.options,
                seed=c.config.seed * 1000 + planned.index,
                student=c.student,
                teacher=c.teacher,
                planned=planned,
                config=c.config,
                adapter=c.target.adapter,
                pairs=pairs,
                objective=lambda name: c.registry.resolve(c.registry.get("objective", name)),
                guard=lambda name: c.registry.guard(c.registry.get("objective", name), f"stage {planned.name!r}"),
                device=c.device,
                ranks=c.ranks,
                feed=TeacherFeed(c.teacher, c.autocast, cache),
                checkpoints=checkpoints,
                metrics=c.metrics,
                curve=c.curve,
                reporter=c.reporter,
                stop=c.stop,
                open_stream=c.open_stream,
                autocast=c.autocast,
                say=c.say,
                metrics_start=self._metrics_end,
                curve_start=self._curve_end,
                data_counters=c.data_counters,
                on_step=lambda step, row: c.registry.call(
                    "xarch_step_finished", run=c.run, stage=planned, step=step, metrics=row
                ),
            ),
            cache,
        )


def _stated(figures: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if math.isfinite(value)}
