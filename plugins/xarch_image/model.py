"""Base of image classifiers as teachers and students: what happens to a batch's images before the network.

Legend: B images, C channels, H and W height and width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xarch import Batch, Sink, Tap, TapModel, UsageError
from xarch_image.facts import ImageFacts
from xarch_image.taps import FAMILY

LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in a grey value (ITU-R BT.601, as in Pillow)."""


def adapt(images: Tensor, facts: ImageFacts) -> Tensor:
    """Return images [B, C, H, W] in 0 to 1 with the channels and the size that a model reads, not normalised."""
    images = _channels(images, facts.channels)
    size = (facts.height, facts.width)
    if tuple(images.shape[-2:]) == size:
        return images
    smaller = size[0] < images.shape[-2] or size[1] < images.shape[-1]
    resized = F.interpolate(images, size, mode=facts.interpolation, align_corners=False, antialias=smaller)
    return resized.clamp(0, 1) if facts.interpolation == "bicubic" else resized


def normalise(images: Tensor, facts: ImageFacts) -> Tensor:
    """Return images [B, C, H, W] with the model's mean removed, in units of its deviation."""
    mean, std = (images.new_tensor(v).view(-1, 1, 1) for v in (facts.mean, facts.std))
    return (images - mean) / std


def _channels(images: Tensor, wanted: int) -> Tensor:
    given = images.shape[1]
    if given == wanted:
        return images
    if given == 1:
        return images.expand(-1, wanted, -1, -1)
    if given == 3 and wanted == 1:
        return (images * images.new_tensor(LUMA).view(-1, 1, 1)).sum(1, keepdim=True)
    raise UsageError(f"images with {given} channels cannot be shown to a model that reads {wanted}")


class ImageModel(TapModel):
    """An image classifier with taps; it normalises images itself, so both sides of a batch may differ.

    Args:
        facts: its own description.
    """

    family = FAMILY
    facts: ImageFacts

    def __init__(self, facts: ImageFacts) -> None:
        self.facts = facts

    def taps(self) -> Mapping[str, Tap]:
        return self.facts.taps()

    def run(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        images = adapt(batch["images"], self.facts)
        if "input" in wanted:
            sink("input", images)
        x_BCHW = normalise(images, self.facts)
        if "normalised" in wanted:
            sink("normalised", x_BCHW)
        inner = set(wanted) - {"input", "normalised"}
        if inner:
            dtype = next((p.dtype for p in self.module.parameters()), torch.float32)
            self.read(x_BCHW.to(dtype), inner, sink)

    @abstractmethod
    def read(self, x_BCHW: Tensor, wanted: Collection[str], sink: Sink) -> None:
        """Run on normalised images of the model's own size and push the wanted taps."""

    def classifiers(self) -> Mapping[str, nn.Module]:
        """Return the classifiers of a model that answers with the mean of several, by name; {} of one."""
        return {}

    def work(self, sample: Mapping[str, Any]) -> float:
        return self.facts.work(sample)


class HeadModel(TapModel):
    """A model with several classifiers, judged by some of them: its ``logits`` are the sum of ``logits.HEAD``, each
    times its weight.

    Args:
        model: the whole model. weights: name of a classifier in its facts -> its weight.
    """

    family = FAMILY

    def __init__(self, model: ImageModel, weights: Mapping[str, float]) -> None:
        self.model, self.module, self.facts = model, model.module, model.facts
        self.weights = {f"logits.{name}": weight for name, weight in weights.items()}

    def taps(self) -> Mapping[str, Tap]:
        return {"logits": self.model.taps()[next(iter(self.weights))]}

    def run(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        if "logits" in wanted:
            found = self.model.collect(batch, set(self.weights))
            parts = [weight * found[name] for name, weight in self.weights.items()]
            sink("logits", torch.stack(parts).sum(0) if len(parts) > 1 else parts[0])

    def work(self, sample: Mapping[str, Any]) -> float:
        return self.model.work(sample)
