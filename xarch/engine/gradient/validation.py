"""Validation during a stage: its loss or a metric, and the choice of the final weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from xarch.config.schema import Validation
from xarch.contracts.metric import Evaluation, named_figure
from xarch.contracts.stage import StageContext, StageOutcome
from xarch.errors import PluginError

BEST = "best|"
LOSS = "loss"


@dataclass
class Validator:
    """Measures on the validation split and keeps weights as the settings say.

    Attributes:
        context, settings: of the stage.
        before: figure before the first step; None until it is measured.
        best, best_step: best figure so far and the step at which it was measured.
        values: snapshot of the best weights, if the stage ends with them.
        last: step of the last measurement.
        higher: whether a higher figure is better.
    """

    context: StageContext
    settings: Validation
    before: float | None = None
    best: float | None = None
    best_step: int = 0
    values: dict[str, Tensor] = field(default_factory=dict)
    last: int = 0
    higher: bool = False
    _by_name: bool = False

    @property
    def figure(self) -> str:
        """Name of the measured figure."""
        return self.settings.metric or LOSS

    def begin(self) -> None:
        """Measure before the first step."""
        self.before = self._take(0)

    def due(self, step: int) -> bool:
        """Return whether a measurement is due after ``step``."""
        every = self.settings.every
        return every is not None and step > 0 and step % every == 0 and step != self.last

    def check(self, step: int) -> float:
        """Measure after ``step``."""
        found = self._take(step)
        self.context.log(step, **{f"validation.{self.figure}": found})
        return found

    def finish(self, step: int, start: Mapping[str, Tensor], outcome: StageOutcome) -> None:
        """Measure after the last step, restore the weights to keep, and report the outcome."""
        before = self.before
        assert before is not None, "begin() was called"
        after = self._take(step)
        trainable, say, name = self.context.trainable(), self.context.say, self.context.name
        keep, kept = self.settings.keep, "after"
        if keep == "better" and not self._as_good(after, before):
            trainable.restore(start)
            kept = "before"
            outcome.undone = f"validation {self.figure} got worse, from {before:.5g} to {after:.5g}"
            say(f"stage {name}: rolled back, {outcome.undone}")
        elif keep == "best" and self.best_step != step:
            trainable.restore(self.values)
            kept = "best" if self.best_step else "before"
            if not self.best_step:
                outcome.undone = (
                    f"no validation {self.figure} was better than {before:.5g} before the stage; "
                    "its changes were undone"
                )
            say(f"stage {name}: keeping the weights of step {self.best_step}, validation {self.figure} {self.best:.5g}")
        outcome.metrics |= {
            "validation_before": before,
            "validation_after": after,
            "validation_kept_after": float(kept == "after"),
        }
        if keep == "best" and self.best is not None:
            outcome.metrics |= {"validation_best": self.best, "validation_best_step": float(self.best_step)}

    def facts(self) -> dict[str, Any]:
        """Return the JSON part of the state for a checkpoint; see :meth:`tensors`."""
        return {
            "before": self.before,
            "best": self.best,
            "best_step": self.best_step,
            "last": self.last,
            "higher": self.higher,
            "by_name": self._by_name,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the best weights, for a checkpoint."""
        return {BEST + name: value for name, value in self.values.items()}

    def load(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Restore the result of :meth:`facts` and :meth:`tensors`."""
        self.before, self.best, self.best_step = facts["before"], facts["best"], facts["best_step"]
        self.last, self.higher, self._by_name = facts["last"], facts["higher"], facts["by_name"]
        self.values = {k.removeprefix(BEST): v for k, v in tensors.items() if k.startswith(BEST)}

    def forget(self) -> None:
        """Reset to the stage's beginning."""
        self.best, self.best_step, self.last, self.values = None, 0, 0, {}

    def _take(self, step: int) -> float:
        with self.context.clock.paused():
            found = self._loss() if self.settings.metric is None else self._metric(self.settings.metric)
        self.last = step
        if self.settings.keep == "best" and (self.best is None or not self._as_good(self.best, found)):
            self.best, self.best_step, self.values = found, step, self.context.trainable().snapshot()
        return found

    def _as_good(self, one: float, other: float) -> bool:
        """Return whether ``one`` is at least as good; NaN never is."""
        return one >= other if self.higher else one <= other

    def _loss(self) -> float:
        batches = self.context.validation(self.settings.samples)
        total = 0.0
        for done, batch in enumerate(batches):
            self.context.progress(done, len(batches), "validating")
            total += self.context.matches().measure([batch])[LOSS]
        return total / max(len(batches), 1)

    def _metric(self, name: str) -> float:
        def measured(metric: str | None) -> Evaluation:
            return self.context.evaluate(self.settings.samples, metric=metric)

        found = named_figure(name, "student", measured, (name,) if self._by_name else (None, name))
        if found is None:
            raise PluginError(f"metric {name!r} gave neither the figure {name!r} nor its headline figure")
        value, evaluation, metric = found
        self._by_name = metric is not None
        if self.settings.keep != "last":
            self.higher = evaluation.higher(name if name in evaluation.of("student") else evaluation.metric)
        return value
