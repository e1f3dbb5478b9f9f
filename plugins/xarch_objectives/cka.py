"""Centred kernel alignment as a loss.

Legend: B samples, D numbers per sample.
"""

from __future__ import annotations

from torch import Tensor

from xarch.matching.objectives.dense import FAINTEST
from xarch_objectives.relations import RelationObjective


class CKA(RelationObjective):
    """1 − ‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖) of the numbers X, Y of both sides [B, D], centred over the batch, in Gram form
    (Kornblith et al., arXiv 1905.00414). It does not change when a side is rotated or scaled; use 64 samples or
    more."""

    units = "1 - CKA"
    flat = True

    def relation(self, student_BD: Tensor, teacher_BD: Tensor, present_B: Tensor) -> Tensor:
        own_BB, other_BB = (_gram(value, present_B) for value in (student_BD, teacher_BD))
        power = own_BB.square().sum() * other_BB.square().sum()
        return 1 - (own_BB * other_BB).sum() * (power + FAINTEST**2).rsqrt()


def _gram(value_BD: Tensor, present_B: Tensor) -> Tensor:
    share_B1 = (present_B / present_B.sum().clamp_min(1))[:, None]
    centred_BD = (value_BD - (value_BD * share_B1).sum(0)) * present_B[:, None]
    return centred_BD @ centred_BD.T * share_B1.max()
