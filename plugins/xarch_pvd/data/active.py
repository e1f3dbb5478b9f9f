"""Active learning: the poses and rays that the student renders worst are reused (PVD-AL, arXiv 2304.04012).

Both pools are tensors that are part of the data position: a resumed run draws the same samples as an uninterrupted one.

Legend: P poses, R rays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from xarch_field import Camera
from xarch_pvd.data.views import shaken

ERROR = "render"
"""Name of the match whose losses measure how well a ray is rendered."""
EPOCH = 32
"""Number of poses from which the worst are selected."""
WARM = 2
"""Epochs before the first poses are kept, since every pose is bad at the start."""
POSES = 100
BATCHES = 16
"""Size of the pool of rays in batches."""


class HardPoses:
    """Pool of the worst poses of each epoch, slightly rotated when reused.

    The worst poses of an epoch replace those that were reused; others are added until the pool is full.

    Args:
        share: share of an epoch's poses that are kept, and that come from the pool once it exists.
    """

    pool_P34: Tensor
    seen_P34: Tensor
    error_P: Tensor
    used_P: Tensor
    _drawn: list[tuple[Tensor, int, int]]

    def __init__(self, share: float) -> None:
        self.share = share
        self.load_state_dict({})

    def draw(self, camera: Camera, count: int, generator: torch.Generator) -> Camera:
        """Return the camera itself, or one from the pool; it provides ``count`` rays of the batch."""
        place = -1
        if len(self.pool_P34) and float(torch.rand((), generator=generator)) < self.share:
            place = int(torch.randint(len(self.pool_P34), (), generator=generator))
            camera = replace(camera, c2w=shaken(self.pool_P34[place], generator))
        self._drawn.append((camera.c2w[:3].clone(), count, place))
        return camera

    def take(self, error_R: Tensor) -> None:
        """Record mean squared errors of the batch's rays, those of its poses first and in order."""
        start = 0
        for c2w, count, place in self._drawn:
            self.seen_P34 = torch.cat((self.seen_P34, c2w[None]))
            self.error_P = torch.cat((self.error_P, error_R[start : start + count].mean()[None]))
            self.used_P = torch.cat((self.used_P, torch.tensor([place])))
            start += count
            if len(self.seen_P34) == EPOCH:
                self._close()
        self._drawn = []

    def _close(self) -> None:
        """End an epoch."""
        self.epoch += 1
        if self.epoch > WARM:
            worst = self.error_P.topk(max(1, round(self.share * EPOCH))).indices
            free = self.used_P[self.used_P >= 0].unique().tolist()
            for index in worst.tolist():
                pose = self.seen_P34[index][None]
                if free:
                    self.pool_P34[free.pop(0)] = pose[0]
                elif len(self.pool_P34) < POSES:
                    self.pool_P34 = torch.cat((self.pool_P34, pose))
        self._empty()

    def _empty(self) -> None:
        self.seen_P34, self.error_P = torch.zeros(0, 3, 4), torch.zeros(0)
        self.used_P = torch.zeros(0, dtype=torch.long)

    def state_dict(self) -> dict[str, Any]:
        """All of it, between two batches."""
        tensors = {"pool": self.pool_P34, "seen": self.seen_P34, "error": self.error_P, "used": self.used_P}
        return {"epoch": self.epoch, **{name: t.clone() for name, t in tensors.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; nothing starts from the beginning."""
        self._drawn = []
        self.epoch = int(state.get("epoch", 0))
        self.pool_P34 = state.get("pool", torch.zeros(0, 3, 4)).clone()
        self._empty()
        if "seen" in state:
            self.seen_P34, self.error_P, self.used_P = (state[k].clone() for k in ("seen", "error", "used"))


class HardRays:
    """Pool of the hardest rays of every batch; a share of each batch is drawn from it.

    The hardest rays of a batch replace those that were reused; the next ones are added until the pool is full.

    Args:
        samples: rays per batch.
        share: share of a batch that is kept, and that comes from the pool once it holds a whole batch.
    """

    pool_R6: Tensor
    _places: Tensor

    def __init__(self, samples: int, share: float) -> None:
        self.samples, self.count = samples, max(1, math.floor(samples * share))
        self.load_state_dict({})

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor] | None:
        """Return origins and directions [R, 3], or None while the pool is too small."""
        self._places = torch.zeros(0, dtype=torch.long)
        if len(self.pool_R6) < self.samples:
            return None
        self._places = torch.randperm(len(self.pool_R6), generator=generator)[: self.count]
        rays_R6 = self.pool_R6[self._places]
        return rays_R6[:, :3], rays_R6[:, 3:]

    def take(self, origins_R3: Tensor, dirs_R3: Tensor, error_R: Tensor) -> None:
        """Record the batch's rays with their errors."""
        again = len(self._places)
        hardest = error_R.topk(min(again + self.count, len(error_R))).indices
        rays_R6 = torch.cat((origins_R3[hardest], dirs_R3[hardest]), dim=-1)
        self.pool_R6[self._places] = rays_R6[:again]
        if len(self.pool_R6) < BATCHES * self.samples:
            self.pool_R6 = torch.cat((self.pool_R6, rays_R6[again:]))

    def state_dict(self) -> dict[str, Any]:
        """All of it, between two batches."""
        return {"pool": self.pool_R6.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; nothing starts from the beginning."""
        self.pool_R6 = state.get("pool", torch.zeros(0, 6)).clone()
        self._places = torch.zeros(0, dtype=torch.long)
