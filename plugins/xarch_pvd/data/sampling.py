"""Training data of a field: options, kinds of samples, and endless batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field

from xarch import Batch, BatchStream, Options
from xarch_field.teacher import FieldTeacher


class ViewOptions(Options):
    """Options of ``views:``."""

    uniform: float = Field(0.15, ge=0, le=1, description="share of points sampled anywhere in the box")
    visible: float = Field(0.5, ge=0, le=1, description="share of points sampled where cameras see matter")
    background: Literal["random", "scene"] = Field("random", description="colour behind training rays")
    poses: Literal["random", "given"] = Field("random", description="`given`: the folder's training cameras")
    downscale: int = Field(1, ge=1, le=1 << 16, description="integer divisor of the size of the folder's images")
    format: Literal["auto", "blender", "colmap", "llff", "nsvf"] = Field(
        "auto", description="format of the folder; `auto` looks for transforms*.json, then COLMAP, LLFF, NSVF"
    )
    world_scale: float | None = Field(
        None, gt=0, description="torch-ngp or PVD field: the --scale used in training (their default is 0.33)"
    )
    rays_per_view: int = Field(512, ge=1, le=1 << 24, description="rays sampled per camera")


class FieldSample(Options):
    """Definition of one sample of a stage."""

    kind: Literal["points", "rays"] = Field("rays", description="a point of space or a ray of a camera")
    importance: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share sampled where cameras see matter; default: data's `visible` for points, 0 for rays",
    )
    floor: float | None = Field(
        None, ge=0, le=1, description="minimum share sampled anywhere (box, image); default: data's `uniform`"
    )
    levels: tuple[Literal["pose", "ray"], ...] = Field((), description="reuse what the student renders worst (rays)")
    hard: float = Field(0.1, gt=0, le=0.5, description="share of poses and rays that are reused")


class Drawn(BatchStream, ABC):
    """Endless batches, each from its own generator: the position is a single number."""

    def __init__(self, teacher: FieldTeacher, samples: int, seed: int) -> None:
        self.teacher, self.samples, self.seed, self.drawn = teacher, samples, seed, 0

    def __next__(self) -> Batch:
        generator = torch.Generator().manual_seed((self.seed * 1_000_033 + self.drawn) % 2**63)
        self.drawn += 1
        return self.draw(generator)

    @abstractmethod
    def draw(self, generator: torch.Generator) -> Batch:
        """Draw one batch."""

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.drawn = int(state["drawn"])

    def counters(self) -> dict[str, int]:
        return {"read": self.drawn * self.samples}
