"""Neuron selectivity transfer.

Legend: B samples, F and G features, N places.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from xarch.matching.objectives.dense import FAINTEST
from xarch_objectives.grids import GridObjective


class NST(GridObjective):
    """Squared maximum mean discrepancy mean k(t, t) + mean k(s, s) − 2 mean k(s, t) between the features of both sides,
    each a vector of norm 1 over the places, with k(x, y) = (x · y)² (Huang and Wang, arXiv 1707.01219)."""

    units = "squared value"

    def samples(self, student: Tensor, teacher: Tensor) -> Tensor:
        own_BFN, other_BGN = (F.normalize(x.flatten(2), dim=2, eps=FAINTEST) for x in (student, teacher))
        return _near(own_BFN, own_BFN) + _near(other_BGN, other_BGN) - 2 * _near(own_BFN, other_BGN)


def _near(a_BFN: Tensor, b_BGN: Tensor) -> Tensor:
    return (a_BFN @ b_BGN.transpose(1, 2)).square().mean((1, 2))
