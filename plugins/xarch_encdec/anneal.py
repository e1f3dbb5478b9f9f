"""Batch step ``open-encoder``: opens an encoder that begins as a causal decoder.

With merged attention, a causal encoder, and the input of layer l read by decoder layer l, an encoder-decoder of all of
a decoder's layers is that decoder. From there the encoder's mask opens to both sides, and what decoder layers read may
move to the encoder's last output, as a schedule of the stage says. An encoder opens and never closes: a student that
starts opened stays so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field

from xarch import Batch, BatchStep, Options, StepContext, TensorInfo
from xarch_encdec.model.network import Opening
from xarch_encdec.student import FUTURE, LAST, EncDecStudent


class Ramp(Options):
    """A share that grows linearly from one value to another while a part of the stage passes."""

    start: float = Field(0.0, ge=0, le=1, description="value until `begin`")
    end: float = Field(1.0, ge=0, le=1, description="value from `finish` on")
    begin: float = Field(0.0, ge=0, le=1, description="share of the stage's steps at which it begins to grow")
    finish: float = Field(0.5, ge=0, lt=1, description="share of the stage's steps at which it ends")

    def at(self, progress: float) -> float:
        """Return the value after a share of the stage's steps."""
        if progress >= self.finish:
            return self.end
        if progress <= self.begin:
            return self.start
        return self.start + (self.end - self.start) * (progress - self.begin) / (self.finish - self.begin)


class OpeningOptions(Options):
    """Options of ``open-encoder``."""

    future: Ramp | None = Field(
        default_factory=Ramp, description="weight of later source tokens in the encoder's attention; null: as it is"
    )
    last: Ramp | None = Field(
        None, description="share of the encoder's last output in what decoder layers read; null: as it is"
    )


class OpenEncoder(BatchStep):
    """Adds the shares of this step, [B] each and equal for all samples; in training the student keeps them."""

    Options = OpeningOptions

    def makes(self, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        info = TensorInfo("B", dtype="float32")
        return {FUTURE: info, LAST: info}

    def __call__(self, batch: Batch, context: StepContext) -> Batch:
        student, ramps = context.student, {FUTURE: self.options.future, LAST: self.options.last}
        now = student.module.opened() if isinstance(student, EncDecStudent) else Opening(0.0, 0.0)
        kept = {FUTURE: now.future, LAST: now.last}
        values = {k: max(kept[k], ramp.at(context.progress) if ramp else 0.0) for k, ramp in ramps.items()}
        context.log(**values)
        return batch.replace(**{k: torch.full((len(batch),), v, device=batch.device) for k, v in values.items()})
