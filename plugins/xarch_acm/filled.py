"""Learners with room for a fixed number of positions: shapes do not depend on values, and those positions run a learner
that want it most.

Legend: B samples, T positions of a sample, K choices of a gate, N learners.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def ranks(scores: Tensor) -> Tensor:
    """Return the place [B, T] of every position in its sample by the number of learners that it wants, the most first,
    by comparing all pairs: sorting is not an operator of every accelerator.

    Args:
        scores: logits of the choices [B, T, K].
    """
    count_K = torch.arange(scores.shape[-1], device=scores.device, dtype=scores.dtype)
    wanted_BT = (scores.softmax(-1) * count_K).sum(-1)
    place_T = torch.arange(scores.shape[1], device=scores.device)
    more_BTT = wanted_BT[:, None, :] > wanted_BT[:, :, None]
    before_BTT = (wanted_BT[:, None, :] == wanted_BT[:, :, None]) & (place_T[None, :] < place_T[:, None])
    return (more_BTT | before_BTT).to(scores.dtype).sum(-1).to(torch.int32)


def rooms(shares: Sequence[float], positions: int) -> list[int]:
    """Return for how many positions of a sample each learner has room.

    Args:
        shares: of the positions, for every learner, from the first to the last.
        positions: T.
    """
    return [min(positions, math.ceil(share * positions - 1e-6)) for share in shares]


def counts(scores: Tensor, shares: Sequence[float]) -> Tensor:
    """Return how many learners each position runs [B, T].

    Args:
        scores: see :func:`ranks`. shares: see :func:`rooms`.
    """
    rank_BT = ranks(scores)
    return torch.stack([rank_BT < room for room in rooms(shares, scores.shape[1])]).sum(0)
