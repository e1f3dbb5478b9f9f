"""Banks of embeddings of all samples, for contrast with more samples than a batch has.

Legend: B samples, N samples of the data, E features of an embedding, M samples drawn.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Banks(nn.Module):
    """An embedding of norm 1 of every sample on both sides, and its class once it has been seen.

    Args:
        total, width: N and E. temperature: τ of exp(e · b / τ).
    """

    own: Tensor
    other: Tensor
    classes: Tensor
    scale: Tensor
    measured: Tensor

    def __init__(self, total: int, width: int, temperature: float) -> None:
        super().__init__()
        for name in ("own", "other"):
            self.register_buffer(name, F.normalize(torch.randn(total, width), dim=1))
        self.register_buffer("classes", torch.full((total,), -1))
        # The mean of exp(e · b / τ) over random directions, until a step has measured it.
        expected = math.exp(0.5 / (width * temperature**2)) * total
        self.register_buffer("scale", torch.tensor([expected, expected]))
        self.register_buffer("measured", torch.tensor(False))

    def draw(self, index_B: Tensor, count: int) -> Tensor:
        """Return samples to contrast with [B, M]; measuring draws the same ones every time."""
        total = len(self.classes)
        if self.training:
            return torch.randint(total, (len(index_B), min(count, total)), device=index_B.device)
        return torch.arange(min(count, total), device=index_B.device).expand(len(index_B), -1)

    def update(self, index_B: Tensor, label_B: Tensor, own_BE: Tensor, other_BE: Tensor, momentum: float) -> None:
        """Move the embeddings of a batch towards new ones and note its classes."""
        for bank, new in ((self.own, own_BE), (self.other, other_BE)):
            bank[index_B] = F.normalize(torch.lerp(new.to(bank), bank[index_B], momentum), dim=1)
        self.classes[index_B] = label_B

    def rescale(self, scale: Tensor) -> None:
        """Set Z of both sides [2], the first time only."""
        self.scale.copy_(torch.where(self.measured, self.scale, scale.to(self.scale)))
        self.measured.fill_(True)
