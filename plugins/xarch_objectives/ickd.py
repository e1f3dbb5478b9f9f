"""Inter-channel correlation.

Legend: B samples, F features, N places.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from xarch import Tap
from xarch.matching.objectives.dense import FAINTEST
from xarch_objectives.grids import GridObjective, unequal_features


class ICKD(GridObjective):
    """mean (G(s) − G(t))² with G [F, F] the correlation x xᵀ of features of norm 1 over the places (Liu et al., arXiv
    2202.03680). Widths are equal, through a connector if need be; grids may differ."""

    units = "squared value"

    @classmethod
    def check(cls, student: Tap, teacher: Tap | None) -> str | None:
        return unequal_features(student, teacher)

    def samples(self, student: Tensor, teacher: Tensor) -> Tensor:
        own_BFF, other_BFF = (_correlation(x.flatten(2)) for x in (student, teacher))
        return (own_BFF - other_BFF).square().mean((1, 2))


def _correlation(value_BFN: Tensor) -> Tensor:
    unit_BFN = F.normalize(value_BFN, dim=2, eps=FAINTEST)
    return unit_BFN @ unit_BFN.transpose(1, 2)
