"""Half-life and beta of every state by least squares on the teacher's head outputs.

Legend: B batch, L tokens, D width, H query heads, K key/value heads, G query heads of a state, P value width, R
candidates.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from xarch.kernels import gated_delta
from xarch_decoder.model.mixer import SequenceInfo
from xarch_mohawk.gdn import GDN
from xarch_mohawk.halflife import decay_rate

HALF_LIVES = (1.0, 4.0, 16.0, 64.0, 256.0, math.inf)
"""Candidate half-lives in tokens."""

BETAS = (0.02, 0.05, 0.1, 0.3, 0.7)
"""Candidate parts of a value that are written."""


class DeltaFit:
    """Fits y = c · S q per head, S with constant half-life and beta; one pair is chosen per state, for all its queries.

    The form without biases can hold no other beta than 1/2.
    """

    def __init__(self, mixer: GDN, half_lives: Sequence[float], betas: Sequence[float]) -> None:
        self.mixer = mixer
        self.pairs = list(itertools.product(half_lives, betas if mixer.in_proj.bias is not None else [0.5]))
        self._sums_2KRG: Tensor | None = None

    def observe(self, mixer_in_BLD: Tensor, heads_BLHP: Tensor, sequence: SequenceInfo) -> None:
        """Accumulate the tokens of a batch; memory grows with its tokens times the number of candidates."""
        q_BLHN, k_BLKN, v_BLKP = (t.float() for t in self.mixer.delta_operands(mixer_in_BLD, sequence))
        states, tries = k_BLKN.shape[2], len(self.pairs)
        log_a_R = torch.tensor([-decay_rate(h) for h, _ in self.pairs])
        beta_R = torch.tensor([beta for _, beta in self.pairs])
        log_a_BLS, beta_BLS = (t.to(q_BLHN).repeat(states).expand(*k_BLKN.shape[:2], -1) for t in (log_a_R, beta_R))
        # One call covers all candidates, as states of their own.
        k_BLSN, v_BLSP = (t.repeat_interleave(tries, 2) for t in (k_BLKN, v_BLKP))
        q_BLSN = q_BLHN.unflatten(2, (states, -1)).repeat_interleave(tries, 2).flatten(2, 3)
        mixed = gated_delta(q_BLSN, k_BLSN, v_BLSP, log_a_BLS, beta_BLS, segment_ids_BL=sequence.segment_ids_BL)
        assert isinstance(mixed, Tensor)
        y_BLKRGP = mixed.unflatten(2, (states, tries, -1))
        target_BLK1GP = heads_BLHP.float().unflatten(2, (states, 1, -1))
        own_KRG = y_BLKRGP.square().sum((0, 1, 5))
        cross_KRG = (y_BLKRGP * target_BLK1GP).sum((0, 1, 5))
        sums = torch.stack([own_KRG, cross_KRG]).double().cpu()
        self._sums_2KRG = sums if self._sums_2KRG is None else self._sums_2KRG + sums

    def solve(self) -> dict[str, float]:
        """Write the best half-life and beta of every state to the mixer; return what to log."""
        assert self._sums_2KRG is not None
        own_KRG, cross_KRG = self._sums_2KRG
        best_K = (cross_KRG.square() / own_KRG.clamp_min(1e-12)).sum(-1).argmax(1).tolist()
        half_life_K = torch.tensor([self.pairs[i][0] for i in best_K])
        beta_K = torch.tensor([self.pairs[i][1] for i in best_K])
        with torch.no_grad():
            self.mixer.set_states(half_life_K, beta_K)
        return {"median_half_life": float(half_life_K.median()), "median_beta": float(beta_K.median())}
