"""The memory in plain PyTorch: attention to exact entries of some tokens at once, slots token by token.

What leaves the window, and what sinks and window hold at any token, is known beforehand; what slots hold depends on the
attention that each token paid to them. So only choosing and reading slots is a loop.

Legend: B batch, L tokens, H heads, K key/value heads, G heads that share one, E head width, S sinks, W window, N slots,
J = W + L entries of the window before and new tokens, C = S + J.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.kernels.bounded_attention import MASKED, Rotary
from xarch.kernels.dispatch import register
from xarch.kernels.precision import island_dtype
from xarch.kernels.slot_memory.layout import MemoryLayout, quantised

TOKENS = 128
"""Tokens of a chunk: scores of exact entries are held for all of them."""


@register("slot_memory", "torch", priority=10)
def slot_memory_plain(
    q_BLHE: Tensor,
    k_BLKE: Tensor,
    v_BLKE: Tensor,
    positions_BL: Tensor,
    layout: MemoryLayout,
    rotary: Rotary,
    *,
    state: tuple[Tensor, ...],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Arguments and results of :func:`xarch.kernels.slot_memory`; always with the state."""
    if q_BLHE.shape[1] == 0:
        return torch.zeros_like(q_BLHE), state
    dtype = island_dtype(q_BLHE, *state)
    held = dict(zip(layout.state(*k_BLKE.shape[2:]), state, strict=True))
    rows = []
    for begin in range(0, q_BLHE.shape[1], TOKENS):
        cut = slice(begin, begin + TOKENS)
        q_BKGLE = q_BLHE[:, cut].to(dtype).unflatten(2, (k_BLKE.shape[2], -1)).permute(0, 2, 3, 1, 4)
        k_BKLE, v_BKLE = (t[:, cut].to(dtype).transpose(1, 2) for t in (k_BLKE, v_BLKE))
        heads_BKGLE = _Chunk(layout, rotary, held, positions_BL[:, cut]).run(q_BKGLE, k_BKLE, v_BKLE)
        rows.append(heads_BKGLE.permute(0, 3, 1, 2, 4).flatten(2, 3))
    return torch.cat(rows, 1).to(q_BLHE.dtype), tuple(held.values())


class _Chunk:
    """Some tokens; ``held`` is the state before them, and after :meth:`run` the state after them."""

    def __init__(self, layout: MemoryLayout, rotary: Rotary, held: dict[str, Tensor], t_BL: Tensor) -> None:
        self.layout, self.rotary, self.held, self.t_BL = layout, rotary, held, t_BL
        self.l_L = torch.arange(t_BL.shape[1], device=t_BL.device)
        self.start_BL = t_BL - self.l_L
        """Where the document of a token begins."""

    def run(self, q_BKGLE: Tensor, k_BKLE: Tensor, v_BKLE: Tensor) -> Tensor:
        """Return the heads' outputs [B, K, G, L, E]."""
        keys_BKCE, values_BKCE = self._entries("key", k_BKLE), self._entries("value", v_BKLE)
        near_BLJ, age_LJ = self._near()
        scores_BKGLC = self.rotary.scores(q_BKGLE.flatten(2, 3) @ keys_BKCE.mT).unflatten(2, q_BKGLE.shape[2:4])
        scores_BKGLC = torch.where(self._visible(near_BLJ)[:, None, None], scores_BKGLC, MASKED)
        weights_BKGLC = scores_BKGLC.softmax(-1)
        exact_BKGLE = (weights_BKGLC.flatten(2, 3) @ values_BKCE).view(q_BKGLE.shape)
        if self.layout.slots == 0:
            return exact_BKGLE
        counts_BLJ = near_BLJ & (age_LJ >= self.layout.age)
        received_BKGLJ = torch.where(counts_BLJ[:, None, None], weights_BKGLC[..., self.layout.sinks :], 0.0)
        sums_BKGL1 = scores_BKGLC.logsumexp(-1, keepdim=True)
        leaving = slice(self.layout.sinks, self.layout.sinks + len(self.l_L))
        slots_BKGLE, exact_BKGL1 = self._slots(
            q_BKGLE, keys_BKCE[:, :, leaving], values_BKCE[:, :, leaving], sums_BKGL1, received_BKGLJ
        )
        return slots_BKGLE + exact_BKGL1 * exact_BKGLE

    def _entries(self, name: str, new_BKLE: Tensor) -> Tensor:
        """All exact keys or values [B, K, C, E] as attention reads them: sinks, window, new tokens."""
        stored = f"exact_{name}s"
        if self.layout.exact == "int8":
            scale_BKL1, new_BKLE = quantised(new_BKLE)
            scale_BKC = self._moved(f"{name}_scales", scale_BKL1[..., 0])
            return self._moved(stored, new_BKLE) * scale_BKC[..., None]
        if self.layout.exact == "float16":
            new_BKLE = new_BKLE.half().to(new_BKLE.dtype)
        return self._moved(stored, new_BKLE)

    def _moved(self, name: str, new_BKLx: Tensor) -> Tensor:
        """Add new tokens to a tensor of the state, and return what it held before with them [B, K, C, ...]."""
        sinks, kind = self.layout.sinks, self.held[name].dtype
        all_BKCx = torch.cat([self.held[name].to(new_BKLx.dtype), new_BKLx], 2)
        # A sink is the last new token at its place, since another document may begin; else it stays.
        kept = []
        for place in range(sinks):
            last_B = torch.where(self.t_BL == place, self.l_L + 1, 0).amax(1)
            at_B = torch.where(last_B > 0, last_B + self.held[name].shape[2] - 1, place)
            kept.append(all_BKCx[torch.arange(len(at_B), device=at_B.device), :, at_B])
        window_BKWx = all_BKCx[:, :, -self.layout.window :]
        self.held[name] = torch.cat([*(t[:, :, None] for t in kept), window_BKWx], 2).to(kind)
        return all_BKCx

    def _near(self) -> tuple[Tensor, Tensor]:
        """Which entries the window holds at which token [B, L, J], and their ages [L, J]."""
        window = self.layout.window
        age_LJ = window + self.l_L[:, None] - torch.arange(window + len(self.l_L), device=self.l_L.device)
        own_BLJ = age_LJ <= self.t_BL[:, :, None] - self.layout.sinks
        return own_BLJ & (age_LJ >= 0) & (age_LJ < window), age_LJ

    def _visible(self, near_BLJ: Tensor) -> Tensor:
        """Which exact entries each token attends to [B, L, C]."""
        sinks, window = self.layout.sinks, self.layout.window
        first_B11, start_BL1 = self.t_BL[:, :1, None], self.start_BL[:, :, None]
        old_BLS = (start_BL1 == first_B11) & (torch.arange(sinks, device=self.l_L.device) < first_B11)
        begins_BLL = (start_BL1 == self.start_BL[:, None]) & (self.t_BL < sinks)[:, None]
        new_BLL = begins_BLL & (self.l_L <= self.l_L[:, None])
        return torch.cat([old_BLS, near_BLJ[..., :window], near_BLJ[..., window:] | new_BLL], -1)

    def _slots(
        self, q_BKGLE: Tensor, k_BKLE: Tensor, v_BKLE: Tensor, sums_BKGL1: Tensor, received_BKGLJ: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Read and write slots.

        Args:
            k_BKLE, v_BKLE: what leaves the window at each token.
            sums_BKGL1: logarithms of the sums of exponentials over exact entries.
            received_BKGLJ: attention among exact entries that counts for importance.

        Returns:
            What slots add to the outputs [B, K, G, L, E], and the share of exact entries [B, K, G, L, 1].
        """
        layout, held, rotary, dtype = self.layout, self.held, self.rotary, q_BKGLE.dtype
        p_BKL = (self.t_BL - layout.window)[:, None].expand(k_BKLE.shape[:3])
        if layout.stored == "float16":
            k_BKLE, v_BKLE = rotary.turn(k_BKLE, p_BKL, back=True).half().to(dtype), v_BKLE.half().to(dtype)
            k_BKLE = rotary.turn(k_BKLE, p_BKL)
        places_N = torch.arange(layout.slots, device=q_BKGLE.device)
        position_BKN, importance_BKN = held["slot_positions"].to(dtype), held["slot_importance"].to(dtype)
        keys_BKNE = rotary.turn(held["slot_keys"].to(dtype), position_BKN)
        values_BKNE = held["slot_values"].to(dtype)
        window_BKW = held["exact_importance"][:, :, layout.sinks :].to(dtype)
        stream_BKJ = torch.cat([window_BKW, window_BKW.new_zeros(k_BKLE.shape[:3])], -1)
        rows, shares = [], []
        for t in range(k_BKLE.shape[2]):
            # How many tokens had left the window before: the next free slot, while there is one.
            before_B11 = (self.t_BL[:, t] - layout.window - layout.sinks)[:, None, None]
            own_BK1 = stream_BKJ[..., t : t + 1]
            least_BK1 = torch.cat([importance_BKN, own_BK1], -1).argmin(-1, keepdim=True)
            at_BKN = torch.where(before_B11 < layout.slots, before_B11, least_BK1) == places_N
            keys_BKNE = torch.where(at_BKN[..., None], k_BKLE[:, :, t, None], keys_BKNE)
            values_BKNE = torch.where(at_BKN[..., None], v_BKLE[:, :, t, None], values_BKNE)
            position_BKN = torch.where(at_BKN, p_BKL[:, :, t, None].to(dtype), position_BKN)
            importance_BKN = torch.where(at_BKN, own_BK1, importance_BKN)

            scores_BKGN = rotary.scores(q_BKGLE[:, :, :, t] @ keys_BKNE.mT)
            scores_BKGN = torch.where((places_N <= before_B11)[:, :, None], scores_BKGN, MASKED)
            weights_BKGN = torch.cat([scores_BKGN, sums_BKGL1[:, :, :, t]], -1).softmax(-1)
            share_BKG1 = weights_BKGN[..., -1:]
            rows.append(weights_BKGN[..., :-1] @ values_BKNE)
            shares.append(share_BKG1)
            importance_BKN = importance_BKN * layout.decay + weights_BKGN[..., :-1].sum(2)
            stream_BKJ = stream_BKJ * layout.decay + (share_BKG1 * received_BKGLJ[:, :, :, t]).sum(2)
        held["slot_keys"] = rotary.turn(keys_BKNE, position_BKN, back=True).to(held["slot_keys"].dtype)
        held["slot_values"] = values_BKNE.to(held["slot_values"].dtype)
        held["slot_positions"], held["slot_importance"] = position_BKN, importance_BKN
        none_BKS = stream_BKJ.new_zeros(*stream_BKJ.shape[:2], layout.sinks)
        held["exact_importance"] = torch.cat([none_BKS, stream_BKJ[..., -layout.window :]], -1)
        return torch.stack(rows, 3), torch.stack(shares, 3)
