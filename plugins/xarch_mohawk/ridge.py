"""Ridge regression of an output projection toward its current weights.

Legend: T tokens, I inputs, D outputs.
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
