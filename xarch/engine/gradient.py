"""Stage kind ``gradient``: minimise the matches of a stage by AdamW or Muon, locally per site or end to end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from xarch.contracts.batch import Batch
from xarch.contracts.data import BatchStream
from xarch.contracts.stage import EarlyEnd, StageContext, StageKind, StageOutcome
from xarch.engine.context import EngineContext
from xarch.engine.guards import (
    finite,
    first_nonfinite_gradient,
    first_nonfinite_module,
    is_out_of_memory,
    release_memory,
)
from xarch.engine.local import SiteWalk
from xarch.engine.schedule import lr_factor
from xarch.engine.seeds import restore_rng, rng_state
from xarch.engine.stopping import StoppingRule
from xarch.engine.stopwatch import Spent, Stopwatch
from xarch.engine.terms import StepFigures, Term, build_terms, objective_modules, weights_at
from xarch.engine.trainable import Trainable, select
from xarch.errors import DivergedError, Interrupted, OutOfMemoryError


class Gradient(StageKind):
    """The built-in gradient stage."""

    def run(self, context: StageContext) -> StageOutcome:
        assert isinstance(context, EngineContext)
        return GradientStage(context).run()


def _silent(done: int, total: int, text: str) -> None:
    """Progress of what takes a moment."""


class GradientStage:
    """State of one running gradient stage."""

    def __init__(self, context: EngineContext) -> None:
        self.context = context
        self.stage = context.planned.config
        self.local = self.stage.scope == "local"
        runtime = context.config.runtime
        wanted = runtime.sharding == "fsdp2" or (runtime.sharding == "auto" and context.device.type == "cuda")
        sharded = context.ranks.shard(context.student) if wanted and not self.local else None
        self.sharded = sharded is not None
        self.student = sharded or context.student
        self.terms = build_terms(context.pairs, context.objective, context.guard, context.device)
        self.objectives = objective_modules(self.terms)
        self.by_site: dict[str, list[Term]] = {}
        for term in self.terms:
            self.by_site.setdefault(term.pair.site or "", []).append(term)
        self.walk = SiteWalk.for_pairs(self.student, context.pairs) if self.local else None
        self.teacher_taps = set().union(*(p.teacher_taps for p in context.pairs))
        self.student_taps = {p.student.name for p in context.pairs}
        chosen = select(self.student, self.stage.trains)
        self.trainable = Trainable(self.student, chosen, self.objectives, self.stage.optimiser, fused=not self.sharded)
        self.sites = list(self.by_site) if self.local else []
        self.micro_batch = self.stage.micro_batch or max(1, math.ceil(context.planned.batch / context.ranks.world))
        self.steps = context.planned.steps
        self.ending = StoppingRule(self.stage.until, self.steps, self.stage.optimiser)
        self.watch = Stopwatch()
        self.trained = self.seen = Spent()
        self.units = 0
        self.lr_scale = 1.0
        self.oom_retries = 0
        self.watched = False
        self.losses: dict[str, list[Tensor]] = {}
        self._validation_before: float | None = None
        self._resumed_figures: dict[str, float] = {}

    def run(self) -> StageOutcome:
        """All steps, from the newest checkpoint if there is one."""
        context = self.context
        self.student.module.train()
        keep_start = self.stage.validation is not None or context.config.runtime.on_nan == "retry"
        start = self._snapshot() if keep_start else {}
        stream = context.batches()
        stream_start = stream.state_dict()
        self.watched = stream.watches_losses and not self.local
        first = self._resume(stream)
        validation: dict[str, Any] = {}
        checks = context.validation(self.stage.validation.samples) if self.stage.validation else []
        before = self._evaluate(checks, context.progress) if checks and first == 0 else None
        if checks and first > 0:
            before = self._validation_before
        self._validation_before = before
        figures, step = dict(self._resumed_figures), first
        per_pass = self.steps // self.stage.passes
        self.watch, self.seen = Stopwatch(self.trained), self.trained
        while not self.ending.over:
            if step % per_pass == 0 and step > 0:
                stream.load_state_dict(stream_start)
            batch = next(stream)
            try:
                figures = self._step(batch, step)
            except DivergedError as error:
                if context.config.runtime.on_nan != "retry" or self.lr_scale < 1.0:
                    raise
                context.say(f"{error.what}; retrying from the last checkpoint at half the learning rate")
                step = self._rewind(stream, stream_start, start)
                continue
            if self.watched:
                stream.take_losses(batch, self._whole_losses(len(batch)))
            step += 1
            self.units += batch.units
            self._follow(figures["loss"])
            over = self.ending.over
            if step % self.stage.log_every == 0 or over:
                context.metrics.row(context.planned.folder, step, figures, self.units)
                if context.ranks.main:
                    context.on_step(step, figures)
            context.reporter.step(step, self.ending.end, figures, batch.units)
            if context.curve.on and not over:
                self._add_point(step)
            stopping = context.ranks.any(context.stop.received is not None)
            if not over and (step % self.stage.checkpoint_every == 0 or stopping):
                self._save(step, stream, figures)
            if stopping and not over:
                raise Interrupted(
                    f"stopped by {context.stop.received or 'another process'} after step {step} of stage {context.name}"
                )
        if checks and step > first:
            # What is stopped or killed from here on resumes with the validation, no step is taken again.
            self._save(step, stream, figures)
        training, ended = self.watch.spent.rounded(), self._early_end()
        if checks and before is not None:
            after = self._evaluate(checks, context.progress)
            kept = "after"
            if self.stage.validation and self.stage.validation.keep == "better" and not after <= before:
                self._restore(start)
                kept = "before"
                context.say(
                    f"stage {context.name}: validation loss rose from {before:.5g} to {after:.5g}; "
                    "its changes were undone"
                )
            validation = {"before": before, "after": after, "kept": kept}
        outcome = self._finish(figures, validation)
        outcome.training, outcome.ended = training, ended
        return outcome

    def _follow(self, loss: float) -> None:
        """Tell the ending of a step; where it may decide, every process hears the figures of the main one."""
        context, falling = self.context, self.ending.falling
        figures = {"loss": loss, "seconds": self.watch.spent.seconds}
        if self.stage.until is not None and context.ranks.world > 1:
            figures = context.ranks.sum_dict({k: v * context.ranks.main for k, v in figures.items()})
        self.ending.see(figures["loss"], figures["seconds"])
        if self.ending.falling and not falling and not self.ending.over:
            before, after = self.ending.means
            context.say(
                f"stage {context.name}: the loss is on a plateau at step {self.ending.done} of {self.steps} "
                f"({before:.5g}, then {after:.5g}); the learning rate falls until step {self.ending.end}"
            )

    def _add_point(self, step: int) -> None:
        """A point of the quality curve, where one is due by the main process' clock."""
        context, spent = self.context, self.watch.spent
        due = context.curve.due(step, self.seen.seconds, spent.seconds)
        self.seen = spent
        if not context.ranks.any(due and context.ranks.main):
            return
        with self.watch.paused():
            if self.sharded:
                context.ranks.collect_into(self.student, context.student)
            context.curve.point(context.planned.folder, step, self.units, context.student, spent)
            self.student.module.train()
            context.ranks.barrier()

    def _early_end(self) -> EarlyEnd | None:
        """Where and why the stage ended before its budget was read, told once."""
        ending, context = self.ending, self.context
        if not ending.reason:
            return None
        context.say(f"stage {context.name} ended at step {ending.done} of {self.steps}: {ending.reason}")
        context.metrics.row(context.planned.folder, ending.done, {"ended_early": 1.0, "planned_steps": self.steps})
        return EarlyEnd(ending.done, self.steps, self.units, ending.reason)

    def _finish(self, figures: Mapping[str, float], validation: Mapping[str, Any]) -> StageOutcome:
        context = self.context
        self.student.module.eval()
        for parameter in self.student.module.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        if self.sharded:
            context.ranks.collect_into(self.student, context.student)
            context.ranks.drop_shards()
            context.student.module.eval()
        per_site: dict[str, dict[str, float]] = {}
        sites = {k.removeprefix("site."): v for k, v in figures.items() if k.startswith("site.")}
        if sites:
            per_site["loss"] = sites
        for key, value in figures.items():
            if key.startswith("monitor."):
                _, name, site = key.split(".", 2)
                per_site.setdefault(name, {})[site] = value
        metrics = {k: v for k, v in figures.items() if k in ("loss", "grad_norm") or k.startswith("match.")}
        metrics |= {f"validation_{k}": v for k, v in validation.items() if isinstance(v, float)}
        outcome = StageOutcome(metrics=metrics, per_site=per_site)
        if validation:
            outcome.metrics["validation_kept_after"] = float(validation["kept"] == "after")
        return outcome

    def _step(self, batch: Batch, step: int) -> dict[str, float]:
        rng_tensors, rng_data = rng_state()
        while True:
            try:
                return self._attempt(batch, step)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(error)
            restore_rng(rng_tensors, rng_data)

    def _halve(self, error: Exception) -> None:
        context = self.context
        coupled = sorted({t.pair.match.objective for t in self.terms if t.objective.couples == "batch"})
        self.oom_retries += 1
        reason = None
        if coupled:
            reason = f"objective {', '.join(coupled)} couples the samples of a batch, so the batch cannot be cut"
        elif self.micro_batch <= 1:
            reason = "a micro-batch is already a single sample"
        elif self.oom_retries > context.config.runtime.oom_retries:
            reason = f"{context.config.runtime.oom_retries} retries are used up"
        if reason is not None:
            raise OutOfMemoryError(
                f"out of memory in stage {context.name}: {str(error).splitlines()[0]}; {reason} "
                f"(the plan estimated {context.planned.memory_bytes / 1e9:.2f} GB)",
                "use shorter samples, a smaller batch, or another device",
            ) from error
        self.trainable.zero_grad()
        release_memory()
        self.micro_batch = max(1, self.micro_batch // 2)
        context.say(f"out of memory in stage {context.name}; continuing with micro-batches of {self.micro_batch}")

    def _attempt(self, batch: Batch, step: int) -> dict[str, float]:
        context = self.context
        self.trainable.zero_grad()
        if not self.local:
            with torch.no_grad():
                batch = self.student.prepare(batch, context.teacher, context.name, step)
        mine = context.ranks.slice(batch)
        weights = weights_at(self.terms, self.ending.position, self.steps)
        denominators = self._denominators(mine)
        figures = StepFigures()
        self.losses = {}
        for part in mine.split(math.ceil(len(mine) / self.micro_batch)):
            self._backward(part, weights, denominators, figures)
        context.ranks.reduce_gradients(self.trainable.named.items())
        sites = max(len(self.sites), 1)
        row = figures.row(context.ranks.sum_dict, sites)
        self._check(row["loss"], None, batch, step)
        norm = self.trainable.clip(self.sites, self.stage.optimiser.clip)
        self._check(row["loss"], norm, batch, step)
        factor = lr_factor(self.ending.lr_position, self.steps, self.stage.optimiser)
        lr = self.stage.optimiser.lr * factor * self.lr_scale
        self.trainable.step(lr)
        self.trainable.zero_grad()
        for term in self.terms:
            term.objective.after_step()
        return {**row, "lr": lr, "grad_norm": norm, **self._monitors()}

    def _whole_losses(self, samples: int) -> dict[str, Tensor]:
        """Loss of every sample of the batch of the last step, by student tap."""
        return {k: self.context.ranks.joined(torch.cat(v), samples).cpu() for k, v in self.losses.items()}

    def _denominators(self, batch: Batch) -> list[float]:
        total = torch.stack([t.denominator(batch).double() for t in self.terms])
        return [max(v, 1e-12) for v in self.context.ranks.sum(total).tolist()]

    def _backward(self, part: Batch, weights: list[float], denominators: list[float], figures: StepFigures) -> None:
        """Forward and backward of one micro-batch; values are read once at the end to keep devices busy."""
        context = self.context
        index = {id(t): i for i, t in enumerate(self.terms)}
        seen = part.seen_by("student")
        recorded: list[tuple[Term, Tensor, float]] = []
        each: dict[str, Tensor] = {}

        def backward(terms: list[Term], student: Mapping[str, Any], teacher: Mapping[str, Any], local: bool) -> None:
            total: Tensor | None = None
            for term in terms:
                i = index[id(term)]
                value = student[term.pair.local if local else term.pair.student.name]
                own = term.losses(value, teacher, seen)
                if self.watched:
                    label = term.pair.label
                    each[label] = own.detach().float() + each.get(label, 0.0)
                loss = own.sum() / denominators[i]
                recorded.append((term, loss.detach(), weights[i]))
                total = weights[i] * loss if total is None else total + weights[i] * loss
            if total is not None and total.requires_grad:
                total.backward()

        if self.walk is not None:

            def on_site(site: str, student: dict[str, Any], teacher: dict[str, Any]) -> None:
                backward(self.by_site[site], student, teacher, True)

            with context.autocast():
                self.walk.run(context.feed, part, on_site, grad=True)
        else:
            teacher: dict[str, Any] = {}
            context.feed.run(part, self.teacher_taps, teacher.__setitem__)
            with torch.enable_grad(), context.autocast():
                student = self.student.collect(seen, self.student_taps)
                backward(self.terms, student, teacher, False)
        for label, values_B in each.items():
            self.losses.setdefault(label, []).append(values_B)
        if recorded:
            values = torch.stack([v.float() for _, v, _ in recorded]).tolist()
            for (term, _, weight), value in zip(recorded, values, strict=True):
                figures.add(term, value, weight)

    def _monitors(self) -> dict[str, float]:
        out: dict[str, float] = {}
        for term in self.terms:
            for name, value in term.objective.monitor().items():
                out[f"monitor.{name}.{term.pair.site or term.pair.label}"] = value
        return out

    def _check(self, loss: float, norm: float | None, batch: Batch, step: int) -> None:
        """No update from a number that is not finite.

        Raises:
            DivergedError: naming the first module or gradient that is not finite.
        """
        bad_gradient = self.context.ranks.any(norm is not None and not finite(norm))
        if finite(loss) and not bad_gradient:
            return
        context = self.context
        where = None
        if not finite(loss):
            where = first_nonfinite_module(self.student.module, lambda: self._evaluate([batch], _silent))
            where = f"module {where}" if where else "the objective or the teacher's values"
        else:
            name = first_nonfinite_gradient(self.trainable.named.items())
            where = f"the gradient of {name}" if name else "a gradient in another process"
        what = "loss" if not finite(loss) else "gradient norm"
        raise DivergedError(
            f"{what} is {loss if what == 'loss' else norm} in stage {context.name} at step {step + 1} of {self.steps}; "
            f"first non-finite: {where}; no update was made",
            f"lower it with `--set stages.{context.name}.optimiser.lr={self.stage.optimiser.lr / 3:.1e}` "
            "or use `--set runtime.on_nan=retry`, then resume",
        )

    def _evaluate(self, batches: list[Batch], progress: Callable[[int, int, str], None]) -> float:
        """Mean weighted loss on whole batches without gradients; memory that runs out is answered as in a step."""
        self.student.module.eval()
        total = 0.0
        for done, batch in enumerate(batches):
            progress(done, len(batches), "validating")
            loss = None
            while loss is None:
                try:
                    loss = self._whole_loss(batch)
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                    self._halve(error)
            total += loss
        self.student.module.train()
        return total / max(len(batches), 1)

    def _whole_loss(self, batch: Batch) -> float:
        figures = StepFigures()
        mine = self.context.ranks.slice(batch)
        weights = weights_at(self.terms, self.steps - 1, self.steps)
        denominators = self._denominators(mine)
        with torch.no_grad():
            for part in mine.split(math.ceil(len(mine) / self.micro_batch)):
                self._measure(part, weights, denominators, figures)
        return self.context.ranks.sum_dict({"loss": figures.loss})["loss"]

    def _measure(self, part: Batch, weights: list[float], denominators: list[float], figures: StepFigures) -> None:
        context = self.context
        seen = part.seen_by("student")
        index = {id(t): i for i, t in enumerate(self.terms)}

        def add(terms: list[Term], student: Mapping[str, Any], teacher: Mapping[str, Any], local: bool) -> None:
            for term in terms:
                i = index[id(term)]
                value = student[term.pair.local if local else term.pair.student.name]
                figures.add(term, float(term.loss(value, teacher, seen)) / denominators[i], weights[i])

        with context.autocast():
            if self.walk is not None:
                self.walk.run(context.feed, part, lambda s, st, te: add(self.by_site[s], st, te, True), grad=False)
            else:
                teacher: dict[str, Any] = {}
                context.feed.run(part, self.teacher_taps, teacher.__setitem__)
                add(self.terms, self.student.collect(seen, self.student_taps), teacher, False)

    def _buffers(self) -> dict[str, Tensor]:
        student = {f"buffer.{k}": v for k, v in self.student.module.named_buffers()}
        return student | {f"objective_buffer.{k}": v for k, v in self.objectives.named_buffers()}

    def _snapshot(self) -> dict[str, Tensor]:
        values, _ = self.trainable.tensors(self.context.ranks)
        return {k: v.clone() for k, v in (values | self._buffers()).items()}

    def _restore(self, values: Mapping[str, Tensor], moments: Mapping[str, Tensor] | None = None) -> None:
        self.trainable.load(values, moments or {}, self.context.ranks)
        with torch.no_grad():
            for name, buffer in self._buffers().items():
                buffer.copy_(values[name].to(buffer.device))

    def _save(self, step: int, stream: BatchStream, figures: Mapping[str, float]) -> None:
        context = self.context
        values, moments = self.trainable.tensors(context.ranks)
        rng_tensors, rng_data = rng_state()
        if context.ranks.main:
            position = stream.state_dict()
            drawn = {f"stream|{k}": v for k, v in position.items() if isinstance(v, Tensor)}
            context.checkpoints.save(
                step,
                model={**values, **self._buffers()},
                trainer={**moments, **{f"rng|{k}": v for k, v in rng_tensors.items()}, **drawn},
                state={
                    "stream": {k: v for k, v in position.items() if not isinstance(v, Tensor)},
                    "rng": rng_data,
                    "units": self.units,
                    "micro_batch": self.micro_batch,
                    "lr_scale": self.lr_scale,
                    "metrics_size": context.metrics.size(),
                    "curve_size": context.curve.size(),
                    "validation_before": self._validation_before,
                    # JSON knows finite numbers only, and an outcome states no others.
                    "figures": {k: v for k, v in figures.items() if math.isfinite(v)},
                    "ending": self.ending.state_dict(),
                    "training": vars(self.watch.spent),
                },
            )
        context.ranks.barrier()

    def _resume(self, stream: BatchStream) -> int:
        """Load the newest checkpoint; returns the step to go on from."""
        found = self.context.checkpoints.latest()
        if found is None or found.final:
            self.context.metrics.cut(self.context.metrics_start)
            self.context.curve.cut(self.context.curve_start)
            return 0
        parts: dict[str, dict[str, Tensor]] = {"rng": {}, "stream": {}, "": {}}
        for name, tensor in found.trainer.items():
            kind, _, rest = name.partition("|")
            parts[kind if kind in parts else ""][rest if kind in parts else name] = tensor
        self._restore(found.model, parts[""])
        restore_rng(parts["rng"], found.state["rng"])
        stream.load_state_dict({**found.state["stream"], **parts["stream"]})
        self.units = found.state["units"]
        self.micro_batch = found.state["micro_batch"]
        self.lr_scale = found.state["lr_scale"]
        self._validation_before = found.state["validation_before"]
        self._resumed_figures = found.state.get("figures", {})
        self.trained = Spent(**found.state["training"])
        self.ending.load_state_dict(found.state["ending"], self.trained.seconds)
        self.context.metrics.cut(found.state["metrics_size"])
        self.context.curve.cut(found.state["curve_size"])
        self.context.say(f"stage {self.context.name} goes on from step {found.step}")
        return found.step

    def _rewind(self, stream: BatchStream, stream_start: Mapping[str, Any], start: Mapping[str, Tensor]) -> int:
        step = self._resume(stream)
        if step == 0:
            self._restore(start)
            stream.load_state_dict(stream_start)
            self.ending.forget()
            self.units = 0
        self.lr_scale = 0.5
        return step
