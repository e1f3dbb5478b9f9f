"""Random cameras around a scene, from what its facts know about it (PVD, arXiv 2211.15977, section 4)."""

from __future__ import annotations

import math

import torch

from xarch.families.field import Camera, sphere_pose
from xarch.families.field.facts import ViewFacts

SHAKE = math.pi / 20
"""Largest turn of a training pose that is used again, radians."""


def random_camera(views: ViewFacts, generator: torch.Generator) -> Camera:
    """A camera of the scene: on the sphere around its target, or one of the teacher's own, moved a little."""
    width, height = views.width, views.height
    focal = views.focal * width

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    if views.poses:
        rows = torch.tensor(views.poses).view(-1, 3, 4)
        first, second = (rows[int(torch.randint(len(rows), (), generator=generator))] for _ in range(2))
        c2w = torch.eye(4)
        c2w[:3] = first
        c2w[:3, 3] = torch.lerp(first[:, 3], second[:, 3], uniform(0.0, 0.3))
        c2w[:3, :3] = c2w[:3, :3] @ _rotation([uniform(-SHAKE, SHAKE) for _ in range(3)])
    else:
        c2w = sphere_pose(
            uniform(-math.pi, math.pi),
            math.asin(uniform(-0.05, 0.97)),
            uniform(*views.radius),
            torch.tensor(views.target),
        )
    return Camera(width, height, focal, focal, 0.5 * width, 0.5 * height, c2w)


def fixed_cameras(views: ViewFacts, count: int, split: str) -> list[Camera]:
    """The same cameras every time; ``split`` names which ones."""
    seeds = {"validation": 1_000_003, "heldout": 2_000_003}
    generator = torch.Generator().manual_seed(seeds[split])
    return [random_camera(views, generator) for _ in range(count)]


def _rotation(angles: list[float]) -> torch.Tensor:
    """Rotation matrix [3, 3] of three Euler angles."""
    turn = torch.eye(3)
    for axis, angle in enumerate(angles):
        a, b = [i for i in range(3) if i != axis]
        step = torch.eye(3)
        step[a, a] = step[b, b] = math.cos(angle)
        step[a, b], step[b, a] = -math.sin(angle), math.sin(angle)
        turn = turn @ step
    return turn
