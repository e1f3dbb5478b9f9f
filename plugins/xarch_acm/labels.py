"""What gates learn first, from every prefix of the learners.

Legend: T positions, K choices of a gate.
"""

from __future__ import annotations

import torch
from torch import Tensor


def stop(distances: Tensor, threshold: float, offset: int) -> Tensor:
    """Return the choice [...] after which a further learner leaves more than ``threshold`` of the distance; the last
    one if each helps more.

    Args:
        distances: [..., K], see ``AdaptiveModule.distances``.
        offset: 0: the learner that helps too little is included; -1: it is not.
    """
    left = distances[..., 1:] / distances[..., :-1].clamp_min(torch.finfo(distances.dtype).tiny)
    ends = torch.cat([left >= threshold, torch.ones_like(left[..., :1], dtype=torch.bool)], -1)
    first = ends.int().argmax(-1)
    last = distances.shape[-1] - 1
    return torch.where(first == last, last, first + 1 + offset)


def lost(distances: Tensor, sensitivity: Tensor, price: float) -> Tensor:
    """Return what the answer loses with every choice [..., K], in prices of a mean learner: distance² · sensitivity.

    Distances alone give a position whose output hardly matters as many learners as one that decides the answer.

    Args:
        distances: [..., K], see ``AdaptiveModule.distances``.
        sensitivity: [...], how much the answer depends on the output, see ``sensitivities``.
        price: of a mean learner.
    """
    return distances.square() * (sensitivity / price)[..., None]
