"""Steps between checkpoints and between rows of metrics.jsonl, where a stage leaves them open.

They follow from the number of steps alone, not from measured time: a retry after a divergence starts at the last
checkpoint, so its place decides the student.
"""

from __future__ import annotations

import math

from xarch.config.schema import Stage

CHECKPOINTS, LEAST_BETWEEN, MOST_BETWEEN = 40, 50, 1000
"""Checkpoints per stage, and the limits of the steps between two."""
ROWS = 1000
"""Rows of metrics.jsonl per stage."""


def checkpoint_every(stage: Stage, steps: int) -> int:
    """Return the optimiser steps between checkpoints of a stage of ``steps`` steps."""
    return stage.checkpoint_every or min(max(LEAST_BETWEEN, math.ceil(steps / CHECKPOINTS)), MOST_BETWEEN)


def log_every(stage: Stage, steps: int) -> int:
    """Return the optimiser steps between rows of metrics.jsonl of a stage of ``steps`` steps."""
    return stage.log_every or max(1, math.ceil(steps / ROWS))
