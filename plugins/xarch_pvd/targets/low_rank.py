"""Low-rank fits of partially known volumes: planes times lines, and products of lines.

Alternating least squares (canonical decomposition; Kolda & Bader, SIAM Review 51(3), 2009, section 3.4) on a volume
whose unknown cells are filled with the model's own values before every update (expectation-maximisation for missing
data), so they contribute no error. Planes times lines start from truncated singular value decompositions
of the residual's three unfoldings (progressive volume distillation, arXiv 2211.15977; TensoRF, arXiv 2203.09517).

Legend: X, Y, Z samples of the three axes, K channels, R components, A = rows and B = columns of a plane, C samples of
the line across it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-5
"""Ridge relative to the mean diagonal of the normal equations."""

PlaneLine = tuple[Tensor, Tensor, Tensor]
"""Plane [A, B, R], line [C, R] and channels [K, R]."""


@dataclass(frozen=True)
class Volume:
    """A volume to fit.

    Attributes:
        value_XYZK: the values.
        known_XYZ: where they are known, bool.
        low, high: bounds; a value at a bound is matched by any model value at or beyond it.
    """

    value_XYZK: Tensor
    known_XYZ: Tensor
    low: float = -torch.inf
    high: float = torch.inf

    def residual(self, model_XYZK: Tensor) -> Tensor:
        """Return the residual of the model, zero where the volume is unknown or satisfied."""
        target = self.value_XYZK.clamp(self.low, self.high)
        lack = target - model_XYZK
        lack = torch.where(target <= self.low, lack.clamp_max(0), lack)
        lack = torch.where(target >= self.high, lack.clamp_min(0), lack)
        return torch.where(self.known_XYZ[..., None], lack, 0.0)


def planes_times_lines(
    volume: Volume, axes: Sequence[tuple[tuple[int, int], int]], rank: int, sweeps: int
) -> list[PlaneLine]:
    """Fit a sum over groups of plane ∘ line ∘ channels.

    Args:
        axes: for each group, the two axes of its plane, slower axis first, and the axis of its line.
        rank: components per group; fewer are returned if the unfolding has no more.
        sweeps: rounds over the groups.
    """
    shape = volume.value_XYZK.shape
    parts = [torch.zeros_like(volume.value_XYZK) for _ in axes]
    found: list[PlaneLine | None] = [None] * len(axes)
    model = torch.zeros_like(volume.value_XYZK)
    for _ in range(sweeps):
        for m, ((a, b), c) in enumerate(axes):
            order = (a, b, c, 3)
            wanted = (parts[m] + volume.residual(model)).permute(order).flatten(0, 1).flatten(1)
            sizes = shape[c], shape[3]
            plane_PR, line_CR, channel_KR = _updated(wanted, sizes, found[m] or _unfolding_start(wanted, sizes, rank))
            back = (plane_PR @ _khatri_rao(line_CR, channel_KR).T).view([shape[i] for i in order])
            part = back.permute([order.index(i) for i in range(4)])
            model = model + part - parts[m]
            parts[m], found[m] = part, (plane_PR, line_CR, channel_KR)
    rows = [(shape[a], shape[b]) for (a, b), _ in axes]
    return [(p.unflatten(0, size), line, k) for (p, line, k), size in zip((f for f in found if f), rows, strict=True)]


def products_of_lines(volume: Volume, rank: int, sweeps: int, seed: int = 0) -> list[Tensor]:
    """Fit a sum of x ∘ y ∘ z ∘ channels: lines [X, R], [Y, R], [Z, R] and channels [K, R].

    They are initialised with random mixtures of the leading singular vectors of each unfolding.
    """
    shape = volume.value_XYZK.shape
    x, y, z, k = shape
    wanted = volume.residual(torch.zeros_like(volume.value_XYZK))
    generator = torch.Generator().manual_seed(seed)
    lines = [_mixture(wanted.movedim(axis, 0).flatten(1), rank, generator) for axis in range(4)]
    for _ in range(sweeps):
        matrix = wanted.reshape(x * y, z * k)
        part = (matrix @ _khatri_rao(lines[2], lines[3])).view(x, y, rank)
        lines[0] = _solved(lines, 0, torch.einsum("xyr,yr->xr", part, lines[1]))
        lines[1] = _solved(lines, 1, torch.einsum("xyr,xr->yr", part, lines[0]))
        part = (matrix.T @ _khatri_rao(lines[0], lines[1])).view(z, k, rank)
        lines[2] = _solved(lines, 2, torch.einsum("zkr,kr->zr", part, lines[3]))
        lines[3] = _solved(lines, 3, torch.einsum("zkr,zr->kr", part, lines[2]))
        for i in range(3):
            norm_R = lines[i].norm(dim=0).clamp_min(1e-12)
            lines[i], lines[3] = lines[i] / norm_R, lines[3] * norm_R
        model = (_khatri_rao(lines[0], lines[1]) @ _khatri_rao(lines[2], lines[3]).T).view(shape)
        wanted = model + volume.residual(model)
    return lines


def _unfolding_start(matrix_PM: Tensor, sizes: tuple[int, int], rank: int) -> PlaneLine:
    """Return the leading right singular vectors, each split into its best product of line and channels."""
    _, vectors = torch.linalg.eigh(matrix_PM.T @ matrix_PM)
    best = vectors[:, -rank:].flip(1).T.unflatten(1, sizes)
    left, size, right = torch.linalg.svd(best, full_matrices=False)
    return matrix_PM, (left[:, :, 0] * size[:, :1]).T, right[:, 0].T


def _updated(matrix_PM: Tensor, sizes: tuple[int, int], parts: PlaneLine) -> PlaneLine:
    """Update plane, line and channels of a group once."""
    _, line_CR, channel_KR = parts
    gram = (line_CR.T @ line_CR) * (channel_KR.T @ channel_KR)
    plane_PR = _solve(gram, matrix_PM @ _khatri_rao(line_CR, channel_KR))
    plane_gram = plane_PR.T @ plane_PR
    seen_RCK = (plane_PR.T @ matrix_PM).unflatten(1, sizes)
    line_CR = _solve(plane_gram * (channel_KR.T @ channel_KR), torch.einsum("rck,kr->cr", seen_RCK, channel_KR))
    channel_KR = _solve(plane_gram * (line_CR.T @ line_CR), torch.einsum("rck,cr->kr", seen_RCK, line_CR))
    return plane_PR, line_CR, channel_KR


def _mixture(matrix_SM: Tensor, rank: int, generator: torch.Generator) -> Tensor:
    size, vectors = torch.linalg.eigh(matrix_SM @ matrix_SM.T)
    share_S = (size.clamp_min(0) / size[-1].clamp_min(1e-12)).pow(0.25)
    mixed = vectors @ (share_S[:, None] * torch.randn(len(size), rank, generator=generator))
    return mixed / mixed.norm(dim=0).clamp_min(1e-12)


def _solved(lines: Sequence[Tensor], axis: int, right_SR: Tensor) -> Tensor:
    gram = torch.ones(right_SR.shape[1], right_SR.shape[1])
    for i, line in enumerate(lines):
        gram = gram if i == axis else gram * (line.T @ line)
    return _solve(gram, right_SR)


def _solve(gram_RR: Tensor, right_SR: Tensor) -> Tensor:
    ridge = (RIDGE * gram_RR.diagonal().mean()).clamp_min(1e-12) * torch.eye(len(gram_RR))
    return torch.linalg.solve(gram_RR + ridge, right_SR.T).T


def _khatri_rao(a_SR: Tensor, b_KR: Tensor) -> Tensor:
    """Return all products of two factors per component, [S * K, R]."""
    return (a_SR[:, None] * b_KR[None]).flatten(0, 1)
