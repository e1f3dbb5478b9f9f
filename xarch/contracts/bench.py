"""Benchmark cases: how an exported student is timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

Call = Callable[[str, dict[str, np.ndarray]], dict[str, np.ndarray]]
"""Runs a graph by name on named inputs in the deployment runtime and returns its named outputs."""


@dataclass(frozen=True)
class BenchCase:
    """A timed procedure over one or several graphs; cases of student and teacher are compared by name.

    Attributes:
        name: e.g. "first token, 64 tokens".
        unit, amount: work done by one call of ``drive``, for throughput ("token", 32).
        graphs: names of the graphs that it calls.
        drive: runs it once.
        figures: further figures of the case, e.g. bytes of the states carried between calls.
    """

    name: str
    unit: str
    amount: float
    graphs: tuple[str, ...]
    drive: Callable[[Call], object]
    figures: Mapping[str, float] = field(default_factory=dict)
