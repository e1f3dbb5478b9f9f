"""Batch step ``cutmix``.

Legend: B samples, C channels, H, W size, K classes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from xarch import Batch, BatchStep, Options, PlanError, StepContext, TensorInfo


class CutMixOptions(Options):
    """Options of ``cutmix``."""

    alpha: float = Field(1.0, gt=0, description="parameter of the Beta(α, α) distribution of the area that is kept")
    prob: float = Field(1.0, ge=0, le=1, description="fraction of batches to mix")
    mixup: float = Field(0.0, ge=0, description="α of mixup, which replaces cutmix in `switch` of the mixed batches")
    switch: float = Field(0.5, ge=0, le=1, description="fraction of mixed batches that use mixup, if `mixup` is not 0")


class CutMix(BatchStep):
    """``cutmix``: a box of another picture of the batch replaces that of each picture, and labels are shared by area
    (Yun et al., arXiv 1905.04899). All views get the same box, in proportion to their size. Labels become probabilities
    in every batch."""

    Options = CutMixOptions

    def __init__(self, options: Any, data: Mapping[str, Any]) -> None:
        super().__init__(options, data)
        if not data.get("classes"):
            raise PlanError("batch step cutmix: the data do not declare `classes`", "use data with labels")

    def reads(self) -> Mapping[str, str]:
        return {"images": "BCHW", "labels": "*"}

    def makes(self, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"labels": TensorInfo("BK", {"K": int(self.data["classes"])})}

    def __call__(self, batch: Batch, context: StepContext) -> Batch:
        labels = batch["labels"]
        if labels.ndim == 1:
            labels = F.one_hot(labels.long(), int(self.data["classes"])).float()
        draw = random.Random(int(torch.randint(2**62, (), generator=context.generator)))
        mixes, blends = draw.random() < self.options.prob, draw.random() < self.options.switch
        blends = blends and self.options.mixup > 0
        alpha = self.options.mixup if blends else self.options.alpha
        kept, across, down = draw.betavariate(alpha, alpha), draw.random(), draw.random()
        if not context.training or not mixes:
            return batch.replace(labels=labels)
        partner = torch.randperm(len(batch), generator=context.generator).to(batch.device)
        views = {key: value for key, value in batch.tensors.items() if key.split("@")[0] == "images"}
        if blends:
            changed = {key: x * kept + x[partner] * (1 - kept) for key, x in views.items()}
        else:
            boxes = {key: _box(x, kept, across, down) for key, x in views.items()}
            changed = {key: torch.where(boxes[key], x[partner], x) for key, x in views.items()}
            kept = 1 - boxes["images"].float().mean().item()
        context.log(cutmix=kept)
        return batch.replace(**changed, labels=labels * kept + labels[partner] * (1 - kept))


def _box(x_BCHW: Tensor, kept: float, across: float, down: float) -> Tensor:
    """Return bool [H,W]: a box around (down, across), cut off at the border, of the share 1 - ``kept`` without that."""
    found = torch.ones((), dtype=torch.bool, device=x_BCHW.device)
    for axis, centre in ((-2, down), (-1, across)):
        size = x_BCHW.shape[axis]
        half = size * math.sqrt(1 - kept) / 2
        place = torch.arange(size, device=x_BCHW.device) + 0.5
        inside = (place - centre * size).abs() < half
        found = found & (inside[:, None] if axis == -2 else inside)
    return found
