"""Scale, skip weight and half-life of every head by least squares on the teacher's head outputs.

Legend: B batch, L tokens, D width, H heads, P value width, R candidate half-lives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from xarch.kernels import ssd
from xarch_decoder.model.mixer import SequenceInfo

HALF_LIVES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1024.0, math.inf)
"""Candidate half-lives: tokens after which a value has decayed to one half."""

LONGEST = float(1 << 16)
"""Finite substitute for an infinite half-life: a decay of exactly 1 would have no gradient."""


def decay_rate(half_life: float) -> float:
    """Return ln 2 / half-life: the decay in the exponent of a step of 1."""
    return math.log(2.0) / min(half_life, LONGEST)


def decay_bias(half_life: float) -> float:
    """Return the alpha with softplus(alpha) = ln 2 / half-life."""
    return math.log(math.expm1(decay_rate(half_life)))


UNIT_STEP = math.log(math.expm1(1.0))
"""softplus of this is 1: a step size that leaves inputs as they are."""


@dataclass(frozen=True, slots=True)
class HeadFit:
    """Solution of :class:`HalfLifeFit`."""

    half_life_H: Tensor
    scale_H: Tensor
    skip_H: Tensor


class ScalarDecay(Protocol):
    """A mixer that for constant decays is y = c · N x + D · x per head."""

    def scalar_operands(self, x_BLD: Tensor, sequence: SequenceInfo) -> tuple[Tensor, Tensor, Tensor]:
        """Return x [B, L, H, P], B and C [B, L, H, N] over whole sequences."""

    def set_heads(self, fit: HeadFit) -> None:
        """Write a solution; without gradients."""


class HalfLifeFit:
    """Fits y = c · N x + D · x per head; N is the mixing matrix with constant decay, without gain and skip.

    For every half-life of the grid, c and D follow from sums over tokens; the half-life with the smallest residual
    is chosen. c may have either sign.
    """

    def __init__(self, mixer: ScalarDecay, half_lives: Sequence[float]) -> None:
        self.mixer, self.half_lives = mixer, [float(h) for h in half_lives]
        self._log_a_R = torch.tensor([-decay_rate(h) for h in self.half_lives])
        self._sums_5HR: Tensor | None = None

    def observe(self, mixer_in_BLD: Tensor, heads_BLHP: Tensor, sequence: SequenceInfo) -> None:
        """Accumulate the tokens of a batch; memory grows with its tokens times the grid size."""
        x_BLHP, B_BLHN, C_BLHN = (t.float() for t in self.mixer.scalar_operands(mixer_in_BLD, sequence))
        tries = len(self.half_lives)
        # One call covers the whole grid: as heads of one B/C group, the half-lives share the scores C Bᵀ.
        x_BLSP = x_BLHP[:, :, :, None].expand(-1, -1, -1, tries, -1).flatten(2, 3)
        log_a_BLS = self._log_a_R.to(x_BLHP.device).repeat(x_BLHP.shape[2]).expand(*x_BLSP.shape[:3])
        mixed = ssd(x_BLSP, log_a_BLS, B_BLHN, C_BLHN, segment_ids_BL=sequence.segment_ids_BL)
        assert isinstance(mixed, Tensor)
        y_BLHRP = mixed.unflatten(2, (-1, tries))
        target_BLHP = heads_BLHP.float().flatten(2).view_as(x_BLHP)
        yx_HR = (y_BLHRP * x_BLHP[:, :, :, None]).sum((0, 1, 4))
        yt_HR = (y_BLHRP * target_BLHP[:, :, :, None]).sum((0, 1, 4))
        xx_HR = x_BLHP.square().sum((0, 1, 3))[:, None].expand_as(yx_HR)
        xt_HR = (x_BLHP * target_BLHP).sum((0, 1, 3))[:, None].expand_as(yx_HR)
        sums_5HR = torch.stack([y_BLHRP.square().sum((0, 1, 4)), yx_HR, xx_HR, yt_HR, xt_HR]).double().cpu()
        self._sums_5HR = sums_5HR if self._sums_5HR is None else self._sums_5HR + sums_5HR

    def solve(self) -> dict[str, float]:
        """Write the best half-life of every head with its c and D to the mixer; return what to log."""
        fit = self.best()
        with torch.no_grad():
            self.mixer.set_heads(fit)
        return {"median_half_life": float(fit.half_life_H.median())}

    def best(self) -> HeadFit:
        """Return the best half-life of every head with its c and D."""
        assert self._sums_5HR is not None
        yy, yx, xx, yt, xt = self._sums_5HR
        # A tiny ridge keeps heads solvable whose output is x itself (half-life far below one token).
        yy, xx = yy * (1 + 1e-6) + 1e-12, xx * (1 + 1e-6) + 1e-12
        det = yy * xx - yx * yx
        scale_HR, skip_HR = (yt * xx - xt * yx) / det, (xt * yy - yt * yx) / det
        explained_HR = scale_HR * yt + skip_HR * xt
        best_H1 = explained_HR.argmax(1, keepdim=True)
        half_lives_R = torch.tensor(self.half_lives, dtype=torch.float64)
        return HeadFit(half_lives_R[best_H1[:, 0]], scale_HR.gather(1, best_H1)[:, 0], skip_HR.gather(1, best_H1)[:, 0])
