"""Learning rates over a stage: a linear warm-up, then a registered schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pydantic import Field, field_validator

from xarch.contracts.optimiser import Schedule
from xarch.contracts.options import Options


@dataclass(frozen=True)
class LearningRate:
    """A schedule with its options and the warm-up before it.

    Attributes:
        schedule, options: what follows the warm-up.
        warmup: fraction of the steps that warm up linearly from 0.
        final: factor at the end.
    """

    schedule: Schedule
    options: Any
    warmup: float = 0.1
    final: float = 0.0

    def warm_steps(self, steps: int) -> int:
        """Steps that warm up, of ``steps``."""
        return math.ceil(self.warmup * steps)

    def falls_at(self, steps: int) -> int:
        """See :meth:`Schedule.falls_at`."""
        return self.schedule.falls_at(steps, self.options)

    @property
    def decay_share(self) -> float | None:
        """See :meth:`Schedule.decay_share`."""
        return self.schedule.decay_share(self.options)

    def factor(self, step: float, steps: int) -> float:
        """Factor on the peak learning rate at ``step`` (0-based, also between two steps) of ``steps``."""
        warm = self.warm_steps(steps)
        if step < warm:
            return min((step + 1) / warm, 1.0)
        return self.schedule.factor(step, steps, warm, self.options, final=self.final)


class Decay(Options):
    """Options of schedules that may end early."""

    decay: float = Field(0.3, ge=0, le=1, description="fraction of the steps that decay, also after a plateau")


class Falling(Schedule):
    """Base of schedules that fall from the warm-up to the last step."""

    Options = Decay

    def decay_share(self, options: Decay) -> float | None:
        return options.decay if options.decay < 1 else None


class WarmupStableDecay(Falling):
    """``wsd``: stays at the peak and falls linearly over the last ``decay`` of all steps (MOHAWK: 10 / 80 / 10 %)."""

    def factor(self, step: float, steps: int, warm: int, options: Decay, *, final: float) -> float:
        down, left = steps - self.falls_at(steps, options), steps - step
        return 1.0 if left > down else final + (1 - final) * left / (down + 1)

    def falls_at(self, steps: int, options: Decay) -> int:
        return steps - max(math.ceil(options.decay * steps), 1)


class Cosine(Falling):
    """``cosine``: half a cosine."""

    def factor(self, step: float, steps: int, warm: int, options: Any, *, final: float) -> float:
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * _share(step, steps, warm)))


class Constant(Schedule):
    """``constant``: stays at the peak."""

    def factor(self, step: float, steps: int, warm: int, options: Any, *, final: float) -> float:
        return 1.0

    def decay_share(self, options: Any) -> float | None:
        return 0.0


class Linear(Falling):
    """``linear``: a straight line."""

    def factor(self, step: float, steps: int, warm: int, options: Any, *, final: float) -> float:
        return final + (1 - final) * (1 - _share(step, steps, warm))


class Power(Decay):
    """Options of ``polynomial``."""

    power: float = Field(2.0, gt=0, description="of the share of the steps that is left")


class Polynomial(Falling):
    """``polynomial``: a power of what is left."""

    Options = Power

    def factor(self, step: float, steps: int, warm: int, options: Power, *, final: float) -> float:
        return final + (1 - final) * (1 - _share(step, steps, warm)) ** options.power


class Milestones(Options):
    """Options of ``step``."""

    milestones: list[float] = Field([0.5, 0.75], description="shares of all steps at which the rate drops")
    gamma: float = Field(0.1, gt=0, le=1, description="factor at each of them")

    @field_validator("milestones")
    @classmethod
    def _rising(cls, shares: list[float]) -> list[float]:
        if not all(0 < share < 1 for share in shares) or sorted(set(shares)) != shares:
            raise ValueError("milestones are shares of the stage between 0 and 1, in rising order, e.g. [0.6, 0.8]")
        return shares


class Step(Schedule):
    """``step``: drops by ``gamma`` at every milestone, never below ``final``."""

    Options = Milestones

    def factor(self, step: float, steps: int, warm: int, options: Milestones, *, final: float) -> float:
        passed = sum(step >= share * steps for share in options.milestones)
        return max(options.gamma**passed, final)


def _share(step: float, steps: int, warm: int) -> float:
    """Share of the steps after the warm-up that is over once ``step`` is done, at most 1."""
    return min((step - warm + 1) / max(steps - warm, 1), 1.0)
