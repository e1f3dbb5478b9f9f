"""A timm model as an ONNX graph: images in 0 to 1, normalised inside.

Legend: B images, C channels, H and W height and width, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xarch import ExportGraph, Profile, Student, Throughput
from xarch_image import ImageFacts, normalise


class ImageGraph(nn.Module):
    """Maps images [B, C, H, W] in 0 to 1 to logits [B, K]."""

    def __init__(self, net: nn.Module, facts: ImageFacts) -> None:
        super().__init__()
        self.net, self.facts = net, facts

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.net(normalise(images, self.facts)),)


def image_graphs(student: Student, profile: Profile) -> list[ExportGraph]:
    """Return the graph ``model``: for any number of images, or for one where shapes are static."""
    facts: ImageFacts = student.facts
    images = torch.zeros(1 if profile.static else 2, facts.channels, facts.height, facts.width)
    return [
        ExportGraph(
            "model",
            ImageGraph(student.module, facts).eval(),
            {"images": images},
            ["logits"],
            {} if profile.static else {"images": {0: "batch"}},
            throughput=Throughput("images", 1) if profile.static else Throughput("images", 1, {"batch": 1}),
            reads={"images": "images"},
            gives={"logits": "logits"},
            top1="logits",
        )
    ]
