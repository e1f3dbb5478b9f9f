"""When a gradient stage ends: after its last step, or earlier at a plateau of its loss or when its time is spent.

A stage that ends early still finishes its schedules: the learning rate falls to the end it was planned to have, over as
many steps as the stage would have given to that had it been planned this short. What it then has not read of its budget
is saved, not handed on: the steps of the stages after it stay those of the plan.
"""

from __future__ import annotations

import math
from typing import Any

from xarch.config.schema import Until
from xarch.optim.schedules import LearningRate

PLATEAU, TIME = "plateau", "time"


class StoppingRule:
    """Follows one stage: decides its end and says where in its schedules it stands.

    The loss is smoothed by its mean over a window of steps; windows follow each other without overlap, from the end of
    the warm-up to where the schedule falls anyway. All decisions depend on figures that every process has alike.

    Args:
        until: what may end the stage early; None: nothing.
        steps: of the plan.
        rate: the learning rate, whose schedule has to finish.

    Attributes:
        end: steps after which the stage is over, as far as is known.
        reason: "plateau" or "time" once one of them ends the stage, "" before.
        means: of the last two whole windows, newest last.
    """

    def __init__(self, until: Until | None, steps: int, rate: LearningRate) -> None:
        self.until, self.steps, self.rate = until, steps, rate
        self.limit = until.seconds if until is not None else None
        self.warm, self.falls = rate.warm_steps(steps), rate.falls_at(steps)
        self.forget()

    def forget(self) -> None:
        """Back to the stage's beginning; seconds stay spent."""
        self.done, self.end, self.reason = 0, self.steps, ""
        self.means: list[float] = []
        self._window: list[float] = []
        self._from: int | None = None
        self._seconds = 0.0

    def see(self, loss: float, seconds: float) -> None:
        """One more step is done: its loss, and the training seconds of the stage so far."""
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
        """Let the schedules finish from here, unless the plan does so as soon."""
        share = self.rate.ending
        if share is None:
            return
        length = round(self.done * share / (1 - share))
        if self.position < self.falls and self.done + length < self.steps:
            self.reason, self._from, self.end = PLATEAU, self.done, self.done + length

    @property
    def over(self) -> bool:
        """Whether no step is left."""
        return self.done >= self.end or (self.limit is not None and self._seconds >= self.limit)

    @property
    def falling(self) -> bool:
        """Whether a plateau was seen and the last steps run."""
        return self._from is not None

    @property
    def position(self) -> float:
        """Step of the plan that the next step stands for in a schedule of weights."""
        return self._place(self._from, self.steps - 1, self.end - 1)

    @property
    def progress(self) -> float:
        """The same from 0 at the first step to 1 at the last."""
        return min(self.position / max(self.steps - 1, 1), 1.0)

    @property
    def lr_position(self) -> float:
        """The same in the schedule of the learning rate: after a plateau it goes on where the schedule falls."""
        start = self._from if self.falls >= self.steps else self.falls
        return self._place(start, self.steps, self.end)

    def _place(self, start: int | None, last: int, end: int) -> float:
        """Steps count until a plateau; then what is left of the plan passes in what is left of the stage."""
        timed = 0.0 if self.limit is None else self.steps * self._seconds / self.limit
        if self._from is None or start is None:
            return max(self.done, timed)
        share = (self.done - self._from) / max(end - self._from, 1)
        return max(start + share * (last - start), timed)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "done": self.done,
            "end": self.end,
            "reason": self.reason,
            "means": self.means,
            "window": self._window,
            "from": self._from,
        }

    def load_state_dict(self, state: dict[str, Any], seconds: float) -> None:
        """Inverse of :meth:`state_dict`; ``seconds`` are those the stage has trained."""
        self.done, self.end, self.reason = state["done"], state["end"], state["reason"]
        self.means, self._window, self._from = list(state["means"]), list(state["window"]), state["from"]
        self._seconds = seconds
