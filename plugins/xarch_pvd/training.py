"""Training a field from posed pictures: teachers, and the baseline that conversions are compared with.

Squared error on rendered rays with an occupancy grid that is refreshed from the field as it forms (Instant-NGP, arXiv
2201.05989, appendix C; TensoRF, arXiv 2203.09517, section 4).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from xarch.families.field import RadianceField, ray_points
from xarch.families.field import occupancy as occupancies
from xarch.families.field.cameras import Camera
from xarch.kernels import keep_freed_memory
from xarch.optim import Muon, layer_matrices

RATES: dict[str, tuple[float, float]] = {"mlp": (2e-2, 3e-2), "tensors": (1e-1, 2e-3)}
"""Learning rates of grids and of layers that suit a representation. Voxels meet few rays each: with the rate of the
others they are 6 dB behind after 450 steps."""
OTHER_RATES = (2e-2, 2e-3)
MUON = ("mlp",)
"""Representations whose layers Muon trains: those that are nothing but layers."""


@dataclass(frozen=True)
class TrainingOptions:
    """How a field is trained from pictures.

    Attributes:
        steps: optimiser steps.
        rays: rays a step.
        samples: steps along a ray.
        grid_lr, net_lr: learning rates of grids and of layers, cosine to 3 %; default what suits the representation.
        resolution: cells of the occupancy grid along an axis.
        warmup: steps before the grid is first built.
        every: steps between refreshes.
        threshold: density above which a cell is occupied, at most the mean over all cells.
        seed: of rays, jitter and grid.
    """

    steps: int = 1500
    rays: int = 1024
    samples: int = 128
    grid_lr: float | None = None
    net_lr: float | None = None
    resolution: int = 64
    warmup: int = 96
    every: int = 64
    threshold: float = 10.0
    seed: int = 0


@dataclass
class Pixels:
    """Every pixel of a set of pictures as rays, with straight RGBA colours."""

    origins: Tensor
    dirs: Tensor
    rgba: Tensor
    count: int = field(init=False)

    def __post_init__(self) -> None:
        self.count = len(self.origins)

    @classmethod
    def of(cls, cameras: list[Camera], pictures: Callable[[int], Tensor]) -> Pixels:
        """All pixels of cameras; ``pictures(i)`` is [height, width, 4] in [0, 1]."""
        rays = [camera.rays() for camera in cameras]
        return cls(
            torch.cat([o for o, _ in rays]),
            torch.cat([d for _, d in rays]),
            torch.cat([pictures(i).reshape(-1, 4) for i in range(len(cameras))]),
        )


def train_field(
    model: RadianceField,
    pixels: Pixels,
    options: TrainingOptions,
    *,
    progress: Callable[[int, int, float], None] = lambda step, steps, loss: None,
    until: Callable[[int, float], bool] = lambda step, seconds: False,
) -> float:
    """Train in place and return the CPU seconds of it.

    Args:
        model: the field; its occupancy is built here unless ``options.warmup`` is negative (the grid is given).
        progress: called every ten steps with step, steps and loss.
        until: called after every step with the CPU seconds so far, outside of the measured time; True stops.
    """
    keep_freed_memory()
    generator = torch.Generator().manual_seed(options.seed)
    groups = model.param_groups()
    grid_lr, net_lr = (
        usual if chosen is None else chosen
        for chosen, usual in zip((options.grid_lr, options.net_lr), RATES.get(model.arch, OTHER_RATES), strict=True)
    )
    named = dict(model.named_parameters())
    for parameter in named.values():
        parameter.requires_grad_(True)
    matrices = layer_matrices(model) if model.arch in MUON else set()
    net = [n for n in groups.get("net", []) if n not in matrices]
    adam = torch.optim.Adam(
        [
            {"params": [named[n] for n in groups.get("grid", [])], "lr": grid_lr, "peak": grid_lr},
            {"params": [named[n] for n in net], "lr": net_lr, "peak": net_lr},
        ],
        betas=(0.9, 0.99),
        eps=1e-15,
        fused=True,
    )
    layers = [{"params": [named[n] for n in sorted(matrices)], "lr": net_lr, "peak": net_lr}]
    optimisers = [adam, Muon(layers)] if matrices else [adam]
    given = options.warmup < 0
    if not given:
        model.set_occupancy(torch.ones(options.resolution, options.resolution, options.resolution))
    spent, started = 0.0, time.process_time()
    for step in range(options.steps):
        scale = 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * step / options.steps))
        loss = _loss(model, pixels, options, generator)
        model.zero_grad(set_to_none=True)
        loss.backward()
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * scale
            optimiser.step()
        if not given and step + 1 >= options.warmup and (step + 1 - options.warmup) % options.every == 0:
            model.set_occupancy(
                occupancies.build(
                    model,
                    resolution=options.resolution,
                    threshold=options.threshold,
                    passes=1,
                    seed=options.seed + step,
                )
            )
        spent += time.process_time() - started
        if step % 10 == 9:
            progress(step + 1, options.steps, float(loss.detach()))
        if until(step + 1, spent):
            break
        started = time.process_time()
    for parameter in named.values():
        parameter.requires_grad_(False)
    return spent


def _loss(model: RadianceField, pixels: Pixels, options: TrainingOptions, generator: torch.Generator) -> Tensor:
    rows = torch.randint(pixels.count, (options.rays,), generator=generator)
    background = torch.rand(options.rays, 3, generator=generator)
    jitter = torch.rand(options.rays, generator=generator)
    points = ray_points(model, pixels.origins[rows], pixels.dirs[rows], options.samples, jitter)
    values = model.query(points.x_N3, points.d_N3, ("sigma_raw", "rgb"))
    rgb, _, _ = points.composite(model.density(values["sigma_raw"]), values["rgb"], background)
    alpha = pixels.rgba[rows, 3:]
    return (rgb - pixels.rgba[rows, :3] * alpha - background * (1 - alpha)).square().mean()
