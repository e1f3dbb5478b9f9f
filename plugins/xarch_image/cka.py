"""How alike the layers of two models are: linear centred kernel alignment over minibatches.

CKA(X, Y) = HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)) with K = X Xᵀ and L = Y Yᵀ over the samples of a batch (Kornblith et
al., arXiv 1905.00414); HSIC is the unbiased estimate, averaged over batches (Nguyen et al., arXiv 2010.15327). It is 1
for features that differ by a rotation and a scale only.

Legend: B images, I and J layers of the two models.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

LEAST, TOGETHER = 4, 64
"""Samples that the unbiased estimate needs, and samples measured together."""


def gram(value: Tensor) -> Tensor:
    """Return inner products [B, B] of samples with themselves removed, float64."""
    x = value.detach().flatten(1).double()
    return (x @ x.T).fill_diagonal_(0)


def hsic(a_BB: Tensor, b_BB: Tensor) -> Tensor:
    """Return the unbiased estimate from two inner products without diagonals, of at least four samples."""
    n = len(a_BB)
    cross = a_BB.sum() * b_BB.sum() / ((n - 1) * (n - 2)) - 2 * (a_BB.sum(0) @ b_BB.sum(0)) / (n - 2)
    return ((a_BB * b_BB).sum() + cross) / (n * (n - 3))


class Alikeness:
    """Collects batches of two models' features; small ones are joined."""

    def __init__(self) -> None:
        self._cross: Tensor | None = None
        self._own: dict[str, Tensor] = {}
        self._names: dict[str, list[str]] = {}
        self._waiting: list[dict[str, list[Tensor]]] = []
        self.images = 0

    def add(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> None:
        """Add one batch: layer -> features, the first dimension being samples."""
        sides = {"student": student, "teacher": teacher}
        self._names = {side: list(values) for side, values in sides.items()}
        self._waiting.append({side: [v.detach().cpu() for v in values.values()] for side, values in sides.items()})
        self.images += len(next(iter(student.values())))
        if sum(len(part["student"][0]) for part in self._waiting) >= TOGETHER:
            self._take()

    def _take(self) -> None:
        """Measure the batches that wait, as one."""
        grams = {
            side: [gram(torch.cat(layer)) for layer in zip(*(part[side] for part in self._waiting), strict=True)]
            for side in self._names
        }
        self._waiting = []
        cross = torch.stack([torch.stack([hsic(a, b) for b in grams["teacher"]]) for a in grams["student"]])
        self._cross = cross if self._cross is None else self._cross + cross
        for side, values in grams.items():
            own = torch.stack([hsic(a, a) for a in values])
            self._own[side] = self._own[side] + own if side in self._own else own

    def to_json(self) -> dict[str, object] | None:
        """Return layers of both sides and CKA [I, J] rounded to four digits; None without batches."""
        left = sum(len(part["student"][0]) for part in self._waiting)
        if left >= (LEAST if self._cross is None else TOGETHER // 2):
            self._take()
        if self._cross is None:
            return None
        scale = (self._own["student"][:, None] * self._own["teacher"][None]).clamp_min(0).sqrt()
        values = (self._cross / scale.clamp_min(1e-30)).clamp(0, 1)
        rows = [[round(v, 4) for v in row] for row in values.tolist()]
        return {**self._names, "cka": rows, "images": self.images}
