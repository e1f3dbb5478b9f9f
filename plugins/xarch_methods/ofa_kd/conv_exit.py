"""Exit of a convolutional student.

Legend: B samples, C channels, H and W height and width, K classes.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


class ConvExit(nn.Module):
    """[B, C, H, W] -> [B, K]: a separable convolution for every later stage of the student, each halving the grid and
    doubling the channels, the last one giving ``width``; of the last stage a 1x1 convolution instead.

    Args:
        channels, width, classes: C, the width before the classifier, K.
        stages: how many stages follow this one.
    """

    def __init__(self, channels: int, width: int, classes: int, stages: int) -> None:
        super().__init__()
        widths = [*(channels << n for n in range(stages)), width]
        body = [_separable(a, b) for a, b in pairwise(widths)] if stages else [nn.Conv2d(channels, width, 1)]
        self.body = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(width, classes)
        self.apply(_initialise)

    def forward(self, value_BCHW: Tensor) -> Tensor:
        """Return logits [B, K]."""
        made: Tensor = self.classifier(self.body(value_BCHW))
        return made


def _separable(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, 2, 1, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False),
        nn.Conv2d(channels, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
