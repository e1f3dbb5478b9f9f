"""How an exported student is timed."""

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
        unit, amount: what one drive gets done, for throughput ("token", 32).
        graphs: names of the graphs it calls.
        drive: runs it once.
        figures: further figures that belong to it, e.g. bytes of the states it carries along.
    """

    name: str
    unit: str
    amount: float
    graphs: tuple[str, ...]
    drive: Callable[[Call], object]
    figures: Mapping[str, float] = field(default_factory=dict)
