"""What chooses how many learners run at a position.

Legend: ... samples and positions, L positions of a sample, D width of the input, K choices.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SURE = 6.0
"""Logit of a new gate for all learners, beside 0 for others, or the logarithm of what the last one gains: until gates
are trained, nothing is left out."""
SHARP = 10.0
"""Times which the logarithm of costs is a logit: a choice that costs a tenth more is drawn 2.6 times less often."""
EXTREME = 30.0
"""Largest logarithm of a gain, either way; e^30 and e^-30 are sure beside any price."""


class Gate(nn.Module):
    """[..., D] -> [..., K], in float32: logarithms of what is lost with each number of learners, in prices of one, or
    logits of the numbers. What is lost is the sum of what every learner left out would gain, and of what all leave.

    Args:
        width: of its hidden layer; 0: it does not read the input, and knows places only.
        positions: of every sample, if always as many: what each adds to its logarithms is then learned, too, and takes
            no multiply-adds. 0: it varies.
        estimates: whether it is the former.

    Attributes:
        price: of one of the module's learners, beside that of a mean one, for gates that estimate.
    """

    def __init__(self, inputs: int, width: int, choices: int, *, estimates: bool, positions: int = 0) -> None:
        super().__init__()
        self.estimates, self.price = estimates, 1.0
        self.into = nn.Linear(inputs, width) if width else None
        self.out = nn.Linear(width or 1, choices)
        self.place_LK = nn.Parameter(torch.zeros(positions, choices)) if positions else None
        nn.init.zeros_(self.out.weight)
        with torch.no_grad():
            self.out.bias.fill_(-EXTREME if estimates else 0.0)[-2 if estimates else -1] = SURE

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self._logits(x)
        return self._logits(x)

    def _logits(self, x: Tensor) -> Tensor:
        hidden = x.new_zeros(*x.shape[:-1], 1).float() if self.into is None else F.gelu(self.into(x.float()))
        made: Tensor = self.out(hidden)
        if self.place_LK is not None:
            made = (made.reshape(-1, *self.place_LK.shape) + self.place_LK).reshape(made.shape)
        if not self.estimates:
            return made
        gains = made.clamp(-EXTREME, EXTREME).exp()
        return (gains @ gains.new_ones(made.shape[-1], made.shape[-1]).tril()).log()

    @torch.no_grad()
    def centre(self, lost_TK: Tensor) -> None:
        """Begin with the mean as the estimate, that of each place where gates know it.

        Args:
            lost_TK: losses with each number of learners, in prices of a learner; all positions of whole samples.
        """
        self.out.bias.copy_(_gains(lost_TK.mean(0)))
        if self.place_LK is not None:
            self.place_LK.copy_(_gains(lost_TK.unflatten(0, (-1, len(self.place_LK))).mean(0)) - self.out.bias)

    def scores(self, made: Tensor, shift: float | Tensor) -> Tensor:
        """Return logits of the choices [..., K] from what :meth:`forward` gave; a larger shift never means fewer."""
        count_K = torch.arange(made.shape[-1], device=made.device, dtype=made.dtype)
        if not self.estimates:
            return made + shift * count_K
        cheaper = torch.exp(-shift) if isinstance(shift, Tensor) else math.exp(-shift)
        cost = made.exp() + self.price * cheaper * count_K
        return -SHARP * cost.log()


def _gains(lost: Tensor) -> Tensor:
    """Return logarithms of what each learner gains [..., K], from mean losses, little where they rise."""
    gains = torch.cat([lost[..., :-1] - lost[..., 1:], lost[..., -1:]], -1)
    return gains.clamp_min(1e-3 * lost.amax(-1, keepdim=True) + math.exp(-EXTREME)).log()
