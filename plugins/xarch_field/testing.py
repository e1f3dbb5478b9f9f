"""Small teachers and batches generated in code: nothing is trained or downloaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from xarch import Batch
from xarch_field.facts import FieldFacts

SIDE = 16
"""Voxels per axis."""


def voxel_balls(file: Path) -> str:
    """Write a red and a blue ball as voxels (density and colour); return the reference ``field:FILE``."""
    axis = np.linspace(-1, 1, SIDE, dtype=np.float32)
    xyz = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)
    sigma = np.zeros(xyz.shape[:3], np.float32)
    rgb = np.full(xyz.shape, 0.5, np.float32)
    for centre, radius, colour in (((-0.3, 0, 0), 0.45, (0.9, 0.2, 0.1)), ((0.4, 0.2, 0.1), 0.35, (0.1, 0.2, 0.9))):
        distance = np.linalg.norm(xyz - np.array(centre, np.float32), axis=-1)
        sigma += 20 / (1 + np.exp(20 * (distance - radius)))
        rgb[distance < radius + 0.1] = colour
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, sigma=sigma, rgb=rgb, aabb=np.array([-1, -1, -1, 1, 1, 1], np.float32), order=np.array("xyz"))
    return f"field:{file}"


def points_and_rays(facts: FieldFacts, samples: int, seed: int) -> Batch:
    """Return points of the box and rays through its middle: ``xyz``, ``dirs``, ``origins`` [N, 3] and so on."""
    generator = torch.Generator().manual_seed(seed)
    low, high = (torch.tensor(corner) for corner in facts.aabb)
    dirs = torch.nn.functional.normalize(torch.randn(samples, 3, generator=generator), dim=-1)
    spread = 0.1 * torch.randn(samples, 3, generator=generator)
    tensors = {
        "xyz": low + (high - low) * (0.25 + 0.5 * torch.rand(samples, 3, generator=generator)),
        "dirs": dirs,
        "origins": (low + high) / 2 + float((high - low).norm()) * (spread - dirs),
        "background": torch.rand(samples, 3, generator=generator),
        "jitter": torch.rand(samples, generator=generator),
    }
    return Batch(tensors, samples)
