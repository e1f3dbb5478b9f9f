"""Attention transfer.

Legend: B samples, F features, N places.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from xarch import Options
from xarch.matching.objectives.dense import FAINTEST
from xarch_objectives.grids import GridObjective


class ATOptions(Options):
    """Options of ``at``."""

    beta: float = Field(1000.0, ge=0, description="factor β")


class AT(GridObjective):
    """β mean_n (A_n(s) − A_n(t))² with A the energy Σ_f x_fn² of every place, with norm 1 over the places (Zagoruyko
    and Komodakis, arXiv 1612.03928, as in their code). Widths may differ; places are averaged to the smaller grid."""

    Options = ATOptions
    units = "squared value"

    def samples(self, student: Tensor, teacher: Tensor) -> Tensor:
        own_BN, other_BN = (F.normalize(x.square().mean(1).flatten(1), dim=1, eps=FAINTEST) for x in (student, teacher))
        return self.options.beta * (own_BN - other_BN).square().mean(1)
