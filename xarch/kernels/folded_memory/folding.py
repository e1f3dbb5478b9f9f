"""The fold: what leaves the window and what the slots hold become as many slots again, all merges at once.

Of slots and leaving tokens, as many as leave are removed, the least important ones; each is merged into the one of the
rest whose key is nearest. First tokens are never removed and receive nothing. Every operator is one that exporters
have, and their number does not depend on sizes.

Legend: R rows (sequences, or sequences times heads), N slots, F tokens that leave, M = N + F, E head width,
X = 2 E + 4 columns.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BARRED = 1e30
"""Rank of what must stay, and distance to what must not be merged into."""


class Entries(NamedTuple):
    """Slots, or tokens on their way to become slots."""

    key_RME: Tensor
    """Mean key before its rotation."""
    value_RME: Tensor
    count_RM: Tensor
    """Tokens; 0 where there is none."""
    position_RM: Tensor
    """Their mean place in the document."""
    spread_RM: Tensor
    """Their mean squared distance from the key."""
    importance_RM: Tensor


def folded(
    candidates: Entries,
    leaving: int,
    sinks: int,
    places_N: Tensor,
    blocked_RM: Tensor | None = None,
    firsts_R: Tensor | None = None,
) -> Entries:
    """Return N of the M candidates, the most important first, with the others merged into them.

    Args:
        candidates: slots, then the tokens that leave.
        leaving: F.
        sinks: first tokens of a document that stay as they are.
        places_N: 0 … N - 1, int64.
        blocked_RM: True for places that are none: a row with fewer slots than others. They come first in the result.
        firsts_R: 0, M, 2 M …, int64, for a graph that is not to compute them.
    """
    key_RME, value_RME, count_RM, position_RM, spread_RM, importance_RM = candidates
    width = key_RME.shape[-1]
    held_RM = count_RM > 0
    first_RM = held_RM & (position_RM < sinks)
    rank_RM = torch.where(held_RM, importance_RM, -1.0)
    rank_RM = torch.where(first_RM, BARRED, rank_RM)
    if blocked_RM is not None:
        rank_RM = torch.where(blocked_RM, 10 * BARRED, rank_RM)
    order_RM = rank_RM.topk(rank_RM.shape[1], -1).indices
    square_RM = key_RME.square().sum(-1)
    facts_RM4 = torch.stack([position_RM, spread_RM + square_RM, torch.ones_like(count_RM)], -1)
    sums_RMX = torch.cat([key_RME, value_RME, facts_RM4], -1) * count_RM[..., None]
    barrier_RM = torch.where(held_RM & ~first_RM, square_RM, BARRED)
    keyed_RMX = torch.cat([key_RME, barrier_RM[..., None], importance_RM[..., None], sums_RMX], -1)
    sorted_RMX = _rows(keyed_RMX, order_RM, firsts_R)
    stays_RNX, goes_RFX = sorted_RMX[:, :-leaving], sorted_RMX[:, -leaving:]
    # |k|² - 2 k · b orders the rest as their distances from b do.
    apart_RFN = stays_RNX[..., width][:, None] - 2.0 * goes_RFX[..., :width] @ stays_RNX[..., :width].mT
    nearest_RF1 = apart_RFN.argmin(-1, keepdim=True)
    to_RFN = (nearest_RF1 == places_N) & (apart_RFN < 0.5 * BARRED)
    after_RNX = stays_RNX[..., width + 1 :] + to_RFN.to(key_RME.dtype).mT @ goes_RFX[..., width + 1 :]
    importance_RN, sums_RNX, count_RN = after_RNX[..., 0], after_RNX[..., 1:-1], after_RNX[..., -1]
    mean_RNX = sums_RNX / count_RN.clamp_min(1.0)[..., None]
    key_RNE, value_RNE = mean_RNX[..., :width], mean_RNX[..., width : 2 * width]
    spread_RN = (mean_RNX[..., -1] - key_RNE.square().sum(-1)).clamp_min(0.0)
    return Entries(key_RNE, value_RNE, count_RN, mean_RNX[..., -2], spread_RN, importance_RN)


def _rows(x_RMX: Tensor, order_RM: Tensor, firsts_R: Tensor | None) -> Tensor:
    """Put the M rows of every x in an order. Whole rows are copied, where ``gather`` looks up every number."""
    rows, length, _ = x_RMX.shape
    if rows == 1:
        return x_RMX.index_select(1, order_RM[0])
    if firsts_R is None:
        firsts_R = torch.arange(rows, device=x_RMX.device) * length
    order = (order_RM + firsts_R[:, None]).flatten()
    return x_RMX.flatten(0, 1).index_select(0, order).unflatten(0, (rows, -1))
