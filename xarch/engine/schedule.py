"""Learning-rate and weight schedules as pure functions of the step: nothing to save, nothing to drift."""

from __future__ import annotations

import math

from xarch.config.schema import Optimiser, WeightSchedule


def warm_steps(steps: int, optimiser: Optimiser) -> int:
    """Steps that warm up."""
    return math.ceil(optimiser.warmup * steps)


def falls_at(steps: int, optimiser: Optimiser) -> int:
    """The step from which a "wsd" schedule falls; ``steps`` for the others."""
    return steps - max(math.ceil(optimiser.decay * steps), 1) if optimiser.schedule == "wsd" else steps


def lr_factor(step: float, steps: int, optimiser: Optimiser) -> float:
    """Factor on the peak learning rate at ``step`` (0-based, also between two steps) of ``steps``.

    "wsd" warms up, stays, decays linearly (MOHAWK: 10 % / 80 % / 10 %); "cosine" warms up and follows half a cosine;
    both end at ``optimiser.final``.
    """
    warm = warm_steps(steps, optimiser)
    if step < warm:
        return min((step + 1) / warm, 1.0)
    if optimiser.schedule == "constant":
        return 1.0
    floor = optimiser.final
    if optimiser.schedule == "cosine":
        at = (step - warm + 1) / max(steps - warm, 1)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(at, 1.0)))
    down = steps - falls_at(steps, optimiser)
    left = steps - step
    return 1.0 if left > down else floor + (1 - floor) * left / (down + 1)


def match_weight(weight: float | WeightSchedule, step: float, steps: int) -> float:
    """Weight of a match at ``step`` of ``steps``; schedules are stretched over the stage whatever its budget."""
    if not isinstance(weight, WeightSchedule):
        return weight
    at = min(step / max(steps - 1, 1), 1.0)
    if weight.shape == "exponential":
        if weight.start <= 0 or weight.end <= 0:
            return weight.start if at == 0 else weight.end
        return weight.start * (weight.end / weight.start) ** at
    if weight.shape == "cosine":
        at = 0.5 * (1 - math.cos(math.pi * at))
    return weight.start + (weight.end - weight.start) * at
