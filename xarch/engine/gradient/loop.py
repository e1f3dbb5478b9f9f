"""Training loop of a gradient stage, from its beginning or its newest checkpoint to its end."""

from __future__ import annotations

from collections.abc import Mapping

from xarch.config.intervals import checkpoint_every, log_every
from xarch.contracts.stage import EarlyEnd, StageContext, StageKind, StageOutcome
from xarch.engine.gradient.recovery import Running
from xarch.engine.gradient.step import Place, take_step
from xarch.engine.gradient.validation import Validator
from xarch.engine.stopping import StoppingRule
from xarch.errors import DivergedError


class Gradient(StageKind):
    """Minimise the matches of a stage by gradient descent, locally per site or end to end."""

    trains = True
    resumes = True

    def run(self, context: StageContext) -> StageOutcome:
        return _Stage(context).run()


class _Stage:
    def __init__(self, context: StageContext) -> None:
        self.context, self.settings = context, context.settings
        stream = context.batches()
        validation = self.settings.validation
        self.running = Running(
            context,
            stream,
            StoppingRule(self.settings.until, context.steps, context.rate),
            Validator(context, validation) if validation is not None else None,
            origin=stream.state_dict(),
        )
        self.watched = stream.watches_losses and self.settings.scope == "global"

    def run(self) -> StageOutcome:
        """Run all steps."""
        context, running, checks = self.context, self.running, self.running.validator
        trainable = context.trainable()
        context.matches()
        if checks is not None or context.retry:
            running.start = trainable.snapshot()
        running.resume()
        first = running.step
        if checks is not None and checks.before is None:
            checks.begin()
        while not running.stopping_rule.over:
            if checks is not None and checks.due(running.step):
                checks.check(running.step)
            try:
                self._step()
            except DivergedError as error:
                if not context.retry or running.lr_scale < 1.0:
                    raise
                context.say(f"{error.what}; retrying from the last checkpoint at half the learning rate")
                running.rewind()
                continue
            self._save_where_due()
        if checks is not None and running.step > first:
            # A run stopped or killed after this point resumes with the validation and repeats no step.
            running.save()
        training, ended = context.clock.spent.rounded(), self._early_end()
        outcome = _outcome(running.figures)
        if checks is not None:
            checks.finish(running.step, running.start, outcome)
        outcome.training, outcome.ended = training, ended
        return outcome

    def _step(self) -> None:
        context, running, rule = self.context, self.running, self.running.stopping_rule
        step = running.step
        if step and step % max(context.steps // self.settings.passes, 1) == 0 and self.settings.passes > 1:
            running.stream.load_state_dict(running.origin)
        read = next(running.stream)
        place = Place(step, rule.progress, rule.lr_position, running.lr_scale)
        batch = context.prepare(read, step, place.progress)
        due = (step + 1) % log_every(self.settings, context.steps) == 0
        logged = due or step + 1 >= rule.end or self.settings.until is not None
        running.figures = take_step(context, batch, place, monitored=logged)
        if self.watched:
            running.stream.take_losses(batch, context.matches().losses())
        running.step += 1
        running.units += read.units
        self._update_stopping_rule(running.figures["loss"])
        end = running.step if rule.over else rule.end
        context.step_done(running.step, end, running.figures, read=read.units, units=running.units)

    def _save_where_due(self) -> None:
        running, context = self.running, self.context
        stopping = context.stopping()
        if running.stopping_rule.over:
            return
        if stopping or running.step % checkpoint_every(self.settings, context.steps) == 0:
            running.save()
        if stopping:
            context.progress(running.step, running.stopping_rule.end)

    def _update_stopping_rule(self, loss: float) -> None:
        """Update the stopping rule; with early stopping enabled, all ranks use rank 0's figures."""
        context, rule = self.context, self.running.stopping_rule
        falling = rule.falling
        seconds = 0.0
        if self.settings.until is not None:
            # The clock of the processor takes milliseconds where there are many threads; only a limit needs it.
            loss, seconds = context.processes.of_main([loss, context.clock.spent.seconds])
        rule.update(loss, seconds)
        if rule.falling and not falling and not rule.over:
            before, after = rule.means
            context.say(
                f"stage {context.name}: loss plateau at step {rule.done} of {context.steps} "
                f"({before:.5g}, then {after:.5g}); the learning rate decays until step {rule.end}"
            )

    def _early_end(self) -> EarlyEnd | None:
        """Return where and why the stage ended early, and report it once."""
        rule, context = self.running.stopping_rule, self.context
        if not rule.reason:
            return None
        context.say(f"stage {context.name} ended at step {rule.done} of {context.steps}: {rule.reason}")
        context.log(rule.done, ended_early=1.0, planned_steps=context.steps)
        return EarlyEnd(rule.done, context.steps, self.running.units, rule.reason)


def _outcome(figures: Mapping[str, float]) -> StageOutcome:
    per_site: dict[str, dict[str, float]] = {}
    for key, value in figures.items():
        kind, _, rest = key.partition(".")
        if kind == "site":
            per_site.setdefault("loss", {})[rest] = value
        elif kind == "monitor":
            name, _, where = rest.partition(".")
            per_site.setdefault(name, {})[where] = value
    shown = ("loss", "grad_norm")
    metrics = {k: v for k, v in figures.items() if k in shown or k.startswith(("match.", "weighted."))}
    return StageOutcome(metrics=metrics, per_site=per_site)
