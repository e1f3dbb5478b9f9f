"""Learning-rate and weight schedules as pure functions of the step: nothing to save, nothing to drift."""

from __future__ import annotations

import math

from xarch.config.schema import Optimiser, WeightSchedule


def lr_factor(step: int, steps: int, optimiser: Optimiser) -> float:
    """Factor on the peak learning rate at ``step`` (0-based) of ``steps``.

    "wsd" warms up, stays, decays linearly (MOHAWK: 10 % / 80 % / 10 %); "cosine" warms up and follows half a cosine;
    both end at ``optimiser.final``.
    """
    warm = math.ceil(optimiser.warmup * steps)
    if step < warm:
        return (step + 1) / warm
    if optimiser.schedule == "constant":
        return 1.0
    floor = optimiser.final
    if optimiser.schedule == "cosine":
        at = (step - warm + 1) / max(steps - warm, 1)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(at, 1.0)))
    down = max(math.ceil(optimiser.decay * steps), 1)
    left = steps - step
    return 1.0 if left > down else floor + (1 - floor) * left / (down + 1)


def match_weight(weight: float | WeightSchedule, step: int, steps: int) -> float:
    """Weight of a match at ``step`` of ``steps``; schedules are stretched over the stage whatever its budget."""
    if not isinstance(weight, WeightSchedule):
        return weight
    at = step / max(steps - 1, 1)
    if weight.shape == "exponential":
        if weight.start <= 0 or weight.end <= 0:
            return weight.start if at == 0 else weight.end
        return weight.start * (weight.end / weight.start) ** at
    if weight.shape == "cosine":
        at = 0.5 * (1 - math.cos(math.pi * at))
    return weight.start + (weight.end - weight.start) * at
