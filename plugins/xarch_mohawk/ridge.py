"""Least squares of an output projection: a factor per head, and ridge regression toward its current weights.

Legend: B batch, L tokens, T tokens of a batch, I inputs, D outputs, H heads, P head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RidgeFit:
    """Minimises ‖g Wᵀ + b - t‖² + λ ‖W - W₀‖² over W; λ is ``strength`` times the mean diagonal of gᵀ g.

    Sums over batches are kept in float64; memory is [I, I + D], independent of the number of tokens.
    """

    def __init__(self, linear: nn.Linear, strength: float) -> None:
        self.linear, self.strength = linear, strength
        inputs, outputs = linear.in_features, linear.out_features
        self._gram_II = torch.zeros(inputs, inputs, dtype=torch.float64)
        self._cross_ID = torch.zeros(inputs, outputs, dtype=torch.float64)

    def observe(self, inputs_TI: Tensor, target_TD: Tensor) -> None:
        """Accumulate the tokens of a batch."""
        inputs_TI = inputs_TI.float()
        missing_TD = target_TD.float() - self.linear(inputs_TI)
        self._gram_II += (inputs_TI.T @ inputs_TI).cpu()
        self._cross_ID += (inputs_TI.T @ missing_TD).cpu()

    def solve(self) -> None:
        """Write the solution to the projection; its bias is unchanged."""
        gram_II = self._gram_II.clone()
        gram_II.diagonal().add_(self.strength * gram_II.diagonal().mean().clamp_min(1e-30))
        change_ID = torch.cholesky_solve(self._cross_ID, torch.linalg.cholesky(gram_II))
        with torch.no_grad():
            self.linear.weight.add_(change_ID.T.to(self.linear.weight))


class ColumnScale:
    """Multiplies the columns of each head by c that minimises ‖c y - t‖², y the head's output and t the teacher's."""

    def __init__(self, linear: nn.Linear, heads: int) -> None:
        self.linear = linear
        self._cross_H, self._square_H = (torch.zeros(heads, dtype=torch.float64) for _ in range(2))

    def observe(self, own_BLHP: Tensor, target_BLHP: Tensor) -> None:
        """Accumulate the tokens of a batch; both tensors hold the same channels, also if divided into other heads."""
        own_BLHP, target_BLHP = own_BLHP.float(), target_BLHP.float().flatten(2).view_as(own_BLHP)
        self._cross_H += (own_BLHP * target_BLHP).sum((0, 1, 3)).cpu()
        self._square_H += own_BLHP.square().sum((0, 1, 3)).cpu()

    def solve(self) -> None:
        """Write the factors to the projection."""
        scale_H = self._cross_H / self._square_H.clamp_min(1e-30)
        with torch.no_grad():
            width = self.linear.in_features // len(scale_H)
            self.linear.weight.mul_(scale_H.repeat_interleave(width).to(self.linear.weight))
