"""The memory as a state: one token, several tokens between two folds, and the fold. What exporters record.

Every head has tensors of its own, as long as it needs them, so no operator depends on another head's size.

Legend: B batch, L tokens, H heads, K key/value heads, G heads that share one, E head width, N slots of a head, W its
window, F tokens of a fold, M = N + F, C = N + W + F.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.errors import UsageError
from xarch.kernels.folded_memory.folding import Entries, folded
from xarch.kernels.folded_memory.layout import MASKED, FoldedLayout, FoldedRanges
from xarch.kernels.folded_memory.plain import numbers, slot_bias
from xarch.kernels.folded_memory.runtime import grouped_query_attention
from xarch.kernels.graph_forms import graph_form
from xarch.kernels.precision import island_dtype, without_autocast
from xarch.kernels.slot_memory.step import Rotary

State = dict[str, Tensor]


def folded_memory_step(
    q_BLHE: Tensor,
    k_BLKE: Tensor,
    v_BLKE: Tensor,
    positions_BL: Tensor,
    layout: FoldedLayout,
    rotary: Rotary,
    ranges: FoldedRanges,
    state: tuple[Tensor, ...],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Attend from tokens that lie between two folds, or from whole folds of them.

    Args:
        q_BLHE, k_BLKE: queries and keys before their rotation, of one token, or of a multiple of ``layout.fold`` tokens
            whose first position is a multiple of it, too; with several, each fold is made before its tokens.
        v_BLKE: values.
        positions_BL: consecutive places in the document.
        state: before the tokens, in the order of ``layout.state``; before one token at a multiple of ``layout.fold``
            :func:`fold_memory` has been called.

    Returns:
        heads [B, L, H, E], and the state after the tokens.
    """
    length = q_BLHE.shape[1]
    if length != 1 and length % layout.fold:
        raise UsageError(f"folded_memory_step: want 1 token or a multiple of {layout.fold}, got {length}")
    with without_autocast(q_BLHE.device):
        dtype = island_dtype(q_BLHE, state[-1])
        ranges = FoldedRanges(*(t.to(dtype) if t.dtype != dtype else t for t in ranges))
        held = _named(layout, state, q_BLHE.shape)
        q_BKGLE = _cast(q_BLHE, dtype).unflatten(2, (layout.heads, -1)).permute(0, 2, 3, 1, 4)
        k_BKLE, v_BKLE = (_cast(x, dtype).transpose(1, 2) for x in (k_BLKE, v_BLKE))
        found, position_B = [], _cast(positions_BL[:, 0], dtype)
        if length == 1 and graph_form("attention") == "runtime" and 2 * len(rotary.frequencies) == q_BLHE.shape[-1]:
            heads_BKGE = _attend_in_runtime(
                held, q_BKGLE[:, :, :, 0], k_BKLE[:, :, 0], v_BKLE[:, :, 0], position_B, layout, rotary, ranges
            )
            return _cast(heads_BKGE.flatten(1, 2)[:, None], q_BLHE.dtype), tuple(held.values())
        for begin in range(0, length, layout.fold):
            cut = slice(begin, begin + layout.fold)
            if length > 1:
                _fold(held, position_B + begin, layout, rotary, ranges)
            given = (q_BKGLE[:, :, :, cut], k_BKLE[:, :, cut], v_BKLE[:, :, cut], position_B + begin)
            found.append(_attend(held, *given, layout, rotary, ranges))
        heads_BKGLE = torch.cat(found, 3) if len(found) > 1 else found[0]
        heads_BLHE = heads_BKGLE.permute(0, 3, 1, 2, 4).flatten(2, 3)
        return _cast(heads_BLHE, q_BLHE.dtype), tuple(held.values())


def fold_memory(
    position_B: Tensor,
    layout: FoldedLayout,
    rotary: Rotary,
    ranges: FoldedRanges,
    state: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """Return the state after the fold that precedes the token at ``position_B``, a multiple of ``layout.fold``. Before
    the first token it changes nothing."""
    query_BKGE = state[-1]
    with without_autocast(query_BKGE.device):
        held = _named(layout, state, query_BKGE.flatten(1, 2).shape)
        _fold(held, _cast(position_B, query_BKGE.dtype), layout, rotary, ranges)
        return tuple(held.values())


def _named(layout: FoldedLayout, state: tuple[Tensor, ...], shape: torch.Size) -> State:
    heads = shape[-2] if len(shape) > 2 else shape[1]
    return dict(zip(layout.state(shape[-1], heads // layout.heads), state, strict=True))


def _attend(
    held: State,
    q_BKGLE: Tensor,
    k_BKLE: Tensor,
    v_BKLE: Tensor,
    position_B: Tensor,
    layout: FoldedLayout,
    rotary: Rotary,
    ranges: FoldedRanges,
) -> Tensor:
    """Put the tokens behind the last ones; return their outputs [B, K, G, L, E]."""
    length, fold = q_BKGLE.shape[3], layout.fold
    held["query"] = q_BKGLE[:, :, :, -1]
    places_F = torch.tensor([float(i) for i in range(fold)], dtype=q_BKGLE.dtype, device=q_BKGLE.device)
    waiting_B1 = _waiting(position_B, fold)[:, None]
    place_BL = position_B[:, None] + places_F[:length]
    q_BKGLE = rotary.turn(q_BKGLE, place_BL[:, None, None].expand(q_BKGLE.shape[:-1]))
    k_BKLE = rotary.turn(k_BKLE, place_BL[:, None].expand(k_BKLE.shape[:-1]))
    late_BLF = places_F > waiting_B1[:, :, None] + places_F[:length, None]
    found = []
    for j in range(layout.heads):
        keys = _appended(held, f"keys_{j}", k_BKLE[:, j : j + 1], places_F, waiting_B1, layout, ranges.key_scale_KE[j])
        values_scale = ranges.value_scale_KE[j]
        values = _appended(held, f"values_{j}", v_BKLE[:, j : j + 1], places_F, waiting_B1, layout, values_scale)
        q_BGLE = q_BKGLE[:, j]
        scores_BGLC = rotary.scores(q_BGLE @ keys.mT)
        bias_BGLN = held[f"bias_{j}"].expand(-1, -1, length, -1)
        pending_BGLF = torch.where(late_BLF, MASKED, 0.0).to(q_BGLE.dtype)[:, None].expand(-1, q_BGLE.shape[1], -1, -1)
        scores_BGLC = scores_BGLC + torch.cat([_cast(bias_BGLN, q_BGLE.dtype), pending_BGLF], -1)
        found.append(scores_BGLC.softmax(-1) @ values)
    return torch.stack(found, 1)


def _attend_in_runtime(
    held: State,
    q_BKGE: Tensor,
    k_BKE: Tensor,
    v_BKE: Tensor,
    position_B: Tensor,
    layout: FoldedLayout,
    rotary: Rotary,
    ranges: FoldedRanges,
) -> Tensor:
    """Put one token behind the last one; return its outputs [B, K, G, E]."""
    held["query"] = q_BKGE
    waiting_1 = _waiting(position_B, layout.fold).to(torch.int32)
    found = []
    for j in range(layout.heads):
        bias_BG1N = held[f"bias_{j}"]
        zeros_BG1F = bias_BG1N.new_zeros(*bias_BG1N.shape[:3], layout.fold)
        scales = (ranges.key_scale_KE[j], ranges.value_scale_KE[j]) if layout.precision == "int8" else None
        pools = held[f"keys_{j}"], held[f"values_{j}"]
        bias = torch.cat([bias_BG1N, zeros_BG1F], -1)
        given = (q_BKGE[:, j], k_BKE[:, j], v_BKE[:, j], *pools, bias, waiting_1, position_B)
        out, held[f"keys_{j}"], held[f"values_{j}"] = grouped_query_attention(
            *given, layout.slots[j] + layout.windows[j], rotary, scales
        )
        found.append(out)
    return torch.stack(found, 1)


def _waiting(position_B: Tensor, fold: int) -> Tensor:
    """How many tokens came since the last multiple of ``fold``."""
    return position_B - (position_B / fold).floor() * fold


def _appended(
    held: State, name: str, new_B1LE: Tensor, places_F: Tensor, waiting_B1: Tensor, layout: FoldedLayout, scale: Tensor
) -> Tensor:
    """Write new tokens among those that wait, and return all entries [B, 1, C, E] as attention reads them."""
    pool_B1CE, length, fold = held[name], new_B1LE.shape[2], layout.fold
    kept_B1CE, waiting_B1FE = pool_B1CE[:, :, :-fold], pool_B1CE[:, :, -fold:]
    if layout.precision == "int8":
        new_B1LE = numbers(new_B1LE, scale).to(torch.int8)
    else:
        new_B1LE = _cast(new_B1LE, pool_B1CE.dtype)
    if length == fold:
        waiting_B1FE = new_B1LE
    else:
        here_B1F1 = (places_F == waiting_B1)[:, None, :, None]
        waiting_B1FE = torch.where(here_B1F1, new_B1LE, waiting_B1FE)
    held[name] = torch.cat([kept_B1CE, waiting_B1FE], 2)
    return _read(held[name], layout, scale)


def _read(pool: Tensor, layout: FoldedLayout, scale: Tensor) -> Tensor:
    wide = _cast(pool, scale.dtype)
    return wide * scale if layout.precision == "int8" else wide


def _fold(held: State, position_B: Tensor, layout: FoldedLayout, rotary: Rotary, ranges: FoldedRanges) -> None:
    fold, decay = layout.fold, layout.decay**layout.fold
    dtype = ranges.key_scale_KE.dtype
    query_BKGE = _cast(held["query"], dtype)
    last_B11 = (position_B - 1.0)[:, None, None]
    query_BKGE = rotary.turn(query_BKGE, last_B11.expand(query_BKGE.shape[:-1]))
    ages_F = torch.tensor([float(i - fold) for i in range(fold)], dtype=dtype, device=query_BKGE.device)
    for j, (slots, window) in enumerate(zip(layout.slots, layout.windows, strict=True)):
        keys_BCE = _read(held[f"keys_{j}"][:, 0], layout, ranges.key_scale_KE[j])
        values_BCE = _read(held[f"values_{j}"][:, 0], layout, ranges.value_scale_KE[j])
        bias_BGN = _cast(held[f"bias_{j}"][:, :, 0], dtype)
        scores_BGC = rotary.scores(query_BKGE[:, j] @ keys_BCE.mT)
        scores_BGC = torch.cat([scores_BGC[..., : slots + window] + bias_BGN, scores_BGC[..., slots + window :]], -1)
        attention_BC = scores_BGC.softmax(-1).sum(1)
        facts_B4N = _cast(held[f"facts_{j}"], dtype)
        importance_BN = torch.cat([facts_B4N[:, 3], _cast(held[f"recent_{j}"], dtype)], -1)
        importance_BN = (importance_BN + attention_BC[:, : slots + window]) * decay
        place_BF = position_B[:, None] - window + ages_F
        there_BF = (place_BF >= 0).to(dtype)
        position_BM = torch.cat([facts_B4N[:, 1], place_BF.clamp_min(0.0)], -1)
        count_BM = torch.cat([facts_B4N[:, 0], there_BF], -1)
        candidates = Entries(
            rotary.turn(keys_BCE[:, : slots + fold], position_BM, back=True),
            values_BCE[:, : slots + fold],
            count_BM,
            position_BM,
            torch.cat([facts_B4N[:, 2], torch.zeros_like(place_BF)], -1),
            importance_BN[:, : slots + fold] * (count_BM > 0).to(dtype),
        )
        made = folded(candidates, fold, layout.sinks)
        new = {
            "keys": (rotary.turn(made.key_RME, made.position_RM), ranges.key_scale_KE[j]),
            "values": (made.value_RME, ranges.value_scale_KE[j]),
        }
        for name, (x_BNE, scale) in new.items():
            pool_B1CE = held[f"{name}_{j}"]
            if layout.precision == "int8":
                x_BNE = numbers(x_BNE, scale, mean=True)
            # What waits is overwritten before it is read; the newest tokens stand in for it.
            parts = [_cast(x_BNE, pool_B1CE.dtype)[:, None], pool_B1CE[:, :, slots + fold :], pool_B1CE[:, :, -fold:]]
            held[f"{name}_{j}"] = torch.cat(parts, 2)
        square_1G = ranges.query_square_KG[j][None]
        slots_BGN = slot_bias(made.count_RM, made.spread_RM, square_1G, rotary.scale, keys_BCE.shape[-1], layout.cap)
        newest_W = torch.tensor([float(i - window) for i in range(window)], dtype=dtype, device=query_BKGE.device)
        held_BW = position_B[:, None] + newest_W >= 0
        window_BGW = torch.where(held_BW, 0.0, MASKED)[:, None].expand(-1, slots_BGN.shape[1], -1)
        bias = held[f"bias_{j}"]
        held[f"bias_{j}"] = _cast(torch.cat([slots_BGN, window_BGW], -1)[:, :, None], bias.dtype)
        facts = torch.stack([made.count_RM, made.position_RM, made.spread_RM, made.importance_RM], 1)
        held[f"facts_{j}"] = _cast(facts, held[f"facts_{j}"].dtype)
        recent_BW = torch.cat([importance_BN[:, slots + fold :], torch.zeros_like(place_BF)], -1)
        held[f"recent_{j}"] = _cast(recent_BW, held[f"recent_{j}"].dtype)


def _cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    # A conversion to its own dtype would be recorded by exporters, too.
    return t if t.dtype == dtype else t.to(dtype)
