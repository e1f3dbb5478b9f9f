"""A timm model as an ONNX graph, with what a caller has to do to a picture in its metadata.

Legend: B images, C channels, H and W height and width, K classes.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from xarch import ExportGraph, Options, Profile, TapModel, Throughput
from xarch_image import ImageFacts, normalise


class ImageExport(Options):
    """Options of the export."""

    normalisation: Literal["inside", "metadata"] = Field(
        "inside", description="inside: the graph takes images in 0 to 1; metadata: the caller normalises them first"
    )


class ImageGraph(nn.Module):
    """Maps images [B, C, H, W] to logits [B, K].

    Args:
        inside: whether images are in 0 to 1 and the graph normalises them.
    """

    def __init__(self, net: nn.Module, facts: ImageFacts, *, inside: bool) -> None:
        super().__init__()
        self.net, self.facts, self.inside = net, facts, inside

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.net(normalise(images, self.facts) if self.inside else images),)


def image_graphs(model: TapModel, profile: Profile, options: ImageExport) -> list[ExportGraph]:
    """Return the graph ``model``: for any number of images, or for one where shapes are static."""
    facts: ImageFacts = model.facts
    inside = options.normalisation == "inside"
    generator = torch.Generator().manual_seed(0)
    size = 1 if profile.static else 2
    images = torch.rand(size, facts.channels, facts.height, facts.width, generator=generator)
    return [
        ExportGraph(
            "model",
            ImageGraph(model.module, facts, inside=inside).eval(),
            {"images": images if inside else normalise(images, facts)},
            ["logits"],
            {} if profile.static else {"images": {0: "batch"}},
            metadata=_metadata(facts, inside),
            throughput=Throughput("images", 1),
            reads={"images": "student:input" if inside else "student:normalised"},
            gives={"logits": "logits"},
            top1="logits",
        )
    ]


def _metadata(facts: ImageFacts, inside: bool) -> dict[str, Any]:
    """Return how to prepare a picture; ``mean`` and ``std`` are what is left to do."""
    return {
        "image": {
            "size": [facts.height, facts.width],
            "channels": facts.channels,
            "interpolation": facts.interpolation,
            "mean": [0.0] * facts.channels if inside else list(facts.mean),
            "std": [1.0] * facts.channels if inside else list(facts.std),
        },
        "classes": list(facts.class_names) or facts.classes,
    }
