"""Checkpoints of a running gradient stage, and rewinding to them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from xarch.contracts.data import BatchStream
from xarch.contracts.stage import SavedStep, StageContext
from xarch.engine.gradient.validation import BEST, Validator
from xarch.engine.stopping import StoppingRule

STREAM = "stream|"


@dataclass
class Running:
    """State of a running stage that a checkpoint holds besides weights and moments.

    Attributes:
        context: of the stage.
        stream: its training batches.
        stopping_rule: its stopping rule.
        validator: measures it; None if nothing is measured.
        step, units: steps done and units read.
        lr_scale: factor on the learning rate after non-finite values.
        figures: of the last step.
        origin: position of the stream at the stage's beginning.
        start: weights at the stage's beginning, kept if it may have to return to them.
    """

    context: StageContext
    stream: BatchStream
    stopping_rule: StoppingRule
    validator: Validator | None
    step: int = 0
    units: int = 0
    lr_scale: float = 1.0
    figures: dict[str, float] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)
    start: Mapping[str, Tensor] = field(default_factory=dict)

    def save(self) -> None:
        """Save a checkpoint of the current state."""
        values, moments = self.context.trainable().state()
        position = self.stream.state_dict()
        tensors = {STREAM + k: v for k, v in position.items() if isinstance(v, Tensor)}
        checks = self.validator
        self.context.checkpoints.save(
            self.step,
            model=values,
            trainer={**moments, **tensors, **(checks.tensors() if checks else {})},
            facts={
                "stream": {k: v for k, v in position.items() if not isinstance(v, Tensor)},
                "units": self.units,
                "lr_scale": self.lr_scale,
                # JSON has finite numbers only, and so do outcomes.
                "figures": {k: v for k, v in self.figures.items() if math.isfinite(v)},
                "ending": self.stopping_rule.state_dict(),
                "validation": checks.facts() if checks else None,
            },
        )

    def resume(self) -> bool:
        """Resume from the newest checkpoint; return False if there is none."""
        found = self.context.checkpoints.latest()
        if found is None:
            return False
        self._load(found)
        self.context.say(f"stage {self.context.name} resumes from step {found.step}")
        return True

    def rewind(self) -> None:
        """Return to the newest checkpoint or the stage's beginning, at half the learning rate."""
        if not self.resume():
            self.context.trainable().restore(self.start)
            self.stream.load_state_dict(self.origin)
            self.stopping_rule.forget()
            if self.validator is not None:
                self.validator.forget()
            self.step = self.units = 0
        self.lr_scale = 0.5

    def _load(self, found: SavedStep) -> None:
        facts = found.facts
        streamed = {k.removeprefix(STREAM): v for k, v in found.trainer.items() if k.startswith(STREAM)}
        moments = {k: v for k, v in found.trainer.items() if not k.startswith((STREAM, BEST))}
        self.context.trainable().load(found.model, moments)
        self.stream.load_state_dict({**facts["stream"], **streamed})
        self.stopping_rule.load_state_dict(facts["ending"], self.context.clock.spent.seconds)
        if self.validator is not None:
            self.validator.load(facts["validation"], found.trainer)
        self.step, self.units, self.lr_scale = found.step, facts["units"], facts["lr_scale"]
        self.figures = dict(facts["figures"])
