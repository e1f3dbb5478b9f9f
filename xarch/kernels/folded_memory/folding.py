"""The fold: what leaves the window and what the slots hold become as many slots again, all merges at once.

Of slots and leaving tokens, as many as leave are removed, the least important ones; each is merged into the one of the
rest whose key is nearest. First tokens are never removed and receive nothing. What no other is merged into stays as it
is: nothing but the keys of all, whose distances count, is read, and at most F entries are computed. Every operator is
one that exporters have, and their number does not depend on sizes.

Legend: R rows (sequences, or sequences times heads), N slots, F tokens that leave, M = N + F candidates: slots, then
the tokens; E head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

BARRED = 1e30
"""Rank of what must stay, and distance to what must not be merged into."""


class Facts(NamedTuple):
    """What is known of slots, or of tokens on their way to become slots, besides keys and values."""

    held_R3M: Tensor
    """Tokens, 0 where there is none; their mean place in the document; their mean squared distance from the mean
    key."""
    importance_RM: Tensor


class Fold(NamedTuple):
    """What a fold makes of its candidates.

    Attributes:
        facts: of the N slots, the most important first.
        source_RN: int64, where each slot is found: among F merged entries, or among the M candidates behind them.
        key_RFE, value_RFE, position_RF: of the merged entries, keys before their rotation. Some may be no slot's.
    """

    facts: Facts
    source_RN: Tensor
    key_RFE: Tensor
    value_RFE: Tensor
    position_RF: Tensor


def fold(
    candidates: Facts,
    keys: Callable[[Tensor, Tensor], Tensor],
    values: Callable[[Tensor], Tensor],
    leaving: int,
    sinks: int,
    places_N: Tensor,
    blocked_RM: Tensor | None = None,
    firsts_R: Tensor | None = None,
) -> Fold:
    """Return N slots made of M candidates.

    Args:
        candidates: what holds no token has no importance.
        keys: maps (places among the candidates [R, X], int64, positions [R, X]) to keys before their rotation
            [R, X, E].
        values: maps places to values.
        leaving: F.
        sinks: first tokens of a document that stay as they are; fewer than any row has slots.
        places_N: 0 … N - 1, int64.
        blocked_RM: True for places that are none: a row with fewer slots than others. They come first in the result.
        firsts_R: 0, M, 2 M …, int64, for a graph that is not to compute them.
    """
    there_RM, first_RM = candidates.held_R3M[:, 0] > 0, candidates.held_R3M[:, 1] < sinks
    rank_RM = torch.where(there_RM, candidates.importance_RM, -1.0)
    rank_RM = torch.where(there_RM & first_RM, BARRED, rank_RM)
    if blocked_RM is not None:
        rank_RM = torch.where(blocked_RM, 10 * BARRED, rank_RM)
    rank_RM, order_RM = rank_RM.topk(rank_RM.shape[1], -1)
    sorted_R3M = _at(candidates.held_R3M, order_RM)
    key_RME = keys(order_RM, sorted_R3M[:, 1])
    square_RM = key_RME.square().sum(-1)
    # Where a token is merged, there is a slot to receive it: all of its row hold tokens, which outrank empty places,
    # and more of them than first ones. What holds none is merged somewhere, and changes nothing.
    barrier_RM = torch.where((rank_RM >= 0) & (rank_RM < BARRED), square_RM, BARRED)
    # |k|² - 2 k · b orders the rest as their distances from b do.
    goes_RFE = key_RME[:, -leaving:]
    apart_RFN = barrier_RM[:, None, :-leaving] - 2.0 * goes_RFE @ key_RME[:, :-leaving].mT
    nearest_RF = apart_RFN.argmin(-1)
    if firsts_R is None:
        firsts_R = torch.arange(key_RME.shape[0], device=key_RME.device) * key_RME.shape[1]
    at_RF = nearest_RF + firsts_R[:, None]
    own_RFE = key_RME.flatten(0, 1).index_select(0, at_RF.flatten()).unflatten(0, (-1, leaving))
    sorted_R4M = torch.cat([sorted_R3M, square_RM[:, None]], 1)
    # Receivers, and behind them what goes.
    both_R4T = torch.cat([_at(sorted_R4M, nearest_RF), sorted_R4M[..., -leaving:]], -1)
    value_RTE = values(torch.cat([order_RM.gather(1, nearest_RF), order_RM[:, -leaving:]], 1))
    spread_RT = both_R4T[:, 2] + both_R4T[:, 3]
    facts_RT3 = torch.stack([both_R4T[:, 1], spread_RT, torch.ones_like(spread_RT)], -1)
    both_RTX = torch.cat([torch.cat([own_RFE, goes_RFE], 1), value_RTE, facts_RT3], -1) * both_R4T[:, 0, :, None]
    together_RFF = (nearest_RF[:, :, None] == nearest_RF[:, None]).to(key_RME.dtype)
    sums_RFX = both_RTX[:, :leaving] + together_RFF @ both_RTX[:, leaving:]
    mean_RFX = sums_RFX / sums_RFX[..., -1:].clamp_min(1.0)
    width = key_RME.shape[-1]
    mean_RFE, position_RF = mean_RFX[..., :width], mean_RFX[..., -3]
    apart_RF = (mean_RFX[..., -2] - mean_RFE.square().sum(-1)).clamp_min(0.0)
    merged_R3F = torch.stack([sums_RFX[..., -1], position_RF, apart_RF], 1)
    # Of those that are merged into one slot, the first has its number; importance adds up.
    # From Python numbers: exporters make it an initializer, where arange would become a node.
    earlier_FF = key_RME.new_tensor([[float(j < i) for j in range(leaving)] for i in range(leaving)])
    number_F = key_RME.new_tensor([i + 1.0 for i in range(leaving)])
    leads_RF = (together_RFF * earlier_FF).sum(-1) == 0
    importance_RM = candidates.importance_RM.gather(1, order_RM)
    told_R2F = torch.stack([leads_RF.to(key_RME.dtype) * number_F, importance_RM[:, -leaving:]], 1)
    to_RFN = (nearest_RF[..., None] == places_N).to(key_RME.dtype)
    told_R2N = told_R2F @ to_RFN
    at_RN = told_R2N[:, 0].long() - 1
    merged_RN = at_RN >= 0
    left_R3N = _at(
        torch.cat([merged_R3F, sorted_R3M[..., :-leaving]], -1), torch.where(merged_RN, at_RN, places_N + leaving)
    )
    facts = Facts(left_R3N, importance_RM[:, :-leaving] + told_R2N[:, 1])
    source_RN = torch.where(merged_RN, at_RN, order_RM[:, :-leaving] + leaving)
    return Fold(facts, source_RN, mean_RFE, mean_RFX[..., width : 2 * width], position_RF)


def _at(x_RXM: Tensor, places_RN: Tensor) -> Tensor:
    """Return [R, X, N]: of every x the numbers at the same places."""
    return x_RXM.gather(2, places_RN[:, None].expand(-1, x_RXM.shape[1], -1))


def rows_of(x_RSX: Tensor, places_RN: Tensor) -> Tensor:
    """Return rows [R, N, X] of every x by their places. Whole rows are copied, where ``gather`` looks up numbers."""
    rows, length, _ = x_RSX.shape
    if rows == 1:
        return x_RSX.index_select(1, places_RN[0])
    firsts_R1 = torch.arange(rows, device=x_RSX.device)[:, None] * length
    return x_RSX.flatten(0, 1).index_select(0, (places_RN + firsts_R1).flatten()).unflatten(0, (rows, -1))
