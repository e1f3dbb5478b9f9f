"""When a gradient stage ends: after its last step, or early on a loss plateau or when its time is used up.

A stage that ends early still finishes its schedules: the learning rate decays to its planned final value, over as many
steps as a stage planned with this length would use. Its unread budget is not passed on; later stages keep their planned
steps.
"""

from __future__ import annotations

import math
from typing import Any

from xarch.config.schema import Until
from xarch.optim.schedules import LearningRate

PLATEAU, TIME = "plateau", "time"


class StoppingRule:
    """Decides when a stage ends, and reports its position in the schedules.

    The loss is averaged over consecutive, non-overlapping windows of steps, from the end of the warm-up to the step
    where the schedule decays anyway. All decisions depend only on figures that are the same on every rank.

    Args:
        until: conditions that may end the stage early, or None.
        steps: of the plan.
        rate: the learning rate, whose schedule must finish.

    Attributes:
        end: steps after which the stage ends, as currently known.
        reason: "plateau" or "time" once one of them ends the stage, "" before.
        means: losses of the last two complete windows, newest last.
    """

    def __init__(self, until: Until | None, steps: int, rate: LearningRate) -> None:
        self.until, self.steps, self.rate = until, steps, rate
        self.limit = until.seconds if until is not None else None
        self.warm, self.falls = rate.warm_steps(steps), rate.falls_at(steps)
        self.forget()

    def forget(self) -> None:
        """Reset to the stage's beginning, but keep the time spent."""
        self.done, self.end, self.reason = 0, self.steps, ""
        self.means: list[float] = []
        self._window: list[float] = []
        self._from: int | None = None
        self._seconds = 0.0

    def update(self, loss: float, seconds: float) -> None:
        """Record a completed step: its loss, and the stage's training seconds so far."""
        before = self.position
        self.done += 1
        self._seconds = seconds
        if self.over or self.until is None or self.until.plateau is None or self._from is not None:
            if self.over and self.done < self.end:
                self.reason, self.end = TIME, self.done
            return
        if before < self.warm:
            return
        plateau = self.until.plateau
        self._window.append(loss)
        if len(self._window) == plateau.window:
            self.means = [*self.means[-1:], math.fsum(self._window) / plateau.window]
            self._window = []
            if len(self.means) == 2 and abs(self.means[1] - self.means[0]) < plateau.change * abs(self.means[0]):
                self._fall()

    def _fall(self) -> None:
        """Let the schedules finish from here, unless the plan does so at least as early."""
        share = self.rate.decay_share
        if share is None:
            return
        length = round(self.done * share / (1 - share))
        if self.position < self.falls and self.done + length < self.steps:
            self.reason, self._from, self.end = PLATEAU, self.done, self.done + length

    @property
    def over(self) -> bool:
        """Whether no steps are left."""
        return self.done >= self.end or (self.limit is not None and self._seconds >= self.limit)

    @property
    def falling(self) -> bool:
        """Whether a plateau was detected and the final decay is running."""
        return self._from is not None

    @property
    def position(self) -> float:
        """Planned step that the next step corresponds to in weight schedules."""
        return self._place(self._from, self.steps - 1, self.end - 1)

    @property
    def progress(self) -> float:
        """The same as a fraction, 0 at the first step and 1 at the last."""
        return min(self.position / max(self.steps - 1, 1), 1.0)

    @property
    def lr_position(self) -> float:
        """The same in the learning-rate schedule: after a plateau it jumps to the start of the decay."""
        start = self._from if self.falls >= self.steps else self.falls
        return self._place(start, self.steps, self.end)

    def _place(self, start: int | None, last: int, end: int) -> float:
        """Return the planned step: equal to the step until a plateau, then scaled so that the rest of the plan fits the
        rest of the stage."""
        timed = 0.0 if self.limit is None else self.steps * self._seconds / self.limit
        if self._from is None or start is None:
            return max(self.done, timed)
        share = (self.done - self._from) / max(end - self._from, 1)
        return max(start + share * (last - start), timed)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "done": self.done,
            "end": self.end,
            "reason": self.reason,
            "means": self.means,
            "window": self._window,
            "from": self._from,
        }

    def load_state_dict(self, state: dict[str, Any], seconds: float) -> None:
        """Restore the result of :meth:`state_dict`; ``seconds`` is the stage's training time so far."""
        self.done, self.end, self.reason = state["done"], state["end"], state["reason"]
        self.means, self._window, self._from = list(state["means"]), list(state["window"]), state["from"]
        self._seconds = seconds
