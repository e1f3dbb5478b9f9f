"""Matrix of an affine edit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xarch import UsageError
from xarch_pvd.editing.schema import Affine

SINGULAR = 1e-6
"""Minimum volume of the unit cube's image, relative to the cube of its longest edge."""


def matrix_of(edit: Affine, middle: Tensor, where: str) -> Tensor:
    """Return [3, 4], float64: a point x maps to the first three columns times x plus the fourth.

    Args:
        middle: default fixed point of scale and rotation, [3].

    Raises:
        UsageError: the matrix is singular.
    """
    if edit.matrix is not None:
        rows = torch.tensor(edit.matrix, dtype=torch.float64)
        turn, shift = rows[:, :3], rows[:, 3] if rows.shape[1] == 4 else torch.zeros(3, dtype=torch.float64)
    else:
        sizes = edit.scale if isinstance(edit.scale, tuple) else (edit.scale,) * 3
        turn = torch.diag(torch.tensor(sizes, dtype=torch.float64))
        for axis in "xyz":
            if axis in edit.rotate:
                turn = rotation(axis, math.radians(edit.rotate[axis])) @ turn
        kept = middle.double() if edit.about is None else torch.tensor(edit.about, dtype=torch.float64)
        shift = kept - turn @ kept + torch.tensor(edit.translate, dtype=torch.float64)
    longest = float(turn.norm(dim=0).max())
    if longest == 0 or abs(float(torch.linalg.det(turn))) < SINGULAR * longest**3:
        raise UsageError(
            f"{where}: the matrix {[[round(v, 6) for v in row] for row in turn.tolist()]} is singular: it flattens "
            f"the scene",
            "use a nonzero scale on every axis",
        )
    return torch.cat((turn, shift[:, None]), dim=1)


def rotation(axis: str, angle: float) -> Tensor:
    """Return a rotation matrix [3, 3], counter-clockwise when looking against the axis."""
    a, b = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    turn = torch.eye(3, dtype=torch.float64)
    turn[a, a] = turn[b, b] = math.cos(angle)
    turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
    return turn
