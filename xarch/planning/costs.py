"""Memory and time of one stage, itemised so that they can be checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xarch.config.schema import Stage
from xarch.contracts.adapters import SourceInfo
from xarch.contracts.local import sites_of
from xarch.contracts.objective import MatchContext
from xarch.contracts.stage import StageKind, StageRequest
from xarch.failures import is_machine_failure
from xarch.hardware import process_bytes
from xarch.matching.pairing import Pair
from xarch.matching.references import BATCH, COPIES, MAIN, RANDOM, STUDENT
from xarch.matching.schedules import phase_settings
from xarch.optim.groups import trained_groups
from xarch.planning import estimate
from xarch.planning.activations import StepTrace
from xarch.planning.batches import PlannedBatches, meta_batch
from xarch.planning.optimisation import PlannedOptimiser
from xarch.planning.trace import Cost, TooLong

if TYPE_CHECKING:
    from xarch.planning.stages import StagePlanner


@dataclass
class StageEstimate:
    """Bytes and seconds of a stage by part, and their assumptions."""

    memory: dict[str, int] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class StageCosts:
    """Cost estimate of a stage.

    Attributes:
        plan: the planner, which provides both models and the rates of the machine.
        request: the stage's settings and sizes.
        pairs, batches, context: the stage as planned.
        units, steps: units read and steps taken.
    """

    plan: StagePlanner
    request: StageRequest
    pairs: Sequence[Pair]
    batches: PlannedBatches
    context: MatchContext
    units: int
    steps: int

    @property
    def stage(self) -> Stage:
        """Settings of the stage."""
        settings: Stage = self.request.settings
        return settings

    @property
    def each(self) -> int:
        """Units per sample."""
        return self.request.units_per_sample

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of free dimensions: those of the sample, completed by those of the data."""
        declared = {k: n for info in self.batches.tensors.values() for k, n in info.shape.items()}
        return declared | dict(self.plan.data.sizes(self.stage.sample))

    @property
    def micro_batch(self) -> int:
        """Samples per forward pass."""
        return self.stage.micro_batch or self.stage.batch.size

    def read(self, model: str) -> set[str]:
        """Return the taps that the stage reads from a model, including inputs of its sites."""
        found = {name for pair in self.pairs for name in pair.reads(model)}
        if model == MAIN:
            sites = sites_of(self.plan.student)
            used = {pair.site for pair in self.pairs if pair.site is not None}
            found |= {tap for site in used for tap in sites[site].inputs.values()}
        return found

    def estimate(self, kind: StageKind, cached: bool, optimiser: PlannedOptimiser) -> StageEstimate:
        """Estimate memory and time, with the teacher cached or not."""
        made = StageEstimate()
        step, why = self._step()
        if why:
            made.notes.append(why)
        self._memory(made, step, optimiser)
        self._times(made, step, optimiser, kind, cached)
        return made

    def trained(self) -> set[str]:
        """Names of the student parameters that train."""
        return set(trained_groups(self.plan.student, phase_settings(self.stage, "stage")))

    def _step(self) -> tuple[Cost, str]:
        """Return the cost of forward and backward of a micro-batch, and why it is a formula, if it is."""
        if not self.pairs:
            return Cost(), ""
        whole = meta_batch(self.batches.tensors, self.micro_batch, self.micro_batch * self.each, self.sizes)
        why = "the data do not declare all sizes"
        if whole is not None and whole.tensors:
            trace = StepTrace(
                self.pairs,
                self.plan.student,
                self.trained(),
                whole.seen_by(STUDENT),
                self.plan.taps,
                self.sizes,
                self.plan.registry,
                self.context,
            )
            try:
                return trace.measure(), ""
            except TooLong:
                why = "too many operators to count"
            except Exception as e:  # Some code cannot run without data; the run itself has data.
                if is_machine_failure(e):
                    raise
                why = f"the step does not run on the meta device ({type(e).__name__}: {str(e)[:120]})"
        return self._formula(), f"activations and work estimated by a rule of thumb: {why}"

    def _formula(self) -> Cost:
        student = self.plan.student
        every = [t for taps in (student.taps(), *self.plan.taps.values()) for t in taps.values()]
        width = max([t.shape.get(t.layout[-1], 0) for t in every if t.dense], default=0)
        depth = len({t.name.rpartition(".")[0] for t in student.taps().values()})
        total = sum(p.numel() for p in student.module.parameters())
        sizes = {n: p.numel() for n, p in student.module.named_parameters()}
        share = sum(sizes[n] for n in self.trained()) / max(total, 1)
        return estimate.formula_cost(
            self.micro_batch,
            student.work(self.stage.sample) * self.each,
            width,
            self.micro_batch * self.each,
            1 if self.stage.scope == "local" else depth,
            share,
        )

    def _memory(self, made: StageEstimate, step: Cost, optimiser: PlannedOptimiser) -> None:
        plan, module = self.plan, self.plan.student.module
        names = self.trained()
        sizes = {n: p.numel() for n, p in module.named_parameters()}
        trained = sum(sizes[n] for n in names)
        extra = sum(p.parameters for p in self.pairs)
        own = estimate.weight_bytes(module)
        copies = self._copies()
        made.memory = {
            "process": process_bytes(),
            "teachers": estimate.FLOAT * (sum(i.parameters for i in self._infos().values()) + self._random()),
            "student": own + copies * own,
            "gradients": estimate.FLOAT * (trained + extra),
            "optimiser": estimate.FLOAT * (optimiser.moments(module, names) + extra * optimiser.rest.moments()),
            "connectors": estimate.FLOAT * extra,
            "activations": int((step.saved + 2 * step.transient) * (0.5 if plan.bf16 else 1.0)),
            "teacher values": self._held(made),
        }
        if self.stage.ema is not None:
            made.memory["average"] = estimate.FLOAT * trained
        if self.stage.validation is not None and self.stage.validation.keep != "last":
            made.memory["kept weights"] = estimate.FLOAT * trained

    def _copies(self) -> int:
        """Return the copies of the student that matches read."""
        refs = {n: t.ref for n, t in self.plan.config.teachers.items()}
        models = {refs.get(m, m) for m in self._models()}
        return len(models & set(COPIES))

    def _random(self) -> int:
        refs = {n: t.ref for n, t in self.plan.config.teachers.items()}
        reads = RANDOM in {refs.get(m, m) for m in self._models()}
        return self._infos()[MAIN].parameters if reads else 0

    def _infos(self) -> dict[str, SourceInfo]:
        """Return the infos of teachers with their own weights; "" is the main one."""
        sides = self.plan.sides
        main = {MAIN: sides.teacher.info} if sides.teacher is not None else {}
        return main | {name: t.info for name, t in sides.teachers.items()}

    def _models(self) -> set[str]:
        """Return the models besides the student that the stage's matches read."""
        found = {r.model for p in self.pairs for r in (*p.right.values(), *p.aux.values())}
        return (found | ({MAIN} if self.read(MAIN) else set())) - {BATCH, STUDENT}

    def _held(self, made: StageEstimate) -> int:
        """Return the bytes of teacher values held for the student: all in a global stage, those of one site in a local
        one."""
        total = 0
        for model in self._models() - set(COPIES):
            taps = self.plan.taps[MAIN if model == RANDOM else model]
            names = self.read(model)
            size = estimate.value_bytes([taps[n] for n in names], self.sizes)
            if size is None:
                made.notes.append("teacher values of a structured form are not counted")
                continue
            local = len({p.site for p in self.pairs}) if self.stage.scope == "local" else 1
            total += size * self.micro_batch // max(local, 1)
        return total

    def _times(
        self, made: StageEstimate, step: Cost, optimiser: PlannedOptimiser, kind: StageKind, cached: bool
    ) -> None:
        plan, rates, stage = self.plan, self.plan.rates, self.stage
        student = plan.student.work(stage.sample)
        teacher = self._teacher_work()
        micro = -(-stage.batch.size // self.micro_batch)
        forwards = self.units / stage.passes if cached else self.units
        if not kind.trains:
            work = kind.work(self.request, student=student, teacher=teacher)
            made.times = {stage.kind: rates.of_work(work * self.units)}
            return
        overhead = estimate.STEP_OPERATORS + len(self.pairs) * estimate.MATCH_OPERATORS
        made.times = {
            "teacher": rates.of_work(teacher * forwards),
            "engine": self.steps * overhead * rates.operator,
        }
        if self.pairs:
            if teacher:
                # A teacher is not traced. It has about as many operators as the student's forward pass, a third of the
                # step, and runs in every step whose values are not cached.
                share = forwards / max(self.units, 1) * self._passes()
                made.times["teacher"] += share * self.steps * micro * step.operators / 3 * rates.operator
            names = self.trained()
            sizes = {n: p.numel() for n, p in plan.student.module.named_parameters()}
            moved = sum(sizes[n] for n in names) + sum(p.parameters for p in self.pairs)
            traffic = estimate.FLOAT * moved * (4 + 2 * optimiser.kind.moments())
            made.times["student"] = self.steps * micro * optimiser.gradients * rates.seconds(step)
            made.times["optimiser"] = self.steps * (
                traffic / rates.traffic + rates.of_work(optimiser.work(plan.student.module, names))
            )
        steps = self.batches.work(stage.sample, student=student, teacher=teacher)
        if steps:
            made.times["batch steps"] = rates.of_work(steps * self.units)
        if stage.validation is not None:
            points = 2 + (self.steps // stage.validation.every if stage.validation.every else 0)
            work = points * stage.validation.samples * self.each * (student + teacher)
            made.times["validation"] = rates.of_work(work)
        if stage.until is not None and stage.until.seconds is not None:
            planned = sum(made.times.values())
            if planned > stage.until.seconds:
                made.times = {k: v * stage.until.seconds / planned for k, v in made.times.items()}
                made.notes.append(f"it ends after {stage.until.seconds:g} s of training")

    def _teacher_work(self) -> float:
        """Return the multiply-adds per unit of all models that the stage runs besides the student."""
        total = 0.0
        refs = {n: t.ref for n, t in self.plan.config.teachers.items()}
        models = self._models() if self.pairs else {MAIN}
        for model in models:
            kind = refs.get(model, model)
            if kind in COPIES:
                total += self.plan.student.work(self.stage.sample)
                continue
            info = self._infos().get(MAIN if kind == RANDOM else model)
            if info is not None:
                total += info.facts.work(self.stage.sample) * (self._passes() if model == MAIN else 1)
        return total

    def _passes(self) -> float:
        """Return how many forward passes of the main teacher give what the stage reads from it."""
        taps = self.plan.taps.get(MAIN, {})
        return 1 + max((float(taps[name].info.get("passes", 0)) for name in self.read(MAIN)), default=0.0)
