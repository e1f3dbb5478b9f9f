"""Random cameras around a scene, based on its facts (PVD, arXiv 2211.15977, section 4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xarch_field import Camera, sphere_pose
from xarch_field.facts import ViewFacts

SHAKE = math.pi / 20
"""Maximum rotation of a reused training pose, radians."""
NEIGHBOURS = 4
"""Number of nearest poses that a pose may move towards."""
SIMILAR = 0.5
"""Minimum cosine between the directions of two cameras that are interpolated."""


def random_camera(views: ViewFacts, generator: torch.Generator) -> Camera:
    """Draw a camera: on the sphere around the target, or one of the teacher's own, slightly perturbed."""
    width, height = views.width, views.height
    focal = views.focal * width

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    if views.poses:
        c2w = between_poses(torch.tensor(views.poses).view(-1, 3, 4), generator)
    else:
        c2w = sphere_pose(
            uniform(-math.pi, math.pi),
            math.asin(uniform(-0.05, 0.97)),
            uniform(*views.radius),
            torch.tensor(views.target),
        )
    return Camera(width, height, focal, focal, 0.5 * width, 0.5 * height, c2w)


def between_poses(poses_P34: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a pose [4, 4] at most halfway from a random pose to one of its neighbours, slightly rotated.

    When cameras are inside a scene, positions far from all of them may lie in a wall.
    """
    first = poses_P34[int(torch.randint(len(poses_P34), (), generator=generator))]
    away_P = (poses_P34[:, :, 3] - first[:, 3]).norm(dim=-1)
    near = away_P.argsort(stable=True)[: NEIGHBOURS + 1]
    second = poses_P34[near[int(torch.randint(len(near), (), generator=generator))]]
    way = 0.5 * float(torch.rand((), generator=generator))
    pose = torch.lerp(first, second, way)
    if float((first[:, 2] * second[:, 2]).sum()) < SIMILAR:
        # Opposite directions have no midpoint.
        pose = torch.cat((first[:, :3], pose[:, 3:]), dim=-1)
    left, _, right = torch.linalg.svd(pose[:, :3])
    return shaken(torch.cat((left @ right, pose[:, 3:]), dim=-1), generator)


def shaken(pose_34: Tensor, generator: torch.Generator) -> Tensor:
    """Return a pose [4, 4] at the same position, rotated by random Euler angles up to :data:`SHAKE`."""
    angles = (2 * torch.rand(3, generator=generator) - 1) * SHAKE
    c2w = torch.eye(4)
    c2w[:3] = pose_34[:3]
    c2w[:3, :3] = c2w[:3, :3] @ _rotation(angles.tolist())
    return c2w


def fixed_cameras(views: ViewFacts, count: int, split: str) -> list[Camera]:
    """Return the fixed cameras of a split."""
    seeds = {"validation": 1_000_003, "heldout": 2_000_003, "calibration": 5_000_011}
    generator = torch.Generator().manual_seed(seeds[split])
    return [random_camera(views, generator) for _ in range(count)]


def _rotation(angles: list[float]) -> Tensor:
    """Return the rotation matrix [3, 3] of three Euler angles."""
    turn = torch.eye(3)
    for axis, angle in enumerate(angles):
        a, b = [i for i in range(3) if i != axis]
        step = torch.eye(3)
        step[a, a] = step[b, b] = math.cos(angle)
        step[a, b], step[b, a] = -math.sin(angle), math.sin(angle)
        turn = turn @ step
    return turn
