"""A finished ``xarch`` command, and a real conversion small enough to run in a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STACK = Path(__file__).parents[1] / "engine" / "stack_plugin.py"

RUN = """\
teacher: stack:3
student: {target: low}
data: {ref: noise:8}
export: {profiles: []}
stages:
  local:
    matches: [{student: output, objective: sabotage}]
    trains: {all: {}}
    units: 480
    batch: 4
    checkpoint_every: 4
    optimiser: {lr: 0.02}
gates: {mse: {max: 5}}
runtime: {tensorboard: false, threads: 1, device: cpu}
"""


@dataclass
class Ended:
    """A finished ``xarch`` process."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The JSON on standard output; fails if anything else is there."""
        return json.loads(self.out)


Xarch = Callable[..., Ended]
