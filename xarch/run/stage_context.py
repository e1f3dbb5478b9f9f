"""Assembles the context of a stage from its run: models, matches, data, caches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from xarch.config.schema import Stage
from xarch.config.validation import validated
from xarch.contracts.data import DataInfo
from xarch.contracts.local import sites_of
from xarch.contracts.model import Student, TapModel, Teacher
from xarch.contracts.objective import MatchContext
from xarch.contracts.stage import StageKind
from xarch.contracts.tap import Tap
from xarch.engine.assembly import EMA_COPY, SELF_COPY, Assembled, StageParts, assemble, copies_read
from xarch.engine.checkpoint import CheckpointFolder
from xarch.engine.context import EngineContext
from xarch.engine.teacher import MAIN, TeacherFeed
from xarch.engine.teacher_cache import SharedTeacherCache, TeacherCache
from xarch.files.home import cache_dir
from xarch.matching.pairing import Pair, pair_phases
from xarch.matching.references import RANDOM
from xarch.matching.schedules import phase_settings
from xarch.optim.schedules import LearningRate
from xarch.planning.batches import PlannedBatches, plan_batches
from xarch.planning.describe import Describer, family_of
from xarch.planning.plan import PlannedStage
from xarch.run.parts import RunParts


@dataclass
class ContextBuilder(RunParts):
    """Builder of the context of one stage.

    Attributes:
        planned, kind: the planned stage and its kind.
        folder: folder of its checkpoints.
        metrics_start, curve_start: positions of the two logs at its beginning.
        data_counters: updated by its stream.
    """

    planned: PlannedStage
    kind: StageKind
    folder: CheckpointFolder
    metrics_start: Mapping[str, Any]
    curve_start: Mapping[str, Any]
    data_counters: dict[str, int]

    def build(self) -> tuple[EngineContext, dict[str, TeacherCache]]:
        """Return the context, and the caches of its teachers."""
        planned, config, sides = self.planned, self.plan.config, self.sides
        stage, where = planned.config, f"stages.{planned.name}"
        phases = phase_settings(stage, where)
        info = self._described(stage)
        prepared = [plan_batches(self.registry, planned.name, settings, info) for settings in phases]
        seed = config.seed * 1000 + planned.index
        matching = self._match_context(info)
        pairs = self._pairs(phases, prepared, matching) if self.kind.trains else []
        aliases = {name: given.ref for name, given in config.teachers.items() if given.ref in (EMA_COPY, SELF_COPY)}
        copies = copies_read(pairs, aliases)
        models: dict[str, TapModel] = {} if sides.viewed is None else {MAIN: sides.viewed}
        models |= sides.teachers
        caches = self._caches(pairs, info)
        feed = TeacherFeed(models, self.autocast, caches, copies)
        sharded = self._sharded(stage, copies)
        cutting: dict[str, Any] = {}

        def put_together() -> Assembled:
            parts = StageParts(
                name=planned.name,
                phases=phases,
                pairs=pairs,
                student=sharded or self.student,
                context=matching,
                registry=self.registry,
                config=config,
                seed=seed,
                device=self.device,
                processes=self.ranks,
                autocast=self.autocast,
                estimated=planned.memory_bytes,
                sharded=sharded is not None,
                cutting=cutting,
                say=self.reporter.message,
            )
            return assemble(parts, models, feed, copies)

        context = EngineContext(
            name=planned.name,
            options=self._options(stage, where),
            steps=planned.steps,
            sites=self._sites(),
            seed=seed,
            student=sharded or self.student,
            teacher=sides.viewed,
            teachers=models,
            data=info.facts,
            device=self.device,
            processes=self.ranks,
            rate=self._rate(stage, where),
            retry=config.runtime.on_nan == "retry",
            planned=planned,
            config=config,
            adapter=sides.target.adapter,
            phases=phases,
            prepared=prepared,
            put_together=put_together,
            whole=self.student,
            feed=feed,
            folder=self.folder,
            metrics=self.metrics,
            curve=self.curve,
            reporter=self.reporter,
            stop=self.stop,
            open_stream=sides.open,  # type: ignore[arg-type]
            measure=lambda student, samples, metric, split: self.evaluator.measure(
                {"student": student},
                samples,
                metric=metric,
                split=split,  # type: ignore[arg-type]
                quiet=True,
            ),
            on_step=lambda step, row: self.registry.call(
                "xarch_step_finished", run=self.run, stage=planned, step=step, metrics=row
            ),
            metrics_start=self.metrics_start,
            curve_start=self.curve_start,
            data_counters=self.data_counters,
            cutting=cutting,
        )
        return context, caches

    def _described(self, stage: Stage) -> DataInfo:
        facts = None if self.sides.teacher is None else self.sides.teacher.facts
        return Describer(self.registry, self.reporter.message).data(self.plan.config, facts, stage.sample).info

    def _options(self, stage: Stage, where: str) -> Any:
        model = self.sides.target.adapter.solver_options() if self.kind.solves else self.kind.Options
        return validated(model, stage.options, f"{where}.options")

    def _rate(self, stage: Stage, where: str) -> LearningRate:
        settings = stage.optimiser
        schedule = self.registry.create("schedule", settings.schedule.name)
        options = validated(schedule.Options, settings.schedule.options, f"{where}.optimiser.schedule")
        return LearningRate(schedule, options, settings.warmup, settings.final)

    def _match_context(self, info: DataInfo) -> MatchContext:
        viewed = self.sides.viewed
        return MatchContext(
            steps=max(self.planned.steps, 1),
            data=info.facts,
            teacher={} if viewed is None else viewed.constants(),
            student=self.student.constants(),
            weights={name: given.weight for name, given in self.plan.config.teachers.items()},
        )

    def _pairs(self, phases: Sequence[Stage], prepared: Sequence[PlannedBatches], context: MatchContext) -> list[Pair]:
        """Return the pairs of the current student: decisions of earlier stages may have changed it since planning."""
        return pair_phases(
            self.planned.name,
            phases,
            [batches.tensors for batches in prepared],
            student=self.student,
            teachers=self._taps(),
            mask=family_of(self.registry, self.student.family).mask,
            registry=self.registry,
            context=_on_meta(context),
        )

    def _taps(self) -> dict[str, Mapping[str, Tap]]:
        found: dict[str, Mapping[str, Tap]] = {}
        if self.sides.viewed is not None:
            found[MAIN] = found[RANDOM] = self.sides.viewed.taps()
        found |= {name: teacher.taps() for name, teacher in self.sides.teachers.items()}
        for name, given in self.plan.config.teachers.items():
            if given.ref in (EMA_COPY, SELF_COPY):
                found[name] = self.student.taps()
        return found

    def _sites(self) -> list[str]:
        """Return the planned sites that the student still has: earlier stages may have removed some."""
        sites = sites_of(self.student)
        return [site for site in self.planned.sites if site in sites]

    def _caches(self, pairs: Sequence[Pair], info: DataInfo) -> dict[str, TeacherCache]:
        """Return a cache for every teacher whose taps read by this stage are all plain tensors."""
        runtime, stage = self.plan.config.runtime, self.planned.config
        shared = runtime.cache == "shared" and stage.teacher_cache != "off" and "sample_id" in info.tensors
        if not pairs or not (shared or self.planned.cache.use):
            return {}
        teachers: dict[str, Teacher] = {} if self.sides.viewed is None else {MAIN: self.sides.viewed}
        caches: dict[str, TeacherCache] = {}
        for name, teacher in {**teachers, **self.sides.teachers}.items():
            taps = [r.tap for p in pairs for r in (*p.right.values(), *p.aux.values()) if r.model == name]
            if name == MAIN and stage.scope == "local":
                known = teacher.taps()
                sites = sites_of(self.student)
                taps += [known[tap] for site in self._sites() for tap in sites[site].inputs.values()]
            if not taps or not all(tap.dense for tap in taps):
                continue
            identity = f"{teacher.fingerprint}|{runtime.precision}|{self.device.type}"
            limit = int(runtime.cache_gb * 1e9)
            if shared:
                data = self.plan.config.data
                told = [identity, info.digest, data.ref, data.options, stage.sample]
                caches[name] = SharedTeacherCache(cache_dir() / "teachers", repr(told), limit, self.reporter.message)
            else:
                folder = self.folder.folder.parent / "teacher-cache"
                caches[name] = TeacherCache(folder, f"{identity}|{name}", limit, self.reporter.message)
        return caches

    def _sharded(self, stage: Stage, copies: Mapping[str, str]) -> Student | None:
        """Return a sharded copy of the student if several processes train it end to end."""
        chosen = self.plan.config.runtime.sharding
        wanted = chosen == "fsdp2" or (chosen == "auto" and self.device.type == "cuda")
        if not (wanted and self.kind.trains and stage.scope == "global") or copies:
            return None
        return self.ranks.shard(self.student)


def _on_meta(context: MatchContext) -> MatchContext:
    """Return a copy on the meta device: checks need shapes only."""
    return replace(
        context,
        teacher={key: value.to("meta") for key, value in context.teacher.items()},
        student={key: value.to("meta") for key, value in context.student.items()},
    )
