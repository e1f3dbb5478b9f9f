"""Training of a field from posed images: teachers, and the baseline for conversions.

The loss is the squared error on rendered rays. A coarse volume finds the occupied cells first (DVGO, arXiv 2111.11215);
the occupancy grid is then refreshed from the field as it trains (Instant-NGP, arXiv 2201.05989, appendix C; TensoRF,
arXiv 2203.09517, section 4).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from xarch.kernels import keep_freed_memory
from xarch.optim import Muon, layer_matrices
from xarch_field import RadianceField
from xarch_field.model.densities import DensityGrid
from xarch_pvd.train.coarse import coarse_occupancy
from xarch_pvd.train.pixels import Pixels

RATES: dict[str, tuple[float, float]] = {"mlp": (2e-2, 3e-2), "tensors": (1e-1, 2e-3)}
"""Default learning rates of grids and of layers per representation. Few rays cross each voxel: with the rate of the
others, voxels are 6 dB behind after 450 steps."""
OTHER_RATES = (2e-2, 5e-3)
MUON = ("mlp",)
"""Representations whose layers are trained with Muon: those made only of layers."""
FIRST_PASSES = 4
"""Points per cell at the first refresh, which has no earlier densities."""


@dataclass(frozen=True)
class TrainingOptions:
    """Options for training a field from images.

    Attributes:
        steps: optimiser steps.
        rays: rays per step.
        samples: steps per ray. With 64 a hash field reached 30.0 dB in 49 CPU s and one of planes and lines 31.0 in 46;
            with 128 it was 29.8 in 84 and 31.0 in 89 (the procedural scene, 1500 steps).
        grid_lr, net_lr: learning rates of grids and of layers, cosine to 3 %; defaults depend on the representation.
        occupancy: ``found`` from the images, ``given`` by the field and kept, or ``none`` (everything is occupied).
        resolution: cells of the occupancy grid per axis.
        coarse: steps of the coarse volume that finds the initial grid, with half the samples and a quarter of the rays.
        warmup: steps before the first refresh of the grid.
        every: steps between refreshes.
        threshold: density above which a cell is occupied, capped at the mean over all cells.
        seed: seed of rays, jitter and grid.
    """

    steps: int = 1500
    rays: int = 1024
    samples: int = 64
    grid_lr: float | None = None
    net_lr: float | None = None
    occupancy: Literal["found", "given", "none"] = "found"
    resolution: int = 64
    coarse: int = 192
    warmup: int = 96
    every: int = 16
    threshold: float = 10.0
    seed: int = 0


def train_field(
    model: RadianceField,
    pixels: Pixels,
    options: TrainingOptions,
    *,
    progress: Callable[[int, int, float], None] = lambda step, steps, loss: None,
    until: Callable[[int, float], bool] = lambda step, seconds: False,
) -> float:
    """Train in place and return the CPU seconds used.

    Args:
        model: the field; its occupancy is replaced unless ``options.occupancy`` is ``given``.
        progress: called every ten steps with step, steps and loss.
        until: called after every step with the CPU seconds so far, outside the measured time; True stops training.
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
    spent, started = 0.0, time.process_time()
    densities = None
    if options.occupancy == "none":
        model.set_occupancy(torch.ones(1, 1, 1))
    elif options.occupancy == "found":
        model.set_occupancy(_first_grid(model, pixels, options))
        densities = DensityGrid(model.occupancy, seed=options.seed)
    for step in range(options.steps):
        scale = 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * step / options.steps))
        loss = pixels.error(model, options.rays, options.samples, generator)
        model.zero_grad(set_to_none=True)
        loss.backward()
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * scale
            optimiser.step()
        follows = step + 1 - options.warmup
        if densities is not None and follows >= 0 and follows % options.every == 0:
            passes = FIRST_PASSES if follows == 0 else 1
            grid = densities.refresh(model, passes=passes, threshold=options.threshold)
            # Uniform densities do not distinguish cells; without cells there would be nothing to train.
            if bool(grid.any()):
                model.set_occupancy(grid)
        spent += time.process_time() - started
        if step % 10 == 9:
            progress(step + 1, options.steps, float(loss.detach()))
        if until(step + 1, spent):
            break
        started = time.process_time()
    for parameter in named.values():
        parameter.requires_grad_(False)
    return spent


def _first_grid(model: RadianceField, pixels: Pixels, options: TrainingOptions) -> Tensor:
    found = coarse_occupancy(
        model,
        pixels,
        resolution=options.resolution,
        steps=options.coarse,
        rays=max(options.rays // 4, 1),
        samples=max(options.samples // 2, 1),
        seed=options.seed,
    )
    # Without any cell there is nothing to train, and later refreshes cannot grow.
    return found if bool(found.any()) else torch.ones_like(found)


__all__ = ["Pixels", "TrainingOptions", "train_field"]
