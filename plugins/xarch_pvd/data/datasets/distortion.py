"""Radial and tangential lens distortion of OpenCV's model (k1, k2, p1, p2) and its inverse."""

from __future__ import annotations

import torch
from torch import Tensor

from xarch import UsageError

STEPS = 30
REACHED = 1e-8


def distort(x: Tensor, y: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
    """Distort normalised coordinates (x right, y down, at depth 1)."""
    k1, k2, p1, p2 = lens.unbind(-1)
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * k2)
    return (
        x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
        y * radial + 2 * p2 * x * y + p1 * (r2 + 2 * y * y),
    )


def undistort(x: Tensor, y: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
    """Invert :func:`distort` by Newton's method, in float64.

    Raises:
        UsageError: some pixel has no inverse, because the lens folds the image (a fisheye read as a pinhole).
    """
    k1, k2, p1, p2 = lens.double().unbind(-1)
    goal_x, goal_y = x.double(), y.double()
    u, v = goal_x.clone(), goal_y.clone()
    for _ in range(STEPS):
        seen_x, seen_y = distort(u, v, lens.double())
        off_x, off_y = seen_x - goal_x, seen_y - goal_y
        if float(torch.maximum(off_x.abs().max(), off_y.abs().max())) < REACHED:
            break
        r2 = u * u + v * v
        radial, slope = 1 + r2 * (k1 + r2 * k2), 2 * (k1 + 2 * k2 * r2)
        xx = radial + slope * u * u + 2 * p1 * v + 6 * p2 * u
        yy = radial + slope * v * v + 6 * p1 * v + 2 * p2 * u
        xy = slope * u * v + 2 * p1 * u + 2 * p2 * v
        det = xx * yy - xy * xy
        det = torch.where(det.abs() < 1e-12, torch.full_like(det, 1e-12), det)
        u, v = u - (yy * off_x - xy * off_y) / det, v - (xx * off_y - xy * off_x) / det
    seen_x, seen_y = distort(u, v, lens.double())
    off = torch.maximum((seen_x - goal_x).abs().max(), (seen_y - goal_y).abs().max())
    r2 = u * u + v * v
    folds = bool((1 + r2 * (3 * k1 + 5 * k2 * r2) <= 0).any())
    if folds or not float(off) < 1e-6:
        raise UsageError(
            f"the lens {[round(float(c), 6) for c in lens]} (k1, k2, p1, p2) cannot be inverted over the whole image",
            "undistort the images first (colmap image_undistorter)",
        )
    return u, v
