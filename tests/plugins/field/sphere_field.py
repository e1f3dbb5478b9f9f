"""A field known in closed form: a homogeneous ball of one colour."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from xarch_field import RadianceField

SIGMA = 3.0
RADIUS = 0.5
COLOUR = (0.25, 0.5, 0.75)


class Ball(RadianceField):
    """Density 3 inside radius 0.5 around the world's origin, 1e-9 outside."""

    arch = "ball"
    has_feature = False

    def __init__(self, **common: Any) -> None:
        super().__init__(**{"aabb": [[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]], "sigma_clip": (-20.0, 7.0), **common})

    def evaluate(self, u_N3: Tensor, d_N3: Tensor | None, want: Collection[str]) -> dict[str, Tensor]:
        inside = self.to_world(u_N3).norm(dim=-1) <= RADIUS
        return {
            "sigma_raw": torch.where(inside, math.log(SIGMA), -20.0),
            "rgb": torch.tensor(COLOUR).expand(len(u_N3), 3),
        }

    def state_blocks(self) -> dict[str, dict[str, Tensor]]:
        return {}

    def param_groups(self) -> dict[str, list[str]]:
        return {"grid": [], "net": []}
