"""A gate that starts as a constant, for mixers whose projection has no bias to hold one.

Legend: B batch, L tokens, D width, T tokens of a batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from xarch_mohawk.mixer import Z_BIAS, RecurrentMixer
from xarch_mohawk.ridge import RidgeFit

RIDGE = 1e-3
"""Strength of the regression, relative to the mean square of an input."""


class ConstantGate:
    """Fits one row w with w · x ≈ Z_BIAS for every token and writes it to all rows of z.

    Hidden states share a direction, so that silu(z) stays near 1, where it also passes gradients.
    """

    def __init__(self, mixer: RecurrentMixer[Any]) -> None:
        self.mixer = mixer
        row = nn.Linear(mixer.in_proj.in_features, 1, bias=False)
        nn.init.zeros_(row.weight)
        self._fit = RidgeFit(row, RIDGE)

    def observe(self, mixer_in_BLD: Tensor) -> None:
        """Accumulate the tokens of a batch."""
        x_TD = mixer_in_BLD.float().flatten(0, 1)
        self._fit.observe(x_TD, torch.full_like(x_TD[:, :1], Z_BIAS))

    def solve(self) -> None:
        """Write the rows."""
        self._fit.solve()
        with torch.no_grad():
            self.mixer.in_proj.weight[self.mixer.rows("z")] = self._fit.linear.weight.to(self.mixer.in_proj.weight)
